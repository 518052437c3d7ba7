package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// slack is for a slow machine: how much longer a crash may cost than its lease.
const slack = time.Second

// check is one line of the verdict.
type check struct {
	name string
	ok   bool
	text string
}

func (d *director) verdict(checks []check) bool {
	good := true
	d.out.print(bold, "\nVerdict")
	for _, c := range checks {
		mark, s := "✓", green
		if !c.ok {
			mark, s, good = "✗", red, false
		}
		d.out.print(s, "  %s %-19s %s", mark, c.name, c.text)
	}
	result, s := "All is well", green
	if !good {
		result, s = "THE VERDICT IS BAD", red
	}
	d.out.print(s, "%s, after %.1f s.", result, d.clock.now().Seconds())
	return good
}

// judge checks what the workers left and what was seen of them.
func (d *director) judge() ([]check, error) {
	b, err := d.file.read()
	if err != nil {
		return nil, err
	}
	return []check{
		d.nothingLost(b),
		d.oneAtATime(),
		d.inOrder(),
		d.lateWrite(),
		d.cost(holderKilled, lease, "its lease was %v"),
		d.cost(waiterKilled, handedLease, "an unclaimed hand-over may cost %v"),
		d.cost(holderStopped, shortLease, "its lease was %v"),
	}, nil
}

// nothingLost compares the file with the ledger, which the workers never see as a whole.
func (d *director) nothingLost(b book) check {
	var wrong []string
	times := make([]int, len(d.ledger)+1)
	for _, line := range b.Booked {
		times[line]++
	}
	for line, n := range times[1:] {
		if n != 1 {
			wrong = append(wrong, fmt.Sprintf("line %d booked %d times", line+1, n))
		}
	}
	want := sums(d.ledger)
	for _, account := range slices.Sorted(maps.Keys(want)) {
		if b.Balances[account] != want[account] {
			wrong = append(wrong, fmt.Sprintf("%s has %v instead of %v", account, b.Balances[account], want[account]))
		}
	}
	return result("nothing lost", wrong, "%d of %d lines are booked, each once; the %d balances are as the ledger has them",
		len(b.Booked), len(d.ledger), len(want))
}

// oneAtATime: nobody's Acquire returned between another's Acquire and Release. A killed or stopped
// holder counts until the signal.
func (d *director) oneAtATime() check {
	handed := slices.Sorted(slices.Values(d.handed))
	if len(handed) == 0 {
		return check{"one at a time", false, "there was no hand-over"}
	}
	return result("one at a time", d.together, "%d turns; from a release to the next holder: median %s, longest %s",
		len(d.grants), ms(handed[len(handed)/2]), ms(handed[len(handed)-1]))
}

// inOrder compares the order of the holders with the order in which they were first seen in the
// queue. Redis shows the whole queue at one moment, so who is first seen in a later look, or
// behind, came later, whatever Redis makes of it afterwards. Those that held before anybody saw
// them wait prove nothing and are not counted.
func (d *director) inOrder() check {
	seen, wrong := overtaken(d.arrivals, d.grants)
	if seen == 0 {
		wrong = append(wrong, "nobody was seen waiting")
	}
	return result("order kept", wrong, "%d were seen waiting, and held in the order in which they came; fencing tokens only grew", seen)
}

// overtaken also counts the holders whose rank of arrival is known.
func overtaken(arrivals map[string]int, grants []event) (seen int, wrong []string) {
	var before event
	var fence int64
	for _, g := range grants {
		if g.Fence <= fence {
			wrong = append(wrong, fmt.Sprintf("%s got fence %d after %d", g.Worker, g.Fence, fence))
		}
		fence = g.Fence
		rank, known := arrivals[g.Token]
		if !known {
			continue
		}
		seen++
		if seen > 1 && rank < arrivals[before.Token] {
			wrong = append(wrong, fmt.Sprintf("%s held before %s, who came earlier", before.Worker, g.Worker))
		} else {
			before = g
		}
	}
	return seen, wrong
}

// lateWrite: the one who was stopped was refused and told. That what was written meanwhile is
// still there is a part of nothingLost.
func (d *director) lateWrite() check {
	const name = "late write refused"
	if len(d.late) != 2 || d.late[0].Kind != refused || d.late[1].Kind != lost {
		return check{name, false, "the stopped holder's write went through: the guard let an old fencing token pass"}
	}
	r := d.late[0]
	return check{name, true, fmt.Sprintf("%s: %s; then its Context said: %s", r.Worker, r.Text, d.late[1].Text)}
}

// cost: the next one had to wait for the end of the lease, which was not over already when the
// signal came, and not much longer.
func (d *director) cost(crash string, limit time.Duration, why string) check {
	took := d.costs[crash]
	return check{crash, took > limit/2 && took <= limit+slack,
		fmt.Sprintf("the next one held %d ms later; "+why, took.Milliseconds(), limit)}
}

func nothingLeft(err error) check {
	if err != nil {
		return check{"nothing left", false, strings.ReplaceAll(err.Error(), "\n", "; ")}
	}
	return check{"nothing left", true, "no process, no file, no key in Redis"}
}

func result(name string, wrong []string, format string, args ...any) check {
	if len(wrong) > 0 {
		const most = 3
		if len(wrong) > most {
			wrong = append(wrong[:most:most], fmt.Sprintf("and %d more", len(wrong)-most))
		}
		return check{name, false, strings.Join(wrong, "; ")}
	}
	return check{name, true, fmt.Sprintf(format, args...)}
}
