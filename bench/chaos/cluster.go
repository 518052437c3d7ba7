package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// cluster is three primaries with a replica each.
type cluster struct {
	servers []*redistest.Server
	ids     map[string]string // by address
	killed  *redistest.Server // to be restarted by settle
}

func startCluster() (topology, error) {
	t := &cluster{ids: map[string]string{}}
	for range 6 {
		s, err := redistest.Start("--cluster-enabled", "yes", "--cluster-node-timeout", "1500",
			"--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0", "--appendonly", "yes")
		if err != nil {
			t.stop()
			return nil, err
		}
		t.servers = append(t.servers, s)
	}
	args := append([]string{"--cluster", "create"}, t.nodes()...)
	if out, err := exec.Command("redis-cli", append(args, "--cluster-replicas", "1", "--cluster-yes")...).CombinedOutput(); err != nil {
		t.stop()
		return nil, fmt.Errorf("redis-cli --cluster create: %w\n%s", err, out)
	}
	if note := t.settle(); note != "" {
		t.stop()
		return nil, errors.New(note)
	}
	for _, addr := range t.nodes() {
		err := admin(addr, func(ctx context.Context, c rueidis.Client) (err error) {
			t.ids[addr], err = c.Do(ctx, c.B().ClusterMyid().Build()).ToString()
			return err
		})
		if err != nil {
			t.stop()
			return nil, err
		}
	}
	return t, nil
}

func (t *cluster) nodes() []string {
	nodes := make([]string, len(t.servers))
	for i, s := range t.servers {
		nodes[i] = s.Addr()
	}
	return nodes
}

func (t *cluster) data() []string { return t.nodes() }
func (t *cluster) client() job    { return job{Init: t.nodes(), Replicated: true} }

func (t *cluster) stop() {
	for _, s := range t.servers {
		_ = s.Stop()
	}
}

// lossy: CLUSTER FAILOVER waits until the replica has everything; an election does not.
func (t *cluster) lossy(kind string) bool { return kind == stopPrimary || kind == killPrimary }

func (t *cluster) faults() map[string]func(*nemesis, step) string {
	return map[string]func(*nemesis, step) string{manualFailover: t.failover, moveSlot: t.moveSlot}
}

// primaries as they see it themselves; those that do not answer are none.
func (t *cluster) primaries() []*redistest.Server {
	var list []*redistest.Server
	for _, s := range t.servers {
		if role, _ := roleOf(s.Addr()); role == "master" {
			list = append(list, s)
		}
	}
	return list
}

func (t *cluster) crash(_ *nemesis, s step) string {
	all := t.primaries()
	if len(all) == 0 {
		return "no primary"
	}
	t.killed = all[s.client%len(all)]
	_ = t.killed.Kill()
	return within(15*time.Second, "no replica took over", func() bool { return len(t.primaries()) >= len(all) })
}

func (t *cluster) failover(_ *nemesis, s step) string {
	for i := range t.servers {
		replica := t.servers[(s.client+i)%len(t.servers)]
		if role, _ := roleOf(replica.Addr()); role != "slave" {
			continue
		}
		err := admin(replica.Addr(), func(ctx context.Context, c rueidis.Client) error {
			return c.Do(ctx, c.B().ClusterFailover().Build()).Error()
		})
		if err != nil {
			return err.Error()
		}
		return within(10*time.Second, "CLUSTER FAILOVER did not happen", func() bool {
			role, _ := roleOf(replica.Addr())
			return role == "master"
		})
	}
	return "no replica"
}

// settle restarts what was killed and returns when three primaries have a replica each, in sync,
// and all nodes say that all is well.
func (t *cluster) settle() string {
	if t.killed != nil {
		if err := t.killed.Restart(); err != nil {
			return err.Error()
		}
		t.killed = nil
	}
	return within(20*time.Second, "the cluster does not settle", func() bool {
		masters, slaves := 0, 0
		for _, s := range t.servers {
			role, synced := roleOf(s.Addr())
			switch {
			case role == "master":
				masters++
			case role == "slave" && synced:
				slaves++
			}
			ok := false
			_ = admin(s.Addr(), func(ctx context.Context, c rueidis.Client) error {
				info, err := c.Do(ctx, c.B().ClusterInfo().Build()).ToString()
				ok = strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_slots_ok:16384")
				return err
			})
			if !ok {
				return false
			}
		}
		return masters == 3 && slaves == 3
	})
}

// moveSlot moves the slot of a lock to another primary, key by key and slowly, as resharding does.
func (t *cluster) moveSlot(n *nemesis, s step) string {
	key := "lock:{" + s.name + "}"
	slot, err := n.probe.Do(context.Background(), n.probe.B().ClusterKeyslot().Key(key).Build()).AsInt64()
	if err != nil {
		return err.Error()
	}
	var from, to *redistest.Server
	others := t.primaries()
	for i, p := range others {
		if owns(p.Addr(), t.ids[p.Addr()], slot) {
			from = p
			others = append(others[:i:i], others[i+1:]...)
			break
		}
	}
	if from == nil || len(others) == 0 {
		return "the owner is not known"
	}
	to = others[s.client%len(others)]
	number := strconv.FormatInt(slot, 10)
	set := func(at *redistest.Server, args ...string) error {
		return admin(at.Addr(), func(ctx context.Context, c rueidis.Client) error {
			return c.Do(ctx, c.B().Arbitrary("CLUSTER", "SETSLOT", number).Args(args...).Build()).Error()
		})
	}
	if err := errors.Join(set(to, "IMPORTING", t.ids[from.Addr()]), set(from, "MIGRATING", t.ids[to.Addr()])); err != nil {
		return err.Error()
	}
	keys := 0
	err = admin(from.Addr(), func(ctx context.Context, c rueidis.Client) error {
		for {
			list, err := c.Do(ctx, c.B().ClusterGetkeysinslot().Slot(slot).Count(1).Build()).AsStrSlice()
			if err != nil || len(list) == 0 {
				return err
			}
			keys++
			err = c.Do(ctx, c.B().Migrate().Host("127.0.0.1").Port(int64(to.Port())).Key("").
				DestinationDb(0).Timeout(1000).Keys(list...).Build()).Error()
			if err != nil {
				return err
			}
			time.Sleep(s.span / 50)
		}
	})
	note := fmt.Sprintf("%d keys of slot %s", keys, number)
	if err != nil {
		note += ": " + err.Error()
	}
	// The target first, else nobody serves the slot for a moment; also after an error, for the slot
	// must be whole.
	for _, p := range append([]*redistest.Server{to, from}, others...) {
		if err := set(p, "NODE", t.ids[to.Addr()]); err != nil {
			note += ": " + err.Error()
		}
	}
	return note
}

// owns tells whether a node itself says that the slot is its own.
func owns(addr, id string, slot int64) bool {
	found := false
	_ = admin(addr, func(ctx context.Context, c rueidis.Client) error {
		nodes, err := c.Do(ctx, c.B().ClusterNodes().Build()).ToString()
		for line := range strings.SplitSeq(strings.TrimPrefix(nodes, "txt:"), "\n") {
			words := strings.Fields(line)
			if len(words) < 8 || words[0] != id {
				continue
			}
			for _, word := range words[8:] {
				first, last, isRange := strings.Cut(word, "-")
				if !isRange {
					last = first
				}
				a, errA := strconv.ParseInt(first, 10, 64)
				b, errB := strconv.ParseInt(last, 10, 64)
				found = found || errA == nil && errB == nil && a <= slot && slot <= b
			}
		}
		return err
	})
	return found
}

// roleOf asks a node: master or slave, and for a slave whether it is in sync.
func roleOf(addr string) (role string, synced bool) {
	_ = admin(addr, func(ctx context.Context, c rueidis.Client) error {
		reply, err := c.Do(ctx, c.B().Role().Build()).ToArray()
		if err != nil || len(reply) == 0 {
			return err
		}
		role, _ = reply[0].ToString()
		if role == "slave" && len(reply) > 3 {
			state, _ := reply[3].ToString()
			synced = state == "connected"
		}
		return nil
	})
	return role, synced
}

// within waits for a condition, and says what is missing if it does not come true.
func within(limit time.Duration, missing string, ok func() bool) string {
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return missing + " within " + limit.String()
		}
	}
	return ""
}
