package main

import (
	"errors"
	"time"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// sentinel is a primary, a replica and three Sentinels that watch them.
type sentinel struct {
	*redistest.Sentinel
	killed *redistest.Server // to be restarted by settle
}

func startSentinel() (topology, error) {
	s, err := redistest.StartSentinel(1, 3, time.Second)
	if err != nil {
		return nil, err
	}
	return &sentinel{Sentinel: s}, nil
}

func (t *sentinel) nodes() []string { return append(t.data(), t.Addrs()...) }

func (t *sentinel) data() []string {
	var nodes []string
	for _, s := range t.Servers {
		nodes = append(nodes, s.Addr())
	}
	return nodes
}

func (t *sentinel) client() job {
	return job{Init: t.Addrs(), MasterSet: redistest.PrimarySet, Replicated: true}
}

// lossy: each failover by Sentinel promotes a replica as it is.
func (t *sentinel) lossy(kind string) bool {
	return kind == stopPrimary || kind == killPrimary || kind == manualFailover
}

func (t *sentinel) faults() map[string]func(*nemesis, step) string {
	return map[string]func(*nemesis, step) string{
		manualFailover: func(*nemesis, step) string { return note(t.Failover()) },
	}
}

func (t *sentinel) primaries() []*redistest.Server {
	if s := t.Primary(); s != nil {
		return []*redistest.Server{s}
	}
	return nil
}

func (t *sentinel) crash(*nemesis, step) string {
	old := t.Primary()
	if old == nil {
		return "no primary"
	}
	t.killed = old
	return note(errors.Join(old.Kill(), t.Replaced(old)))
}

func (t *sentinel) settle() string {
	if t.killed != nil {
		if err := t.killed.Restart(); err != nil {
			return note(err)
		}
		t.killed = nil
	}
	return note(t.Settle())
}

func (t *sentinel) stop() { _ = t.Stop() }

func note(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}
