package main

import (
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

// Judge e: samples of the histories, through porcupine. The model is a mutex that knows its owner and returns
// growing tokens. Events take the lock from its owner: the end of the lease, a deleted key, a failover.

type mutexInput struct {
	kind  string // acquire, release, expire, forget
	owner string
}

type mutexOutput struct {
	fence int64 // acquire: the token, or 0
	known bool  // the outcome is known
	ok    bool  // release: it held the lock
}

type mutexState struct {
	owner string
	fence int64
}

var mutexModel = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{mutexState{}} },
	Step: func(state, input, output any) []any {
		s, in, out := state.(mutexState), input.(mutexInput), output.(mutexOutput)
		free := mutexState{"", s.fence}
		switch in.kind {
		case "acquire":
			switch {
			case !out.known && s.owner == "":
				return []any{s, mutexState{in.owner, s.fence}}
			case !out.known:
				return []any{s} // still waiting, or refused
			case s.owner == "" && (out.fence > s.fence || out.fence == 0):
				return []any{mutexState{in.owner, max(out.fence, s.fence)}}
			}
			return nil
		case "release":
			switch {
			case !out.known && s.owner == in.owner:
				return []any{s, free}
			case !out.known:
				return []any{s}
			case out.ok != (s.owner == in.owner):
				return nil
			case out.ok:
				return []any{free}
			}
			return []any{s}
		case "expire": // the lease may end now
			if s.owner == in.owner {
				return []any{free}
			}
			return []any{s}
		default: // forget: the server may lose its data
			return []any{s, free}
		}
	},
}).ToModel()

const (
	sampleHolds   = 40 // of one lock in a row
	sampleUnknown = 4  // more unknown outcomes make the search too long
	samplesEach   = 6  // of one lock
	sampleTime    = 2 * time.Second
)

func judgeLinearizable(h *history, v *verdict, name string, ops []*op) {
	var holds []*op
	var unknown []*op
	for _, o := range ops {
		switch {
		case o.share != 0:
			return // no mutex
		case o.held:
			holds = append(holds, o)
		case !o.held && o.end == 0:
			unknown = append(unknown, o)
		}
	}
	sort.Slice(holds, func(i, j int) bool {
		if holds[i].fence == holds[j].fence { // a lock without tokens
			return holds[i].end < holds[j].end
		}
		return holds[i].fence < holds[j].fence
	})
	if len(holds) == 0 {
		return
	}
	// Windows evenly over the episode, in the order of the tokens.
	count := min(samplesEach, max(1, len(holds)/sampleHolds))
	for i := range count {
		from := 0
		if count > 1 {
			from = i * max(0, len(holds)-sampleHolds) / (count - 1)
		}
		window := holds[from:min(from+sampleHolds, len(holds))]
		history := sample(h, name, window, unknown)
		switch porcupine.CheckOperationsTimeout(mutexModel, history, sampleTime) {
		case porcupine.Ok:
			v.checked[judgeLinear]++
		case porcupine.Unknown:
			v.excused["e: a sample was too hard for porcupine"]++
		case porcupine.Illegal:
			if twoPrimaries(h, name, window) {
				v.excused["e: two holders, a failover lost the grant"]++
				continue
			}
			first, last := window[0], window[len(window)-1]
			v.fail(judgeLinear, name, first.call, last.end, "the %d holds from token %d to %d have no legal order", len(window), first.fence, last.fence)
		}
	}
}

// twoPrimaries tells whether judge b excuses two holders by a failover: while the old primary lives on, both
// primaries accept a release, which no single lock does.
func twoPrimaries(h *history, name string, window []*op) bool {
	for i, a := range window {
		from, to := startOf(h, a), a.until(h.deathOf(a))
		for _, b := range window[i+1:] {
			if at := startOf(h, b); at+tolerance < to && excuseOverlap(h, name, from, at) == lostGrant {
				return true
			}
		}
	}
	return false
}

// sample is a window of holds, for porcupine. Missing operations only make it easier to find a legal order.
func sample(h *history, name string, window, unknown []*op) []porcupine.Operation {
	const never = int64(1) << 62
	var history []porcupine.Operation
	add := func(kind, owner string, call, ret int64, out mutexOutput) {
		history = append(history, porcupine.Operation{
			ClientId: len(history), Input: mutexInput{kind, owner}, Output: out, Call: call, Return: max(ret, call+1),
		})
	}
	from, to := never, int64(0)
	for _, o := range window {
		from, to = min(from, o.call), max(to, o.end, o.released)
		add("acquire", o.id, o.call, o.end, mutexOutput{known: true, fence: o.fence})
		known := o.released != 0 && (o.relErr == "" || o.relErr == notHeld)
		switch {
		case known:
			add("release", o.id, o.release, o.released, mutexOutput{known: true, ok: o.relErr == ""})
		case o.release != 0:
			add("release", o.id, o.release, never, mutexOutput{})
		}
		if (!known || o.relErr != "") && o.deadline != 0 {
			add("expire", o.id, o.deadline, never, mutexOutput{})
		}
	}
	added := 0
	for _, o := range unknown {
		if died := h.deathOf(o); added < sampleUnknown && o.call < to && died > from {
			added++
			add("acquire", o.id, o.call, never, mutexOutput{})
			add("expire", o.id, o.call, never, mutexOutput{})
		}
	}
	for _, f := range h.faults {
		deleted := f.key == "lock" && f.name == name && f.overlaps(from, to)
		if deleted || f.forgets(from, to) {
			add("forget", "", f.from, max(f.to, f.quiet), mutexOutput{})
		}
	}
	return history
}
