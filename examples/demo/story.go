package main

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
)

const (
	lease      = 3 * time.Second
	shortLease = time.Second
	aTurn      = 150 * time.Millisecond
	longWork   = time.Minute

	// handedLease is how long a handed-over lock waits for its holder to show that it is there.
	handedLease = 2 * time.Second

	holderKilled  = "holder killed"
	waiterKilled  = "waiter killed"
	holderStopped = "holder stopped"
)

var names = []string{"ada", "ben", "cleo", "dan", "eve", "finn"}

func (d *director) story() error {
	for _, scene := range []func() error{
		d.inTurn, d.killHolder, d.killWaiter, d.stopHolder, d.fullSpeed,
	} {
		if err := scene(); err != nil {
			return err
		}
	}
	d.finished = true
	return nil
}

func (d *director) inTurn() error {
	d.out.scene("1  Six processes queue, and each gets its turn")
	if err := d.queue("ada", turn{Work: 3 * aTurn}); err != nil {
		return err
	}
	if d.broken == breakLock {
		if err := d.give(d.named("finn"), turn{NoLock: true}); err != nil {
			return err
		}
	}
	if err := d.queueAll("ben", "cleo", "dan", "eve", "finn"); err != nil {
		return err
	}
	if d.broken == breakOrder {
		if err := d.until("a queue", func() bool { return d.named("finn").place > 1 }); err != nil {
			return err
		}
		last := d.state.Waiters[len(d.state.Waiters)-1].Token
		if err := d.client.Do(d.ctx, d.client.B().Zadd().Key(d.keys()[1]).ScoreMember().ScoreMember(0, last).Build()).Error(); err != nil {
			return err
		}
	}
	return d.untilIdle()
}

func (d *director) killHolder() error {
	d.out.scene("2  The holder is killed: the next one holds when its lease has run out")
	if err := d.queue("ada", turn{Work: longWork}); err != nil {
		return err
	}
	if err := d.queueAll("ben", "cleo"); err != nil {
		return err
	}
	d.crash = holderKilled
	if err := d.kill("ada", "while it holds, its lease lasts another "+ms(d.state.TTL)); err != nil {
		return err
	}
	return d.untilIdle()
}

func (d *director) killWaiter() error {
	d.out.scene("3  The first waiter is killed: the lock is handed to it, and comes back unclaimed within 2 s")
	if err := d.queue("ben", turn{Work: 4 * aTurn}); err != nil {
		return err
	}
	if err := d.queueAll("cleo", "dan", "eve"); err != nil {
		return err
	}
	place := d.named("cleo").place
	if place != 1 {
		return errors.New("cleo should wait for ben by now: this machine is too slow for the demo")
	}
	d.crash = waiterKilled
	if err := d.kill("cleo", fmt.Sprintf("while it waits at place %d", place)); err != nil {
		return err
	}
	return d.untilIdle()
}

func (d *director) stopHolder() error {
	d.out.scene("4  A holder is stopped for longer than its lease, wakes up and writes")
	dan, eve := d.named("dan"), d.named("eve")
	err := d.queue(dan.name, turn{Work: 2 * shortLease, Lease: shortLease})
	if err != nil {
		return err
	}
	d.crash = holderStopped
	if err := d.stop(dan, fmt.Sprintf("while it holds, with a lease of %v", shortLease)); err != nil {
		return err
	}
	if err := d.queueAll(eve.name, "finn"); err != nil {
		return err
	}
	if err := d.until("eve to write", func() bool { return eve.turns == 0 }); err != nil {
		return err
	}
	d.add(row{at: d.clock.now(), who: dan.name, place: "SIGCONT", what: "goes on as if it still held"})
	if err := dan.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		return err
	}
	if err := d.untilIdle(); err != nil {
		return err
	}
	if err := d.queue(dan.name, turn{Work: aTurn}); err != nil { // the same line again
		return err
	}
	return d.untilIdle()
}

func (d *director) fullSpeed() error {
	d.out.scene("5  The rest of the ledger, at full speed")
	d.quiet = true
	from := d.clock.now()
	var alive []string
	var hands []*hand
	for _, h := range d.workers {
		if !h.killed {
			hands = append(hands, h)
			alive = append(alive, h.name)
		}
	}
	rest := len(d.ledger) - d.booked + len(d.todo)
	for i := range rest {
		if err := d.give(hands[i%len(hands)], turn{}); err != nil {
			return err
		}
	}
	if err := d.untilIdle(); err != nil {
		return err
	}
	d.quiet = false
	now := d.clock.now()
	d.add(row{style: green, at: now, who: fmt.Sprintf("%d more", len(hands)),
		what: fmt.Sprintf("%s: %d turns in %s", strings.Join(alive, ", "), rest, ms(now-from))})
	return nil
}

// queueAll has them queue one by one, each when the one before is in the queue.
func (d *director) queueAll(names ...string) error {
	for _, name := range names {
		if err := d.queue(name, turn{Work: aTurn}); err != nil {
			return err
		}
	}
	return nil
}
