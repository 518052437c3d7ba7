package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/redis/rueidis"
)

const (
	scanCount = 500             // keys per SCAN: it holds the server for half a millisecond
	pipeline  = 20              // locks read in one round trip
	lockCost  = 10              // a listed waiter costs 1/lockCost of a lock
	callLimit = 5 * time.Second // limits a refresh, or another call, to a silent server
)

// Lock is one lock as the server last showed it. Times are milliseconds.
type Lock struct {
	Name    string `json:"name"`
	Mode    string `json:"mode"`            // alone, shared, or "" if nobody holds it
	Count   int64  `json:"held"`            // how many hold it
	Owner   string `json:"owner"`           // the readable part of the token, "" if nobody holds it; of several, that of the longest lease
	Token   string `json:"token,omitempty"` // of the holder; printed on request
	Held    int64  `json:"held_ms"`         // -1: not known, or nobody
	Left    int64  `json:"lease_left_ms"`   // -1: never expires, -2: nobody holds it
	Waiting int64  `json:"waiting"`         //
	Longest int64  `json:"longest_wait_ms"` // how long the first in the queue has waited
	Fence   int64  `json:"fence"`           //
	Error   string `json:"error,omitempty"` // why it could not be read; then the rest is older

	tagged  string   // the name with its hash tag: the end of its keys
	holders []Holder // the first 1,000
}

const (
	modeAlone  = "alone"
	modeShared = "shared"
)

// Holder is one holder of a lock.
type Holder struct {
	Owner string `json:"owner"`
	Token string `json:"token,omitempty"`
	Left  int64  `json:"lease_left_ms"` // -1: never expires
}

func (l *Lock) busy() bool { return l.Token != "" || l.Waiting > 0 }

// Waiter is one place in a queue.
type Waiter struct {
	Owner    string `json:"owner"`
	Token    string `json:"token,omitempty"`
	Waited   int64  `json:"waited_ms"`
	LapsesIn int64  `json:"lapses_in_ms"` // unless it calls before
	Lease    int64  `json:"lease_ms"`     // that it asked for; 0: never expires
	Holders  int64  `json:"holders"`      // how many may share the lock, itself included; 0: any number
}

// Snapshot is the result of one refresh.
type Snapshot struct {
	Time     time.Time `json:"time"`
	Complete bool      `json:"complete"` // every key was seen at least once, and every lock was read
	Looked   int       `json:"keys_looked_at"`
	Errors   []string  `json:"errors,omitempty"`
	Locks    []Lock    `json:"locks"`
}

// collector finds the locks and reads them, at a bounded rate. It needs no right to write.
//
// A refresh makes at most scans*seconds SCANs on each primary. They go on where the last refresh ended.
// It reads at most reads*seconds of the known locks, the longest unread first. A long queue costs the
// server more than a short one, so lockCost listed waiters count as one more lock.
type collector struct {
	client       rueidis.Client
	prefix       string
	scans, reads int  // a second and primary
	tokens       bool // are shown
	limit        time.Duration
	nodes        map[string]*node
	round        int
}

func newCollector(client rueidis.Client, prefix string, scans, reads int) *collector {
	return &collector{client: client, prefix: prefix, scans: scans, reads: reads, limit: callLimit, nodes: map[string]*node{}}
}

// node is one primary.
type node struct {
	replica bool // forget it
	cursor  uint64
	pass    int // through all its keys
	looked  int // keys in this pass
	done    int // keys in the first pass, 0 until it has ended
	known   map[string]*entry
	err     error
}

// entry is a lock that SCAN has found. The collector forgets a free lock that a whole pass did not find.
type entry struct {
	Lock
	pass   int // that found it
	round  int // that read it; 0: not read yet
	listed int // waiters, at the last read
}

// refresh makes the calls that this time allows.
func (c *collector) refresh(ctx context.Context, span time.Duration) Snapshot {
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	c.round++
	clients := c.client.Nodes()
	maps.DeleteFunc(c.nodes, func(addr string, _ *node) bool { return clients[addr] == nil })
	var wg sync.WaitGroup
	for addr, client := range clients {
		n := c.nodes[addr]
		if n == nil {
			n = &node{known: map[string]*entry{}}
			c.nodes[addr] = n
		}
		wg.Go(func() {
			if n.replica = len(clients) > 1 && isReplica(ctx, client); n.replica {
				return
			}
			n.err = errors.Join(c.scan(ctx, client, n, budget(c.scans, span)), c.readAll(ctx, n, budget(c.reads, span)))
		})
	}
	wg.Wait()
	maps.DeleteFunc(c.nodes, func(_ string, n *node) bool { return n.replica })
	return c.snapshot()
}

func budget(rate int, span time.Duration) int {
	return max(1, int(float64(rate)*span.Seconds()))
}

// isReplica is false for a user without the right to ask. Then replicas are scanned, too, and show the
// same locks.
func isReplica(ctx context.Context, client rueidis.Client) bool {
	role, err := client.Do(ctx, client.B().Arbitrary("ROLE").Build()).ToArray()
	if err != nil || len(role) == 0 {
		return false
	}
	name, _ := role[0].ToString()
	return name == "slave"
}

// scan looks at the next keys of a primary, at most to the end of a pass.
func (c *collector) scan(ctx context.Context, client rueidis.Client, n *node, calls int) error {
	pattern := globEscape(c.prefix) + "[-:]*" // lock:{NAME}, lock-queue:{NAME} and so on; [:-] would be a range
	for range calls {
		page, err := client.Do(ctx, client.B().Scan().Cursor(n.cursor).Match(pattern).Count(scanCount).Build()).AsScanEntry()
		if err != nil {
			return fmt.Errorf("SCAN: %w", err)
		}
		n.looked += scanCount
		for _, key := range page.Elements {
			tagged, ok := lockOf(c.prefix, key)
			if !ok {
				continue
			}
			if n.known[tagged] == nil {
				n.known[tagged] = &entry{Lock: Lock{Name: nameOf(tagged), tagged: tagged}}
			}
			n.known[tagged].pass = n.pass
		}
		if n.cursor = page.Cursor; n.cursor == 0 {
			maps.DeleteFunc(n.known, func(_ string, e *entry) bool {
				return e.pass != n.pass && (!e.busy() || e.Error != "")
			})
			n.done, n.looked = n.looked, 0
			n.pass++
			return nil
		}
	}
	return nil
}

// readAll reads the known locks of a primary, the longest unread first.
func (c *collector) readAll(ctx context.Context, n *node, locks int) error {
	todo := slices.SortedFunc(maps.Values(n.known), func(a, b *entry) int { return a.round - b.round })
	left := locks * lockCost
	var failed error
	for len(todo) > 0 && left > 0 {
		size := 0
		for cost := 0; size < min(pipeline, len(todo)) && cost < left; size++ {
			cost += lockCost + todo[size].listed
		}
		chunk := todo[:size]
		todo = todo[size:]
		commands := make(rueidis.Commands, len(chunk))
		for i, e := range chunk {
			commands[i] = c.inspect(e.tagged)
		}
		for i, result := range c.client.DoMulti(ctx, commands...) {
			e := chunk[i]
			lock, waiters, err := parse(e.tagged, result)
			if err != nil {
				e.Error = err.Error()
				failed = err
			} else {
				e.Lock = lock
			}
			e.round, e.listed = c.round, len(waiters)
			left -= lockCost + e.listed
		}
		if ctx.Err() != nil {
			break
		}
	}
	return failed
}

// read reads one lock, with the first 1,000 of its queue.
func (c *collector) read(ctx context.Context, tagged string) (Lock, []Waiter, error) {
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	return parse(tagged, c.client.Do(ctx, c.inspect(tagged)))
}

func (c *collector) keys(tagged string) []string {
	return []string{c.prefix + ":" + tagged, c.prefix + "-queue:" + tagged, c.prefix + "-state:" + tagged}
}

func (c *collector) inspect(tagged string) rueidis.Completed {
	return c.client.B().FcallRo().Function("lock_inspect").Numkeys(3).Key(c.keys(tagged)...).Build()
}

// reset takes a lock away from this holder. It calls lock_release, because lock_reset would take the lock
// from a new holder that got it while the user read the question. False: this holder had lost it already.
func (c *collector) reset(ctx context.Context, tagged, holder string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	reply, err := c.client.Do(ctx, c.client.B().Fcall().Function("lock_release").Numkeys(3).
		Key(c.keys(tagged)...).Arg(holder).Build()).AsInt64()
	return reply == 1, err
}

func parse(tagged string, result rueidis.RedisResult) (Lock, []Waiter, error) {
	lock := Lock{Name: nameOf(tagged), Held: -1, tagged: tagged}
	fields, err := result.AsMap()
	if err != nil {
		return lock, nil, err
	}
	number := func(m rueidis.RedisMessage) int64 {
		n, failed := m.AsInt64()
		err = errors.Join(err, failed)
		return n
	}
	text := func(m rueidis.RedisMessage) string {
		s, failed := m.ToString()
		err = errors.Join(err, failed)
		return s
	}
	list := func(m rueidis.RedisMessage) []rueidis.RedisMessage {
		l, failed := m.ToArray()
		err = errors.Join(err, failed)
		return l
	}
	lock.Token = text(fields["holder"])
	lock.Owner = ownerOf(lock.Token)
	lock.Left = number(fields["ttl_ms"])
	lock.Waiting = number(fields["waiting"])
	lock.Fence = number(fields["fence"])
	// A fencing token is the time of its grant in microseconds, unless the last one was later (the
	// server's clock was set back): then the hold looks shorter than it is.
	if lock.Token != "" && lock.Fence > 0 {
		lock.Held = max(0, number(fields["now_ms"])-lock.Fence/1000)
	}
	if lock.Token != "" {
		lock.Mode, lock.Count = modeAlone, 1
		lock.holders = []Holder{{lock.Owner, lock.Token, lock.Left}}
	}
	if together, ok := fields["holders"]; ok {
		lock.Count = number(fields["held"])
		for i, m := range list(together) {
			f := list(m)
			if len(f) < 2 {
				return lock, nil, errors.New("lock_inspect: not a reply of this library")
			}
			if i == 0 {
				lock.Mode, lock.holders = modeShared, nil
			}
			lock.holders = append(lock.holders, Holder{ownerOf(text(f[0])), text(f[0]), number(f[1])})
		}
	}
	var waiters []Waiter
	for _, m := range list(fields["waiters"]) {
		f := list(m)
		if len(f) < 4 {
			return lock, nil, errors.New("lock_inspect: not a reply of this library")
		}
		w := Waiter{ownerOf(text(f[0])), text(f[0]), number(f[1]), number(f[2]), number(f[3]), 1}
		if len(f) > 5 { // not from a library before 1.1.0
			w.Holders = number(f[5])
		}
		waiters = append(waiters, w)
	}
	if len(waiters) > 0 {
		lock.Longest = waiters[0].Waited
	}
	if err != nil {
		err = fmt.Errorf("lock_inspect: not a reply of this library: %w", err)
	}
	return lock, waiters, err
}

// snapshot returns all known locks that somebody holds or waits for.
func (c *collector) snapshot() Snapshot {
	s := Snapshot{Time: time.Now(), Complete: len(c.nodes) > 0, Locks: []Lock{}}
	at := map[string]int{} // a moved lock is on two primaries for a while
	rounds := map[string]int{}
	for addr, n := range c.nodes {
		s.Looked += max(n.done, n.looked)
		s.Complete = s.Complete && n.pass > 0
		if n.err != nil {
			s.Errors = append(s.Errors, addr+": "+oneLine(n.err))
		}
		for tagged, e := range n.known {
			s.Complete = s.Complete && e.round > 0
			i, twice := at[tagged]
			switch {
			case e.round == 0, !e.busy() && e.Error == "":
			case !twice:
				at[tagged], rounds[tagged] = len(s.Locks), e.round
				s.Locks = append(s.Locks, e.Lock)
			case e.round > rounds[tagged]:
				s.Locks[i], rounds[tagged] = e.Lock, e.round
			}
		}
	}
	slices.Sort(s.Errors)
	return s
}

// lockOf returns the tagged name if the key is that of a lock or of its queue. It ignores the state's key:
// that outlives the last user by ten minutes, and there may be many.
func lockOf(prefix, key string) (tagged string, ok bool) {
	tagged, ok = strings.CutPrefix(key, prefix+":")
	if !ok {
		tagged, ok = strings.CutPrefix(key, prefix+"-queue:")
	}
	return tagged, ok && hasTag(tagged) && tagged[0] != '}'
}

// nameOf is the name as people type it: {orders} is orders, order:{42} has a tag of its own.
func nameOf(tagged string) string {
	inner := tagged[1 : len(tagged)-1]
	if tagged == "{"+inner+"}" && !strings.ContainsAny(inner, "{}") {
		return inner
	}
	return tagged
}

// taggedOf is the inverse of nameOf.
func taggedOf(name string) string {
	if hasTag(name) {
		return name
	}
	return "{" + name + "}"
}

// ownerOf is the label at the beginning of a token. The secret part follows the last colon.
func ownerOf(token string) string {
	i := strings.LastIndexByte(token, ':')
	if i <= 0 {
		return ""
	}
	return token[:i]
}

// hasTag tells whether Redis hashes only a part of the key: the text between its first '{' and the next
// '}', if that is not empty.
func hasTag(key string) bool {
	_, rest, _ := strings.Cut(key, "{")
	return strings.IndexByte(rest, '}') > 0
}

// globEscape makes SCAN take a prefix literally.
func globEscape(prefix string) string {
	var b strings.Builder
	for i := range len(prefix) {
		if strings.IndexByte(`*?[]\^-`, prefix[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(prefix[i])
	}
	return b.String()
}

// quote makes unprintable and ambiguous characters visible.
func quote(s string) string {
	plain := utf8.ValidString(s) && s == strings.TrimSpace(s) && !strings.HasPrefix(s, `"`)
	for _, r := range s {
		plain = plain && unicode.IsPrint(r)
	}
	if plain {
		return s
	}
	return fmt.Sprintf("%q", s)
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
