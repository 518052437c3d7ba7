package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed-ee05a192/redislock/internal/proxy"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// faulted is how long the next holder of one kind of lock had to wait after each fault.
type faulted struct {
	Lock     string          `json:"lock"`
	Language string          `json:"language"`
	Took     []time.Duration `json:"took_ns"` // in the order of faultNames; at the limit: nobody got it
	Failed   []string        `json:"failed"`  // what a process said, if it gave up
}

// scene is one holder and two waiters, each a process, on a server of their own behind a proxy.
type scene struct {
	a, b, c *process
	link    *proxy.Proxy
	server  *redistest.Server // nil: etcd
	limit   time.Duration
}

// queueTime is how long a process that has been told to acquire has, until it surely waits.
const queueTime = 700 * time.Millisecond

var faultKinds = []struct {
	name string
	run  func(s *scene) (time.Duration, error)
}{
	{"holder killed", func(s *scene) (time.Duration, error) {
		at := monotonic()
		s.a.kill()
		return s.until(at, s.b, s.c)
	}},
	{"next waiter killed", func(s *scene) (time.Duration, error) {
		s.b.kill()
		return s.handOver(s.c)
	}},
	{"next waiter stopped", func(s *scene) (time.Duration, error) {
		if err := s.b.signal(syscall.SIGSTOP); err != nil {
			return 0, err
		}
		return s.handOver(s.c)
	}},
	{"connections cut", func(s *scene) (time.Duration, error) {
		s.link.CutAll()
		time.Sleep(queueTime)
		return s.handOver(s.b, s.c)
	}},
	{"functions and scripts flushed", func(s *scene) (time.Duration, error) {
		if s.server == nil {
			return 0, errNotApplicable
		}
		if err := errors.Join(s.server.Do("FUNCTION", "FLUSH").Error(), s.server.Do("SCRIPT", "FLUSH").Error()); err != nil {
			return 0, err
		}
		return s.handOver(s.b, s.c)
	}},
}

var errNotApplicable = errors.New("it has none")

// handOver has the holder release and waits for the next one. A release that fails is not the end of
// it: the lease is.
func (s *scene) handOver(live ...*process) (time.Duration, error) {
	at := monotonic()
	if err := s.a.say("release"); err != nil {
		return 0, err
	}
	took, err := s.until(at, live...)
	if _, failed := s.a.moment("released", s.limit); failed != nil && err == nil {
		err = fmt.Errorf("release: %w", failed)
	}
	return took, err
}

// until waits for the first of the live ones: some locks keep no order.
func (s *scene) until(at int64, live ...*process) (time.Duration, error) {
	type held struct {
		at  int64
		err error
	}
	answers := make(chan held, len(live))
	for _, p := range live {
		go func() { // the end of its process ends it
			got, err := p.moment("granted", s.limit)
			answers <- held{got, err}
		}()
	}
	var failed error
	for range live {
		h := <-answers
		if h.err == nil {
			return time.Duration(h.at - at), nil
		}
		if !errors.Is(h.err, errSilent) {
			failed = h.err
		}
	}
	return s.limit, failed
}

// play sets the scene for one fault.
func (c contender) play(p processPlan, folder string, run func(*scene) (time.Duration, error)) (time.Duration, error) {
	s := &scene{limit: p.limit}
	var addr, scheme string
	if c.etcd {
		store, err := startEtcd()
		if err != nil {
			return 0, err
		}
		defer store.stop()
		addr, scheme = store.addr, "http://"
	} else {
		server, err := redistest.Start()
		if err != nil {
			return 0, err
		}
		defer func() { _ = server.Stop() }()
		s.server, addr, scheme = server, server.Addr(), "redis://"
	}
	var err error
	if s.link, err = proxy.New(addr); err != nil {
		return 0, err
	}
	defer s.link.Close()
	for _, at := range []**process{&s.a, &s.b, &s.c} {
		if *at, err = c.start(folder, scheme+s.link.Addr()); err != nil {
			return 0, err
		}
		defer (*at).kill()
	}
	if err := s.a.say("acquire faults"); err != nil {
		return 0, err
	}
	if _, err := s.a.moment("granted", startLimit); err != nil {
		return 0, err
	}
	for _, waiter := range []*process{s.b, s.c} {
		if err := waiter.say("acquire faults"); err != nil {
			return 0, err
		}
		time.Sleep(queueTime)
	}
	return run(s)
}

// faults plays all scenes, those of one kind of lock one after the other, all kinds at once: what is
// measured are seconds.
func faults(ctx context.Context, b *bench) error {
	p := b.plan.processes
	folder, err := filepath.Abs(p.folder)
	if err != nil {
		return err
	}
	b.say("faults: %d of each kind of lock", len(faultKinds))
	among := slices.DeleteFunc(p.contenders(), func(c contender) bool {
		_, err := c.command(folder, "")
		if c.etcd && err == nil {
			_, err = exec.LookPath("etcd")
		}
		if err != nil {
			b.say("%s cannot be had: %v", c.name(), err)
		}
		return err != nil
	})
	all := make([]*faulted, len(among))
	g, ctx := errgroup.WithContext(ctx)
	for i, c := range among {
		r := &faulted{Lock: c.Lock, Language: c.Language}
		all[i] = r
		g.Go(func() error {
			for _, kind := range faultKinds {
				took, err := c.play(p, folder, kind.run)
				text := ""
				if err != nil {
					text = err.Error()
				}
				r.Took, r.Failed = append(r.Took, took), append(r.Failed, text)
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	b.report.Faults = all
	b.faultTable(all)
	return nil
}

func (b *bench) faultTable(all []*faulted) {
	limit := b.plan.processes.limit
	t := &table{
		title: "Until the next process holds, after a fault",
		note: fmt.Sprintf("One process holds the lock, two wait for it, in turn. From the kill of the holder, or from its release after another fault, "+
			"until the next live one holds, %v at the most. A lease, where there is one, is 10 s for all.", limit),
		columns: []string{"lock"},
	}
	for _, kind := range faultKinds {
		t.columns = append(t.columns, kind.name)
	}
	for _, r := range all {
		cells := []any{fmt.Sprintf("%s (%s)", r.Lock, r.Language)}
		for i, took := range r.Took {
			switch {
			case r.Failed[i] == errNotApplicable.Error():
				cells = append(cells, "-")
			case took >= limit && r.Failed[i] == "":
				cells = append(cells, "nobody")
			case took >= limit:
				cells = append(cells, fmt.Sprintf("nobody (%s)", short(r.Failed[i])))
			case r.Failed[i] != "":
				cells = append(cells, fmt.Sprintf("%s (%s)", show(took), short(r.Failed[i])))
			default:
				cells = append(cells, took)
			}
		}
		t.row(cells...)
	}
	b.table(t)
}

// short is the beginning of a message, for a table.
func short(text string) string {
	const most = 60
	if len(text) > most {
		return text[:most] + "..."
	}
	return text
}
