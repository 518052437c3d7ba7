// Package proxy is a TCP proxy on loopback that breaks connections on demand, for fault tests.
package proxy

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// Proxy forwards every connection made to Addr. Its methods may be called from any goroutine.
type Proxy struct {
	ln     net.Listener
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	target string             // of new links
	links  map[*link]struct{} // nil once closed
	hole   bool
	delay  time.Duration
	trap   *trap
}

type trap struct {
	match  func([]byte) bool
	sprung chan struct{}
}

// New listens on a free port of 127.0.0.1 and forwards to target ("host:port").
func New(target string) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{ln: ln, target: target, links: map[*link]struct{}{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// Close ends the listener and all links and returns when no goroutine of the proxy is left.
func (p *Proxy) Close() {
	p.cancel()
	_ = p.ln.Close()
	p.mu.Lock()
	p.cut()
	p.links = nil
	p.mu.Unlock()
	p.wg.Wait()
}

// CutAll closes all present links.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
}

// BlackHole throws away whatever either side sends while it is on, the end of its stream included;
// new links are accepted. Switched off, it closes all links, as bytes are missing in them.
func (p *Proxy) BlackHole(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hole && !on {
		p.cut()
	}
	p.hole = on
}

// SetTarget has new links go to another server, as a DNS name does. The old ones stay where they are.
func (p *Proxy) SetTarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// SetDelay makes bytes that arrive from now on wait for d, in each direction. Order is kept, and
// bytes that arrive together leave together.
func (p *Proxy) SetDelay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// DropReply lies in wait for the first chunk from a client that match accepts (a chunk is what one
// read returned: often several pipelined commands). It goes to the server; what the server sends
// next never reaches the client, whose link is closed instead. The channel is closed once that has
// happened and the server, told that its client has gone, has closed its side too: by then a Redis
// has executed everything it was sent. Each call catches one chunk and replaces a call that is
// still waiting.
func (p *Proxy) DropReply(match func(request []byte) bool) <-chan struct{} {
	t := &trap{match, make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trap = t
	return t.sprung
}

func (p *Proxy) cut() {
	for l := range p.links {
		l.close()
	}
}

func (p *Proxy) accept() {
	for {
		conn, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(conn.(*net.TCPConn)) })
	}
}

func (p *Proxy) serve(client *net.TCPConn) {
	defer client.Close()
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	var d net.Dialer
	conn, err := d.DialContext(p.ctx, "tcp", target)
	if err != nil {
		return
	}
	l := &link{p: p, client: client, server: conn.(*net.TCPConn)}
	l.ctx, l.cancel = context.WithCancel(p.ctx)
	defer l.close()

	p.mu.Lock()
	if p.links == nil {
		p.mu.Unlock()
		return
	}
	p.links[l] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.links, l)
	}()
	l.run()
}

func (p *Proxy) isHole() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hole
}

// catch disarms and returns the trap if it matches.
func (p *Proxy) catch(request []byte) *trap {
	p.mu.Lock()
	t := p.trap
	p.mu.Unlock()
	if t == nil || !t.match(request) {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trap != t {
		return nil // another link was faster
	}
	p.trap = nil
	return t
}

// A link is one client's connection and the one to the server that belongs to it. It ends when the
// server's side ends; the end of the client's side is passed on, and the server ends in turn.
type link struct {
	p              *Proxy
	client, server *net.TCPConn
	ctx            context.Context
	cancel         context.CancelFunc

	mu     sync.Mutex
	caught *trap // its request is with the server
}

// A chunk with no data is the end of the stream.
type chunk struct {
	due  time.Time
	data []byte
}

func (l *link) close() {
	l.cancel()
	_ = l.client.Close()
	_ = l.server.Close()
}

func (l *link) run() {
	// The queues are long enough for a delay not to hold a sender back.
	requests, replies := make(chan chunk, 1024), make(chan chunk, 1024)
	var wg sync.WaitGroup
	wg.Go(func() { l.read(l.client, requests, nil) })
	wg.Go(func() { l.read(l.server, replies, l.dropReply) })
	wg.Go(func() {
		if l.write(requests, l.request) {
			_ = l.server.CloseWrite()
		}
	})
	wg.Go(func() {
		if l.write(replies, l.reply) {
			l.close()
		}
	})
	wg.Wait()
}

// read queues what src sends until it ends, or until stop says that a chunk is the last.
func (l *link) read(src *net.TCPConn, queue chan<- chunk, stop func() bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 && stop != nil && stop() {
			n, err = 0, io.EOF
		}
		l.p.mu.Lock()
		c := chunk{due: time.Now().Add(l.p.delay)}
		l.p.mu.Unlock()
		if n > 0 {
			c.data = append(c.data, buf[:n]...)
			if !l.push(queue, c) {
				return
			}
		}
		if err != nil {
			l.push(queue, chunk{due: c.due})
			return
		}
	}
}

func (l *link) push(queue chan<- chunk, c chunk) bool {
	select {
	case queue <- c:
		return true
	case <-l.ctx.Done():
		return false
	}
}

// write hands chunks to send when they are due. It returns true at the end of the stream, false if
// the link was closed.
func (l *link) write(queue <-chan chunk, send func([]byte)) bool {
	for {
		var c chunk
		select {
		case c = <-queue:
		case <-l.ctx.Done():
			return false
		}
		if wait := time.Until(c.due) - timersAreLate; wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-l.ctx.Done():
				timer.Stop()
				return false
			}
		}
		if wait := time.Until(c.due); wait > 0 {
			sleepExactly(wait)
		}
		switch {
		case l.p.isHole():
			// Nothing gets through, not even an end. BlackHole(false) closes the link before it
			// lets go, so nothing follows a gap either.
		case c.data == nil:
			return true
		default:
			send(c.data)
		}
	}
}

// A failed send needs no handling: the read on that side sees the end as well.

func (l *link) request(data []byte) {
	t := l.p.catch(data)
	if t == nil {
		_, _ = l.server.Write(data)
		return
	}
	// Under the lock, so that an earlier reply cannot spring the trap before the request is sent.
	l.mu.Lock()
	defer l.mu.Unlock()
	l.caught = t
	_, _ = l.server.Write(data)
}

func (l *link) reply(data []byte) { _, _ = l.client.Write(data) }

// dropReply does the rest of DropReply, if this link's request was caught.
func (l *link) dropReply() bool {
	l.mu.Lock()
	t := l.caught
	l.mu.Unlock()
	if t == nil {
		return false
	}
	// The server's side is closed in good order: a reset could make it lose a request that it has
	// not read yet, when the reply at hand was that of an earlier one.
	_ = l.client.Close()
	_ = l.server.CloseWrite()
	_, _ = io.Copy(io.Discard, l.server)
	close(t.sprung)
	return true
}
