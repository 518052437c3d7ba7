package redistest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// PrimarySet is the name under which the Sentinels of StartSentinel know their primary.
const PrimarySet = "locks"

// Sentinel is a primary with replicas that Sentinels watch.
type Sentinel struct {
	Servers  []*Server // the first began as primary
	Watchers []*Server // the Sentinels
}

// StartSentinel starts a primary with a number of replicas, and Sentinels that take the primary for
// dead when it has been silent for downAfter; more than half of them must agree. It returns once
// they know everything. args go to all but the Sentinels.
func StartSentinel(replicas, watchers int, downAfter time.Duration, args ...string) (*Sentinel, error) {
	t := &Sentinel{}
	common := append([]string{"--repl-diskless-sync-delay", "0"}, args...)
	for i := range replicas + 1 {
		own := common
		if i > 0 {
			own = append(own[:len(own):len(own)], "--replicaof", "127.0.0.1 "+itoa(t.Servers[0].Port()))
		}
		s, err := Start(own...)
		if err != nil {
			return nil, errors.Join(err, t.Stop())
		}
		t.Servers = append(t.Servers, s)
	}
	// Sentinels ask for the replicas once when they start, then every ten seconds.
	err := within(20*time.Second, "the replicas are not in sync", func() bool {
		reply, err := t.Servers[0].Do("ROLE").ToArray()
		if err != nil || len(reply) < 3 {
			return false
		}
		known, err := reply[2].ToArray()
		return err == nil && len(known) == replicas
	})
	if err != nil {
		return nil, errors.Join(err, t.Stop())
	}
	conf := fmt.Sprintf("sentinel monitor %[1]s 127.0.0.1 %[2]d %[3]d\n"+
		"sentinel down-after-milliseconds %[1]s %[4]d\nsentinel failover-timeout %[1]s 4000\n",
		PrimarySet, t.Servers[0].Port(), watchers/2+1, downAfter.Milliseconds())
	for range watchers {
		s, err := startWatcher(conf)
		if err != nil {
			return nil, errors.Join(err, t.Stop())
		}
		t.Watchers = append(t.Watchers, s)
	}
	if err := t.Settle(); err != nil {
		return nil, errors.Join(err, t.Stop())
	}
	return t, nil
}

func startWatcher(conf string) (*Server, error) {
	dir, err := os.MkdirTemp("", "redistest-")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "sentinel.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return startIn(dir, file, "--sentinel")
}

// Addrs are those of the Sentinels: what a client is given.
func (t *Sentinel) Addrs() []string { return addresses(t.Watchers) }

// Primary is the server that more than half of the Sentinels name, or nil.
func (t *Sentinel) Primary() *Server {
	votes := map[string]int{}
	for _, w := range t.Watchers {
		if reply, err := w.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", PrimarySet).AsStrSlice(); err == nil && len(reply) == 2 {
			votes[net.JoinHostPort(reply[0], reply[1])]++
		}
	}
	for _, s := range t.Servers {
		if votes[s.Addr()] > len(t.Watchers)/2 {
			return s
		}
	}
	return nil
}

// Failover has a Sentinel promote a replica, and returns when that is done. What the replica has
// not got yet is lost.
func (t *Sentinel) Failover() error {
	old := t.Primary()
	if old == nil {
		return errors.New("redistest: no primary")
	}
	if err := t.Watchers[0].Do("SENTINEL", "FAILOVER", PrimarySet).Error(); err != nil {
		return err
	}
	return t.Replaced(old)
}

// Replaced returns when another server has become the primary.
func (t *Sentinel) Replaced(old *Server) error {
	return within(20*time.Second, "no failover", func() bool {
		s := t.Primary()
		return s != nil && s != old && s.isPrimary()
	})
}

// Settle returns when all Sentinels agree on a primary whose replicas are in sync: then the next
// failover can come. A failover that came while a server was down takes some ten seconds more to
// settle: Sentinel turns an old primary into a replica only then.
func (t *Sentinel) Settle() error {
	return within(time.Minute, "the Sentinels do not agree on a primary with replicas in sync", func() bool {
		p := t.Primary()
		if p == nil {
			return false
		}
		for _, s := range t.Servers {
			role, synced := s.Role()
			if s == p && role != "master" || s != p && !synced {
				return false
			}
		}
		for _, w := range t.Watchers {
			info, err := w.Do("SENTINEL", "MASTER", PrimarySet).AsStrMap()
			if err != nil || info["flags"] != "master" || info["num-slaves"] != itoa(len(t.Servers)-1) ||
				info["num-other-sentinels"] != itoa(len(t.Watchers)-1) {
				return false
			}
		}
		return true
	})
}

// Stop ends all servers and removes their folders.
func (t *Sentinel) Stop() error { return stopAll(append(t.Watchers, t.Servers...)) }

func stopAll(servers []*Server) error {
	failed := make(chan error)
	for _, s := range servers {
		go func() { failed <- s.Stop() }()
	}
	var all error
	for range servers {
		all = errors.Join(all, <-failed)
	}
	return all
}
