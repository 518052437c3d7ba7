package main

import (
	"fmt"
	"time"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// topology is the Redis under the lock.
type topology interface {
	// nodes that a client may dial, under the addresses that Redis announces.
	nodes() []string
	// data nodes: what MONITOR follows.
	data() []string
	// client is how a client connects.
	client() job
	// primaries as they are now.
	primaries() []*redistest.Server
	// faults that only this topology has, and what they do.
	faults() map[string]func(n *nemesis, s step) (note string)
	// lossy tells whether a fault can end in a failover that loses writes.
	lossy(kind string) bool
	// crash kills a primary and returns when it is back, or another has taken over.
	crash(n *nemesis, s step) string
	// settle brings back what is missing; then the next failover can come.
	settle() string
	stop()
}

func startTopology(name string) (topology, error) {
	switch name {
	case standaloneName:
		return startStandalone()
	case sentinelName:
		return startSentinel()
	case clusterName:
		return startCluster()
	}
	return nil, fmt.Errorf("unknown topology %q", name)
}

const (
	standaloneName = "standalone"
	sentinelName   = "sentinel"
	clusterName    = "cluster"
)

// standalone writes every command to disk before it answers: a restart loses nothing.
type standalone struct{ server *redistest.Server }

func startStandalone() (topology, error) {
	s, err := redistest.Start("--appendonly", "yes", "--appendfsync", "always")
	if err != nil {
		return nil, err
	}
	return &standalone{s}, nil
}

func (t *standalone) nodes() []string                { return []string{t.server.Addr()} }
func (t *standalone) data() []string                 { return t.nodes() }
func (t *standalone) client() job                    { return job{Init: t.nodes()} }
func (t *standalone) primaries() []*redistest.Server { return []*redistest.Server{t.server} }
func (t *standalone) lossy(string) bool              { return false }
func (t *standalone) settle() string                 { return "" }
func (t *standalone) stop()                          { _ = t.server.Stop() }

func (t *standalone) faults() map[string]func(*nemesis, step) string { return nil }

func (t *standalone) crash(_ *nemesis, s step) string {
	_ = t.server.Kill()
	time.Sleep(s.span / 4)
	if err := t.server.Restart(); err != nil {
		return err.Error()
	}
	return ""
}
