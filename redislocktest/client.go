package redislocktest

import (
	"context"
	"errors"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

// Client is a rueidis.Client for code that calls redislock.New itself. It knows no commands: B ends the
// test, and any other use fails it. Close does nothing.
type Client struct {
	server  *Server
	isAdmin bool
	killed  bool          // guarded by server.mu
	dead    chan struct{} // closed with killed
}

var (
	_ rueidis.Client = (*Client)(nil)
	_ wire.Provider  = (*Client)(nil)
)

// Client returns a client for redislock.New, as another process has it. Close that Locker before the test
// is over.
func (s *Server) Client() *Client { return &Client{server: s, dead: make(chan struct{})} }

// Kill is Server.Kill for the Locker with this client.
func (c *Client) Kill() {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if !c.killed {
		c.killed = true
		close(c.dead)
	}
}

// Wire is for redislock.New.
func (c *Client) Wire(prefix string) wire.Server {
	server := c.server.shared.Client(prefix, network{c})
	if c.isAdmin {
		c.server.seen.Server = server
		return c.server.seen
	}
	return server
}

var errOnlyLocks = errors.New("redislocktest: this client is only for redislock.New: it knows no commands")

func (c *Client) refuse() error {
	c.server.t.Helper()
	c.server.t.Errorf("%v", errOnlyLocks)
	return errOnlyLocks
}

func (c *Client) refuseAll(n int) []rueidis.RedisResult {
	c.server.t.Helper()
	err := c.refuse()
	results := make([]rueidis.RedisResult, n)
	for i := range results {
		results[i] = rueidis.NewErrorResult(err)
	}
	return results
}

// B ends the test.
func (c *Client) B() (none rueidis.Builder) {
	c.server.t.Helper()
	c.server.t.Fatalf("%v", errOnlyLocks)
	return none
}

// Do fails.
func (c *Client) Do(context.Context, rueidis.Completed) rueidis.RedisResult {
	return rueidis.NewErrorResult(c.refuse())
}

// DoMulti fails.
func (c *Client) DoMulti(_ context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	return c.refuseAll(len(multi))
}

// DoCache fails.
func (c *Client) DoCache(context.Context, rueidis.Cacheable, time.Duration) rueidis.RedisResult {
	return rueidis.NewErrorResult(c.refuse())
}

// DoMultiCache fails.
func (c *Client) DoMultiCache(_ context.Context, multi ...rueidis.CacheableTTL) []rueidis.RedisResult {
	return c.refuseAll(len(multi))
}

// DoStream fails.
func (c *Client) DoStream(context.Context, rueidis.Completed) rueidis.RedisResultStream {
	return rueidis.NewErrorResultStream(c.refuse())
}

// DoMultiStream fails.
func (c *Client) DoMultiStream(context.Context, ...rueidis.Completed) rueidis.MultiRedisResultStream {
	return rueidis.NewErrorResultStream(c.refuse())
}

// Receive fails.
func (c *Client) Receive(context.Context, rueidis.Completed, func(rueidis.PubSubMessage)) error {
	return c.refuse()
}

// Dedicated fails.
func (c *Client) Dedicated(func(rueidis.DedicatedClient) error) error { return c.refuse() }

// Dedicate fails, and there is no client.
func (c *Client) Dedicate() (rueidis.DedicatedClient, func()) {
	_ = c.refuse()
	return nil, func() {}
}

// Nodes returns none.
func (c *Client) Nodes() map[string]rueidis.Client { return nil }

// Mode returns rueidis.ClientModeStandalone.
func (c *Client) Mode() rueidis.ClientMode { return rueidis.ClientModeStandalone }

// Close does nothing.
func (c *Client) Close() {}
