package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"strconv"
	"strings"
	"sync/atomic"

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
	ring bool // no lock, but the limit; its clients are opened by openRing
}

const oursName = "redislock"

// peers are used as their users use them: with their defaults, and with the setting that serves
// waiters best.
var peers = []peer{
	{name: oursName, note: "this library, defaults", open: openOurs},
	{name: "redsync", note: "v4.18.1 on go-redis, defaults: retries every 50 to 250 ms", open: openRedsync},
	{name: "redsync 1ms", note: "retries every ms", open: openRedsyncFast},
	{name: "bsm", note: "bsm/redislock v0.9.4 on go-redis, as in its README: retries every 100 ms", open: openBSM},
	{name: "bsm 1ms", note: "retries every ms", open: openBSMFast},
	{name: "rueidislock*", note: "the algorithm of rueidislock, one key, NOLOOP: SET NX, woken by client-side caching", open: openCaching},
	{name: "python*", note: "the algorithm of python-redis-lock: SET NX, BLPOP on one list for all", open: openPython},
	{name: ringName, note: "no lock: RPUSH to the next one's list, then BLPOP on one's own, two calls", ring: true},
	{name: pipedRingName, note: "the same in one write: the limit", ring: true},
}

// openAll returns n clients of a kind.
func (p peer) openAll(t target, n int) ([]locker, error) {
	if p.ring {
		return openRing(t, n, p.name == pipedRingName)
	}
	lockers := make([]locker, 0, n)
	for range n {
		l, err := p.open(t)
		if err != nil {
			closeAll(lockers)
			return nil, err
		}
		lockers = append(lockers, l)
	}
	return lockers, nil
}

func closeAll(lockers []locker) {
	for _, l := range lockers {
		l.close()
	}
}

// target is a server, and a count of the commands that clients have sent to it, but for the PINGs
// by which rueidis looks after idle connections.
type target struct {
	url  string
	addr string // dialled in place of the URL's, if there is one
	sent *atomic.Int64
}

func newTarget(url string) target { return target{url: url, sent: new(atomic.Int64)} }

// counted is the same server with a count of its own.
func (t target) counted() target {
	t.sent = new(atomic.Int64)
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
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &countingConn{Conn: conn, sent: t.sent}, nil
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
	sent     *atomic.Int64
	commands commandCounter
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.sent.Add(c.commands.count(b))
	return c.Conn.Write(b)
}

// commandCounter finds the commands in a stream of RESP arrays, however it is cut into pieces.
type commandCounter struct {
	line []byte // the beginning of a header, or of the name of a command
	name bool   // the argument that comes is a name
	skip int    // what is left of the argument and its end
}

// count returns how many commands other than PING end their name in b.
func (c *commandCounter) count(b []byte) (n int64) {
	for len(b) > 0 {
		if c.skip > 0 {
			k := min(c.skip, len(b))
			if c.name {
				c.line = append(c.line, b[:k]...)
			}
			c.skip -= k
			b = b[k:]
			if c.skip == 0 && c.name {
				if string(c.line) != "PING\r\n" {
					n++
				}
				c.line, c.name = c.line[:0], false
			}
			continue
		}
		head, rest, whole := bytes.Cut(b, []byte{'\n'})
		c.line = append(c.line, head...)
		if !whole {
			return n
		}
		if line := string(c.line); strings.HasPrefix(line, "*") {
			c.name = true
		} else if size, found := strings.CutPrefix(strings.TrimSpace(line), "$"); found {
			c.skip, _ = strconv.Atoi(size)
			c.skip += len("\r\n")
		}
		c.line, b = c.line[:0], rest
	}
	return n
}
