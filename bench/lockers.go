package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// locker is one client of a kind of lock, as a process has it: with connections of its own.
type locker interface {
	// lock waits for the lock of that name and returns what gives it back, also when ctx has ended.
	lock(ctx context.Context, name string) (unlock func() error, err error)
	close()
}

// peer is a kind of lock that is compared.
type peer struct {
	name string
	note string // how it is used
	open func(t target) (locker, error)
	// modules are those whose version tells which one it is.
	modules string
	// polls: waits by asking again and again.
	polls bool
	// ring: no lock, but the limit; its clients are opened by openRing.
	ring bool
}

const oursName = "redislock"

// peers are used as their users use them: with their defaults, and with the setting that serves
// waiters best.
var peers = []peer{
	{name: oursName, note: "this library, defaults", open: openOurs, modules: "github.com/redis/rueidis"},
	{name: "redsync", note: "v4.18.1 on go-redis, defaults: retries every 50 to 250 ms", open: openRedsync, modules: "github.com/go-redsync/redsync/v4 github.com/redis/go-redis/v9", polls: true},
	{name: "redsync 1ms", note: "retries every ms", open: openRedsyncFast, polls: true},
	{name: "bsm", note: "bsm/redislock v0.9.4 on go-redis, as in its README: retries every 100 ms", open: openBSM, modules: "github.com/bsm/redislock github.com/redis/go-redis/v9", polls: true},
	{name: "bsm 1ms", note: "retries every ms", open: openBSMFast, polls: true},
	{name: "rueidislock", note: "of rueidis v1.0.79, defaults: two of three keys, woken by client-side caching", open: openMajority},
	{name: "rueidislock 1 key", note: "KeyMajority 1 and NoLoopTracking, for one server", open: openOneKey, modules: "github.com/redis/rueidis"},
	{name: ringName, note: "no lock: RPUSH to the next one's list, then BLPOP on one's own, two calls", ring: true},
	{name: pipedRingName, note: "the same in one write: the limit of two commands", ring: true},
	{name: threeRingName, note: "no lock, with the calls of ours: FCALL, BLPOP, FCALL: the limit of three", ring: true},
	{name: twentyRingName, note: "that, and in the functions the 20 commands that ours run, with no thought in between", ring: true},
}

// client is a locker of which is seen when it sends.
type client struct {
	locker
	asked *atomic.Int64 // see target
}

// openAll returns n clients of a kind.
func (p peer) openAll(t target, n int) ([]client, error) {
	clients := make([]client, 0, n)
	for i := range n {
		t.asked = new(atomic.Int64)
		var l locker
		var err error
		if p.ring {
			l, err = openRing(t, i, n, p.name)
		} else {
			l, err = p.open(t)
		}
		if err != nil {
			closeAll(clients)
			return nil, err
		}
		clients = append(clients, client{l, t.asked})
	}
	return clients, nil
}

func closeAll(clients []client) {
	for _, c := range clients {
		c.close()
	}
}

// target is a server, and what is seen of the clients' commands. The PINGs by which rueidis looks
// after idle connections do not count.
type target struct {
	url  string
	addr string // dialled in place of the URL's, if there is one
	sent *atomic.Int64
	// blocked are those of them that are BLPOP.
	blocked *atomic.Int64
	// asked is when one client sent its first command since this was 0, in ns since processStart.
	// BLPOP does not count: our library sends one for the next signals whenever one came.
	asked *atomic.Int64
}

var processStart = time.Now()

func newTarget(url string) target {
	return target{url: url, sent: new(atomic.Int64), blocked: new(atomic.Int64), asked: new(atomic.Int64)}
}

// counted is the same server with counts of its own.
func (t target) counted() target {
	t.sent, t.blocked, t.asked = new(atomic.Int64), new(atomic.Int64), new(atomic.Int64)
	return t
}

// via is the same server behind a proxy.
func (t target) via(addr string) target {
	t.addr = addr
	return t
}

func (t target) dial(ctx context.Context, d *net.Dialer, addr string) (net.Conn, error) {
	if t.addr != "" {
		addr = t.addr
	}
	network := "tcp"
	if strings.HasPrefix(t.url, "unix:") {
		network = "unix"
	}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &countingConn{Conn: conn, t: t}, nil
}

// rueidis returns a client with the defaults but for the buffers: hundreds of clients in one
// process would take gigabytes.
func (t target) rueidis(change ...func(*rueidis.ClientOption)) (rueidis.Client, error) {
	o, err := rueidis.ParseURL(t.url)
	if err != nil {
		return nil, err
	}
	o.ReadBufferEachConn, o.WriteBufferEachConn = 16<<10, 16<<10
	o.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
		return t.dial(ctx, d, addr)
	}
	for _, c := range change {
		c(&o)
	}
	return rueidis.NewClient(o)
}

func (t target) goRedis() (*goredis.Client, error) {
	o, err := goredis.ParseURL(t.url)
	if err != nil {
		return nil, err
	}
	o.Dialer = func(ctx context.Context, _, addr string) (net.Conn, error) {
		return t.dial(ctx, &net.Dialer{Timeout: o.DialTimeout}, addr)
	}
	return goredis.NewClient(o), nil
}

// countingConn counts the commands that leave the client. The server's own counters cannot tell
// them from those that scripts and functions run inside (Redis 7: total_commands_processed and
// commandstats have both).
type countingConn struct {
	net.Conn
	t        target
	commands commandFinder
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.commands.find(b, func(name []byte) {
		if bytes.EqualFold(name, []byte("PING")) {
			return
		}
		c.t.sent.Add(1)
		if bytes.EqualFold(name, []byte("BLPOP")) {
			c.t.blocked.Add(1)
		} else if c.t.asked.Load() == 0 {
			c.t.asked.CompareAndSwap(0, int64(time.Since(processStart)))
		}
	})
	return c.Conn.Write(b)
}

// commandFinder finds the commands in a stream of RESP arrays, however it is cut into pieces.
type commandFinder struct {
	line []byte // the beginning of a header, or of the name of a command
	name bool   // the argument that comes is a name
	skip int    // what is left of the argument
}

// find calls seen for each command whose name ends in b.
func (c *commandFinder) find(b []byte, seen func(name []byte)) {
	for len(b) > 0 {
		if c.skip > 0 {
			k := min(c.skip, len(b))
			if c.name {
				c.line = append(c.line, b[:k]...)
			}
			c.skip -= k
			b = b[k:]
			if c.skip == 0 && c.name {
				seen(c.line)
				c.line, c.name = c.line[:0], false
			}
			continue
		}
		head, rest, whole := bytes.Cut(b, []byte{'\n'})
		c.line = append(c.line, head...)
		if !whole {
			return
		}
		if line := string(c.line); strings.HasPrefix(line, "*") {
			c.name = true
		} else if size, found := strings.CutPrefix(strings.TrimSpace(line), "$"); found {
			c.skip, _ = strconv.Atoi(size)
		}
		c.line, b = c.line[:0], rest
	}
}
