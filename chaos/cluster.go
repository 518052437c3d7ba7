package main

import (
	"fmt"
	"time"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// cluster is three primaries with a replica each.
type cluster struct {
	*redistest.Cluster
	killed *redistest.Server // to be restarted by settle
}

const nodeTimeout = 1500 * time.Millisecond

func startCluster() (topology, error) {
	c, err := redistest.StartCluster(3, 1, nodeTimeout, "--appendonly", "yes")
	if err != nil {
		return nil, err
	}
	return &cluster{Cluster: c}, nil
}

func (t *cluster) nodes() []string                { return t.Addrs() }
func (t *cluster) data() []string                 { return t.Addrs() }
func (t *cluster) client() job                    { return job{Init: t.Addrs(), Replicated: true} }
func (t *cluster) primaries() []*redistest.Server { return t.Primaries() }
func (t *cluster) stop()                          { _ = t.Stop() }

// lossy: CLUSTER FAILOVER waits until the replica has everything; an election does not.
func (t *cluster) lossy(kind string) bool { return kind == stopPrimary || kind == killPrimary }

func (t *cluster) faults() map[string]func(*nemesis, step) string {
	return map[string]func(*nemesis, step) string{manualFailover: t.failover, moveSlot: t.moveSlot}
}

func (t *cluster) crash(_ *nemesis, s step) string {
	all := t.Primaries()
	if len(all) == 0 {
		return "no primary"
	}
	t.killed = all[s.client%len(all)]
	_ = t.killed.Kill()
	for deadline := time.Now().Add(15 * time.Second); len(t.Primaries()) < len(all); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return "no replica took over"
		}
	}
	return ""
}

func (t *cluster) failover(_ *nemesis, s step) string {
	for i := range t.Servers {
		replica := t.Servers[(s.client+i)%len(t.Servers)]
		if role, _ := replica.Role(); role == "slave" {
			return note(t.Failover(replica))
		}
	}
	return "no replica"
}

// settle restarts the killed server and returns when the cluster is healthy and stays so: for two more node
// timeouts the others take the restarted primary for failed, and may still elect its replica.
func (t *cluster) settle() string {
	if t.killed != nil {
		if err := t.killed.Restart(); err != nil {
			return err.Error()
		}
		t.killed = nil
	}
	if err := t.Settle(); err != nil {
		return err.Error()
	}
	time.Sleep(2 * nodeTimeout)
	return note(t.Settle())
}

// moveSlot moves the slot of a lock to another primary, slowly and key by key, as resharding does.
func (t *cluster) moveSlot(_ *nemesis, s step) string {
	key := "lock:{" + s.name + "}"
	from := t.Owner(key)
	var others []*redistest.Server
	for _, p := range t.Primaries() {
		if p != from {
			others = append(others, p)
		}
	}
	if from == nil || len(others) == 0 {
		return "the owner is not known"
	}
	keys := 0
	err := t.Move(key, others[s.client%len(others)], func(moved int) {
		keys = moved
		time.Sleep(s.span / 50)
	})
	text := fmt.Sprintf("%d keys of slot %d", keys, redistest.SlotOf(key))
	if err != nil {
		text += ": " + err.Error()
	}
	return text
}
