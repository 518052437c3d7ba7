package main

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/proxy"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// The faults.
const (
	killClient     = "kill -9 client"
	stopClient     = "stop client"
	stopPrimary    = "stop primary"
	killPrimary    = "kill -9 primary"
	manualFailover = "manual failover"
	moveSlot       = "move slot"
	killLinks      = "CLIENT KILL"
	flushFunctions = "FUNCTION FLUSH"
	replaceLibrary = "FUNCTION LOAD REPLACE"
	deleteKey      = "delete key"
	resetLock      = "reset lock"
	slowLinks      = "delay"
	cutLinks       = "cut"
	blackHole      = "black hole"
	deafLinks      = "cut, then deaf"
	dropReply      = "drop reply"
)

// weights of the faults. A topology ignores faults that it does not know.
var weights = []struct {
	kind   string
	weight int
}{
	{killClient, 4}, {stopClient, 5}, {stopPrimary, 2}, {killPrimary, 2}, {manualFailover, 2}, {moveSlot, 3},
	{killLinks, 2}, {flushFunctions, 2}, {replaceLibrary, 1}, {deleteKey, 3}, {resetLock, 1}, {slowLinks, 2}, {cutLinks, 2},
	{blackHole, 3}, {dropReply, 3}, {deafLinks, 5},
}

// step is one fault of the schedule. Its random parts are drawn beforehand, so the schedule depends only on the
// seed.
type step struct {
	kind   string
	client int // of deafLinks: where no loyal holder renews
	name   string
	key    string        // deleteKey: which
	match  string        // dropReply: of which command
	span   time.Duration // how long
	all    bool          // slowLinks: for all clients
	pause  time.Duration // quiet before the next
	join   bool          // the next one begins at the same time
}

// nemesis breaks things by a schedule.
type nemesis struct {
	h     *history
	fleet *fleet
	topo  topology
	names []string
	rng   *rand.Rand
	only  []string // the faults to choose from; nil: all
	probe rueidis.Client

	settling sync.WaitGroup // servers after the last fault of theirs
}

// storm and calm take turns: in a calm, all waiters must get on.
const (
	stormLength = 20 * time.Second
	calmLength  = 7 * time.Second
)

func (n *nemesis) draw() step {
	own := n.topo.faults()
	var kinds []string
	for _, w := range weights {
		if (w.kind == manualFailover || w.kind == moveSlot) && own[w.kind] == nil {
			continue
		}
		if n.only != nil && !contains(n.only, w.kind) {
			continue
		}
		for range w.weight {
			kinds = append(kinds, w.kind)
		}
	}
	r := n.rng
	return step{
		kind:   kinds[r.IntN(len(kinds))],
		client: r.IntN(len(n.fleet.clients)),
		name:   n.names[r.IntN(len(n.names))],
		key:    []string{"lock", "queue", "state"}[r.IntN(3)],
		match:  []string{"lock_acquire", "lock_release", "lock_extend", "BLPOP"}[r.IntN(4)],
		span:   500*time.Millisecond + time.Duration(r.IntN(4500))*time.Millisecond,
		all:    r.IntN(2) == 0,
		pause:  300*time.Millisecond + time.Duration(r.IntN(2500))*time.Millisecond,
		join:   r.IntN(5) == 0,
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// run breaks things until ctx ends, and has repaired them when it returns.
func (n *nemesis) run(ctx context.Context) {
	var joined sync.WaitGroup
	defer n.settling.Wait()
	defer joined.Wait()
	stormEnds := time.Now().Add(stormLength)
	for ctx.Err() == nil {
		s := n.draw()
		if s.join && !n.onServer(s.kind) {
			joined.Go(func() { n.do(s) })
			continue
		}
		n.do(s)
		joined.Wait()
		pause := s.pause
		if time.Now().After(stormEnds) {
			pause = calmLength
			stormEnds = time.Now().Add(calmLength + stormLength)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// onServer: two of these at a time could be more than the topology is made to survive.
func (n *nemesis) onServer(kind string) bool {
	switch kind {
	case stopPrimary, killPrimary, manualFailover, moveSlot:
		return true
	}
	return false
}

// do carries out one fault and repairs it.
func (n *nemesis) do(s step) {
	if n.onServer(s.kind) {
		n.settling.Wait()
	}
	f := fault{kind: s.kind, worker: everyone}
	c := n.fleet.clients[s.client]
	switch s.kind {
	case killClient, stopClient, cutLinks, blackHole, dropReply:
		f.worker = s.client
	case deleteKey:
		f.name, f.key = s.name, s.key
	case resetLock:
		f.name, f.key = s.name, "lock"
	case slowLinks:
		if !s.all {
			f.worker = s.client
		}
	case stopPrimary, killPrimary, manualFailover:
		f.lossy = n.topo.lossy(s.kind)
	}
	begun := n.h.begin(f)
	note := ""
	defer func() {
		n.h.done(begun, note)
		if n.onServer(s.kind) {
			n.settling.Go(func() { n.h.settled(begun, n.topo.settle()) })
		}
	}()

	switch s.kind {
	case killClient:
		n.fleet.kill(c)
		if err := n.fleet.start(c); err != nil {
			note = err.Error()
		}
	case stopClient:
		c.signal(syscall.SIGSTOP)
		time.Sleep(s.span)
		c.signal(syscall.SIGCONT)
	case stopPrimary:
		p := n.primary(s)
		if p == nil {
			note = "no primary"
			return
		}
		_ = p.Pause()
		time.Sleep(s.span)
		_ = p.Resume()
		note = n.awaitWritable()
	case killPrimary:
		note = n.topo.crash(n, s)
		note = strings.TrimSpace(note + n.awaitWritable())
	case manualFailover, moveSlot:
		note = n.topo.faults()[s.kind](n, s)
		note = strings.TrimSpace(note + n.awaitWritable())
	case killLinks:
		n.onPrimaries(killConnections)
	case flushFunctions:
		n.onPrimaries(func(p *redistest.Server) { _ = p.Do("FUNCTION", "FLUSH").Error() })
	case replaceLibrary:
		n.onPrimaries(func(p *redistest.Server) { _ = p.Do("FUNCTION", "LOAD", "REPLACE", redislock.Source()).Error() })
	case deleteKey:
		key := map[string]string{"lock": "lock:", "queue": "lock-queue:", "state": "lock-state:"}[s.key] + "{" + s.name + "}"
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := n.probe.Do(ctx, n.probe.B().Del().Key(key).Build()).Error(); err != nil {
			note = err.Error()
		}
	case resetLock:
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		tag := "{" + s.name + "}"
		if err := n.probe.Do(ctx, n.probe.B().Fcall().Function("lock_reset").Numkeys(3).
			Key("lock:"+tag, "lock-queue:"+tag, "lock-state:"+tag).Build()).Error(); err != nil {
			note = err.Error()
		}
	case slowLinks:
		d := s.span / 100
		for _, c := range n.fleet.clients {
			if s.all || c.index == s.client {
				c.eachProxy(func(p *proxy.Proxy) { p.SetDelay(d) })
			}
		}
		time.Sleep(s.span)
		for _, c := range n.fleet.clients {
			c.eachProxy(func(p *proxy.Proxy) { p.SetDelay(0) })
		}
	case cutLinks:
		c.eachProxy((*proxy.Proxy).CutAll)
	case blackHole:
		c.eachProxy(func(p *proxy.Proxy) { p.BlackHole(true) })
		time.Sleep(s.span)
		c.eachProxy(func(p *proxy.Proxy) { p.BlackHole(false) })
	case deafLinks:
		note = n.deafen(s, begun)
	case dropReply:
		note = n.dropReply(c, s, begun)
	}
}

// dropReply lies in wait for one command of a client; the fault begins when its reply is dropped.
func (n *nemesis) dropReply(c *client, s step, f *fault) string {
	match := []byte(s.match)
	dropped := make(chan struct{}, len(c.proxies))
	limit := s.span
	if s.match == "BLPOP" {
		limit += 6 * time.Second // it can be caught, and answered only now
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for _, p := range c.proxies {
		sprung := p.DropReply(func(request []byte) bool { return bytes.Contains(request, match) })
		go func() {
			select {
			case <-sprung:
				dropped <- struct{}{}
			case <-ctx.Done():
			}
		}()
	}
	note := s.match
	select {
	case <-dropped:
	case <-ctx.Done():
		note += " (none came)"
	}
	c.eachProxy(func(p *proxy.Proxy) { p.DropReply(func([]byte) bool { return false }) })
	n.h.moved(f, mono()-int64(50*time.Millisecond))
	return note
}

// deafen lies in wait for a loyal holder that renews: its lock is held until the lease is over. The links of
// its client break, and new ones are silent. So every call dials, or hangs in the dial of another one.
func (n *nemesis) deafen(s step, f *fault) string {
	worker, note := n.h.awaitRenewal(5*time.Second), ""
	if worker < 0 {
		worker, note = s.client, "no loyal holder renewed"
	}
	n.h.aimed(f, worker)
	c := n.fleet.clients[worker]
	c.eachProxy(func(p *proxy.Proxy) { p.BlackHole(true) })
	c.eachProxy((*proxy.Proxy).CutAll)
	time.Sleep(longestLease + s.span/2)
	c.eachProxy(func(p *proxy.Proxy) { p.BlackHole(false) })
	return note
}

func (n *nemesis) onPrimaries(do func(*redistest.Server)) {
	for _, p := range n.topo.primaries() {
		do(p)
	}
}

// killConnections is CLIENT KILL TYPE normal for all but MONITOR, the eye of the judges.
func killConnections(p *redistest.Server) {
	list, _ := p.Do("CLIENT", "LIST", "TYPE", "normal").ToString()
	for line := range strings.SplitSeq(list, "\n") {
		if id := field(line, "id="); id != "" && !strings.Contains(field(line, "flags="), "O") {
			_ = p.Do("CLIENT", "KILL", "ID", id).Error() // it may have gone by itself
		}
	}
}

func field(line, name string) string {
	for word := range strings.FieldsSeq(line) {
		if value, ok := strings.CutPrefix(word, name); ok {
			return value
		}
	}
	return ""
}

// primary is the one that a stop hits.
func (n *nemesis) primary(s step) *redistest.Server {
	all := n.topo.primaries()
	if len(all) == 0 {
		return nil
	}
	return all[s.client%len(all)]
}

// awaitWritable returns when every lock's slot takes writes again: then the fault is over.
func (n *nemesis) awaitWritable() string {
	deadline := time.Now().Add(30 * time.Second)
	for _, name := range n.names {
		for {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			err := n.probe.Do(ctx, n.probe.B().Set().Key("chaos-probe:{"+name+"}").Value("1").Px(time.Second).Build()).Error()
			cancel()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return " NOT WRITABLE: " + err.Error()
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return ""
}
