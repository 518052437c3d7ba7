package main

import (
	"net"
	"net/rpc"
	"sync"
)

// register is what the locks protect: one number for each lock. A client reads it, works, and
// writes the number plus one. It refuses a fencing token older than the newest that it has seen, for
// reads, too: a newer holder has begun.
type register struct {
	h  *history
	ln net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex
	cells map[string]*cell
	conns map[net.Conn]struct{}
}

type cell struct {
	fence    int64
	value    int64
	writer   string
	accepted int64
}

// registerEvent is one answer of the register.
type registerEvent struct {
	t       int64
	op      string
	name    string
	fence   int64
	write   bool
	refused bool
	base    int64 // write: what the writer had read
	value   int64 // before
	newest  int64 // the newest token it had seen
	last    string
}

// Ask is a call to the register, Base what was read before if Write. Fence 0 is a client without
// fencing tokens, who is always let in.
type Ask struct {
	Op, Name string
	Fence    int64
	Write    bool
	Base     int64
}

// Answer of the register.
type Answer struct {
	Refused bool
	Value   int64
}

func newRegister(h *history) (*register, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &register{h: h, ln: ln, cells: map[string]*cell{}, conns: map[net.Conn]struct{}{}}
	server := rpc.NewServer()
	if err := server.RegisterName("Register", &registerCalls{r}); err != nil {
		return nil, err
	}
	r.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.conns[conn] = struct{}{}
			r.mu.Unlock()
			r.wg.Go(func() { server.ServeConn(conn) })
		}
	})
	return r, nil
}

func (r *register) addr() string { return r.ln.Addr().String() }

func (r *register) close() {
	_ = r.ln.Close()
	r.mu.Lock()
	for conn := range r.conns {
		_ = conn.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// registerCalls is what clients can call.
type registerCalls struct{ r *register }

// Do reads or writes.
func (c *registerCalls) Do(ask Ask, answer *Answer) error {
	r := c.r
	r.mu.Lock()
	defer r.mu.Unlock()
	cl := r.cells[ask.Name]
	if cl == nil {
		cl = &cell{}
		r.cells[ask.Name] = cl
	}
	e := registerEvent{
		t: mono(), op: ask.Op, name: ask.Name, fence: ask.Fence, write: ask.Write,
		base: ask.Base, value: cl.value, newest: cl.fence, last: cl.writer,
		refused: ask.Fence != 0 && ask.Fence < cl.fence,
	}
	if !e.refused {
		cl.fence = max(cl.fence, ask.Fence)
		if ask.Write {
			cl.value = ask.Base + 1
			cl.writer = ask.Op
			cl.accepted++
		}
	}
	r.h.addRegister(e)
	answer.Refused, answer.Value = e.refused, cl.value
	return nil
}
