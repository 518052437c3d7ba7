package redistest

import (
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// Cluster is some primaries, each with as many replicas.
type Cluster struct {
	Servers  []*Server
	replicas int // of each primary
	args     []string
	ids      map[*Server]string
}

// StartCluster starts a Redis Cluster with redis-cli and returns once all its nodes agree that it is
// complete. A node that is silent for timeout is taken for dead. args go to all of them.
func StartCluster(primaries, replicas int, timeout time.Duration, args ...string) (*Cluster, error) {
	c := &Cluster{replicas: replicas, ids: map[*Server]string{}, args: append([]string{
		"--cluster-enabled", "yes", "--cluster-node-timeout", strconv.FormatInt(timeout.Milliseconds(), 10),
		"--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0"}, args...)}
	for range primaries * (1 + replicas) {
		if _, err := c.start(); err != nil {
			return nil, errors.Join(err, c.Stop())
		}
	}
	err := c.create(primaries)
	if err == nil {
		err = c.Settle()
	}
	if err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Cluster) start() (*Server, error) {
	s, err := Start(c.args...)
	if err != nil {
		return nil, err
	}
	c.Servers = append(c.Servers, s)
	c.ids[s], err = s.Do("CLUSTER", "MYID").ToString()
	return s, err
}

func (c *Cluster) create(primaries int) error {
	if primaries == 1 { // redis-cli creates none of fewer than three
		return c.Servers[0].Do("CLUSTER", "ADDSLOTSRANGE", "0", "16383").Error()
	}
	args := append([]string{"--cluster", "create"}, addresses(c.Servers)...)
	args = append(args, "--cluster-replicas", strconv.Itoa(c.replicas), "--cluster-yes")
	if out, err := exec.Command(CLI(), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("redistest: %s %s: %w\n%s", CLI(), strings.Join(args, " "), err, out)
	}
	return nil
}

// Add has one more server join the cluster, as a primary without slots. It does not get the functions
// of the others, as it would by redis-cli --cluster add-node.
func (c *Cluster) Add() (*Server, error) {
	s, err := c.start()
	if err != nil {
		return nil, err
	}
	if err := s.Do("CLUSTER", "MEET", "127.0.0.1", itoa(c.Servers[0].Port())).Error(); err != nil {
		return nil, err
	}
	return s, c.Settle()
}

// Addrs are those of all nodes.
func (c *Cluster) Addrs() []string { return addresses(c.Servers) }

// Primaries are the nodes that say so themselves. A node that does not answer does not count.
func (c *Cluster) Primaries() []*Server {
	var list []*Server
	for _, s := range c.Servers {
		if s.isPrimary() {
			list = append(list, s)
		}
	}
	return list
}

// Owner is the primary that says of itself that the slot of this key is its own, nil if none does.
// Of two who say so, the one with the greater epoch is right.
func (c *Cluster) Owner(key string) (owner *Server) {
	last := -1
	for _, s := range c.Servers {
		line := c.line(s, c.ids[s])
		if len(line) > 8 && strings.Contains(line[2], "master") && covers(line[8:], SlotOf(key)) {
			if epoch, _ := strconv.Atoi(line[6]); epoch > last {
				owner, last = s, epoch
			}
		}
	}
	return owner
}

// ReplicaOf is a node that says that it is a replica of this primary, or nil.
func (c *Cluster) ReplicaOf(primary *Server) *Server {
	for _, s := range c.Servers {
		if line := c.line(s, c.ids[s]); len(line) > 3 && line[3] == c.ids[primary] {
			return s
		}
	}
	return nil
}

// line is what a node knows of the one with this id, in the words of CLUSTER NODES.
func (c *Cluster) line(at *Server, id string) []string {
	nodes, err := at.Do("CLUSTER", "NODES").ToString()
	if err != nil {
		return nil
	}
	for line := range strings.SplitSeq(strings.TrimPrefix(nodes, "txt:"), "\n") {
		if words := strings.Fields(line); len(words) > 0 && words[0] == id {
			return words
		}
	}
	return nil
}

func covers(ranges []string, slot int) bool {
	for _, word := range ranges {
		first, last, isRange := strings.Cut(word, "-")
		if !isRange {
			last = first
		}
		a, errA := strconv.Atoi(first)
		b, errB := strconv.Atoi(last)
		if errA == nil && errB == nil && a <= slot && slot <= b {
			return true
		}
	}
	return false
}

// Failover has a replica take over from its primary (CLUSTER FAILOVER), and returns when it has.
// Nothing is lost by that.
func (c *Cluster) Failover(replica *Server) error {
	var asked time.Time
	var err error
	return errors.Join(within(30*time.Second, "CLUSTER FAILOVER did not happen", func() bool {
		if time.Since(asked) > 6*time.Second { // Redis gives one up after five
			asked, err = time.Now(), replica.Do("CLUSTER", "FAILOVER").Error()
		}
		return err != nil || replica.isPrimary()
	}), err)
}

// Move moves the slot of a key to another primary, key by key, as resharding does. During is called
// before each key, with the number of those that have moved; and once more before the cluster is
// told that the slot has moved. The slot is whole again afterwards, also after an error.
func (c *Cluster) Move(key string, to *Server, during func(moved int)) error {
	from := c.Owner(key)
	if from == nil || from == to {
		return fmt.Errorf("redistest: the slot of %q is not there to be moved", key)
	}
	slot := itoa(SlotOf(key))
	err := errors.Join(to.Do("CLUSTER", "SETSLOT", slot, "IMPORTING", c.ids[from]).Error(),
		from.Do("CLUSTER", "SETSLOT", slot, "MIGRATING", c.ids[to]).Error())
	if err != nil {
		return err
	}
	err = func() error {
		for moved := 0; ; moved++ {
			during(moved)
			list, err := from.Do("CLUSTER", "GETKEYSINSLOT", slot, "1").AsStrSlice()
			if err != nil || len(list) == 0 {
				return err
			}
			err = from.Do("MIGRATE", "127.0.0.1", itoa(to.Port()), "", "0", "1000", "KEYS", list[0]).Error()
			if err != nil {
				return err
			}
		}
	}()
	// The target first, so that somebody always serves the slot.
	owners := []*Server{to, from}
	for _, p := range c.Primaries() {
		if p != to && p != from {
			owners = append(owners, p)
		}
	}
	for _, p := range owners {
		err = errors.Join(err, p.Do("CLUSTER", "SETSLOT", slot, "NODE", c.ids[to]).Error())
	}
	return err
}

// MovesAtOnce tells whether Binary can move a slot in one step, see MoveAtOnce: Redis 8.4, Valkey 9.
func MovesAtOnce() bool {
	maker, version, _ := strings.Cut(Version(), " ")
	var major, minor int
	_, _ = fmt.Sscanf(version, "%d.%d", &major, &minor)
	return maker == "Valkey" && major >= 9 || maker == "Redis" && (major > 8 || major == 8 && minor >= 4)
}

// MoveAtOnce moves the slot of a key to another primary, by the server's own means: its keys are copied
// while calls go on, and change hands in one step. It takes a server that MovesAtOnce.
func (c *Cluster) MoveAtOnce(key string, to *Server) error {
	from := c.Owner(key)
	if from == nil || from == to {
		return fmt.Errorf("redistest: the slot of %q is not there to be moved", key)
	}
	slot := itoa(SlotOf(key))
	at, start := from, []string{"CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", c.ids[to]}
	status, done := []string{"CLUSTER", "GETSLOTMIGRATIONS"}, "success"
	if strings.HasPrefix(Version(), "Redis") {
		at, start = to, []string{"CLUSTER", "MIGRATION", "IMPORT", slot, slot}
		status, done = []string{"CLUSTER", "MIGRATION", "STATUS", "ID"}, "completed"
	}
	task, err := at.Do(start...).ToString()
	if err != nil {
		return err
	}
	if task != "OK" {
		status = append(status, task)
	}
	state := ""
	err = within(time.Minute, "the slot is not moved", func() bool {
		state = newestMigration(at.Do(status...))
		return state == done && c.Owner(key) == to || state == "failed" || strings.HasPrefix(state, "cancel")
	})
	if err == nil && state != done {
		err = fmt.Errorf("redistest: the move of the slot ended as %q", state)
	}
	return err
}

// newestMigration is the state of the first one listed.
func newestMigration(reply rueidis.RedisResult) string {
	list, err := reply.ToArray()
	if err != nil || len(list) == 0 {
		return ""
	}
	fields, err := list[0].AsMap()
	if err != nil {
		return ""
	}
	field := fields["state"]
	state, _ := field.ToString()
	return state
}

// Settle returns when each primary has its replicas, in sync, and all nodes say that all is well.
func (c *Cluster) Settle() error {
	return within(time.Minute, "the cluster does not settle", func() bool {
		primaries, replicas := 0, 0
		for _, s := range c.Servers {
			role, synced := s.Role()
			switch {
			case role == "master":
				primaries++
			case role == "slave" && synced:
				replicas++
			}
			info, err := s.Do("CLUSTER", "INFO").ToString()
			if err != nil || !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_slots_ok:16384") ||
				!strings.Contains(info, "cluster_known_nodes:"+itoa(len(c.Servers))) {
				return false
			}
		}
		return primaries+replicas == len(c.Servers) && replicas == c.replicas*(len(c.Servers)/(1+c.replicas))
	})
}

// Stop ends all servers and removes their folders.
func (c *Cluster) Stop() error { return stopAll(c.Servers) }
