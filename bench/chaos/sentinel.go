package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

const masterSet = "chaos"

// sentinel is a primary, a replica and three Sentinels that watch them.
type sentinel struct {
	servers []*redistest.Server
	watch   []*exec.Cmd
	addrs   []string // of the Sentinels
	dir     string
	killed  *redistest.Server
}

func startSentinel() (topology, error) {
	t := &sentinel{}
	fail := func(err error) (topology, error) {
		t.stop()
		return nil, err
	}
	common := []string{"--repl-diskless-sync-delay", "0"}
	for i := range 2 {
		args := common
		if i > 0 {
			args = append(args, "--replicaof", "127.0.0.1 "+strconv.Itoa(t.servers[0].Port()))
		}
		s, err := redistest.Start(args...)
		if err != nil {
			return fail(err)
		}
		t.servers = append(t.servers, s)
	}
	var err error
	if t.dir, err = os.MkdirTemp("", "chaos-"); err != nil {
		return fail(err)
	}
	for i := range 3 {
		if err := t.startWatch(i); err != nil {
			return fail(err)
		}
	}
	if note := t.settle(); note != "" {
		return fail(errors.New(note))
	}
	return t, nil
}

// startWatch starts one Sentinel.
func (t *sentinel) startWatch(i int) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := ln.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	_ = ln.Close()
	conf := filepath.Join(t.dir, fmt.Sprintf("sentinel-%d.conf", i))
	text := fmt.Sprintf("port %s\nbind 127.0.0.1\ndir %s\nlogfile %s.log\nsentinel monitor %s 127.0.0.1 %d 2\n"+
		"sentinel down-after-milliseconds %s 1000\nsentinel failover-timeout %s 4000\n",
		port, t.dir, conf, masterSet, t.servers[0].Port(), masterSet, masterSet)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	cmd := exec.Command("redis-server", conf, "--sentinel")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	forks() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return err
	}
	t.watch = append(t.watch, cmd)
	t.addrs = append(t.addrs, addr)
	return nil
}

func (t *sentinel) nodes() []string { return append(t.data(), t.addrs...) }

func (t *sentinel) data() []string {
	var nodes []string
	for _, s := range t.servers {
		nodes = append(nodes, s.Addr())
	}
	return nodes
}

func (t *sentinel) client() job { return job{Init: t.addrs, MasterSet: masterSet, Replicated: true} }

// lossy: each failover by Sentinel promotes a replica as it is.
func (t *sentinel) lossy(kind string) bool {
	return kind == stopPrimary || kind == killPrimary || kind == manualFailover
}

func (t *sentinel) faults() map[string]func(*nemesis, step) string {
	return map[string]func(*nemesis, step) string{manualFailover: t.failover}
}

func (t *sentinel) stop() {
	for _, cmd := range t.watch {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	for _, s := range t.servers {
		_ = s.Stop()
	}
	if t.dir != "" {
		_ = os.RemoveAll(t.dir)
	}
}

// current is the primary that the Sentinels name.
func (t *sentinel) current() *redistest.Server {
	votes := map[string]int{}
	for _, addr := range t.addrs {
		_ = admin(addr, func(ctx context.Context, c rueidis.Client) error {
			reply, err := c.Do(ctx, c.B().SentinelGetMasterAddrByName().Master(masterSet).Build()).AsStrSlice()
			if err == nil && len(reply) == 2 {
				votes[net.JoinHostPort(reply[0], reply[1])]++
			}
			return err
		})
	}
	for _, s := range t.servers {
		if votes[s.Addr()] >= 2 {
			return s
		}
	}
	return nil
}

func (t *sentinel) primaries() []*redistest.Server {
	if s := t.current(); s != nil {
		return []*redistest.Server{s}
	}
	return nil
}

func (t *sentinel) crash(*nemesis, step) string {
	old := t.current()
	if old == nil {
		return "no primary"
	}
	t.killed = old
	_ = old.Kill()
	return t.taken(old)
}

func (t *sentinel) failover(*nemesis, step) string {
	old := t.current()
	if old == nil {
		return "no primary"
	}
	err := admin(t.addrs[0], func(ctx context.Context, c rueidis.Client) error {
		return c.Do(ctx, c.B().SentinelFailover().Master(masterSet).Build()).Error()
	})
	if err != nil {
		return err.Error()
	}
	return t.taken(old)
}

// taken waits until another has taken over.
func (t *sentinel) taken(old *redistest.Server) string {
	return within(20*time.Second, "no failover", func() bool {
		s := t.current()
		if s == nil || s == old {
			return false
		}
		role, _ := roleOf(s.Addr())
		return role == "master"
	})
}

// settle restarts what was killed, and returns when all Sentinels agree on a primary that has a
// replica in sync.
func (t *sentinel) settle() string {
	if t.killed != nil {
		if err := t.killed.Restart(); err != nil {
			return err.Error()
		}
		t.killed = nil
	}
	return within(30*time.Second, "no replica in sync", func() bool {
		p := t.current()
		if p == nil {
			return false
		}
		for _, s := range t.servers {
			role, synced := roleOf(s.Addr())
			if s == p && role != "master" || s != p && !synced {
				return false
			}
		}
		for _, addr := range t.addrs { // they know of each other, and of the replica
			ok := false
			_ = admin(addr, func(ctx context.Context, c rueidis.Client) error {
				info, err := c.Do(ctx, c.B().Arbitrary("SENTINEL", "MASTER", masterSet).Build()).AsStrMap()
				ok = info["num-other-sentinels"] == "2" && info["num-slaves"] == "1" && info["flags"] == "master"
				return err
			})
			if !ok {
				return false
			}
		}
		return true
	})
}
