package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// monitor follows MONITOR of one node until ctx ends: the effects of every call in the server's order, with its
// stamps. It takes only the library's own commands (the "lua" lines), so a replica that repeats its primary's
// writes adds nothing.
func monitor(ctx context.Context, h *history, addr string, peers map[string]bool, ready func()) {
	connected := false
	for ctx.Err() == nil {
		gap := func() {
			if connected {
				h.addServer(serverEvent{at: time.Now().UnixMicro(), node: addr, kind: srvGap})
			}
		}
		if follow(ctx, h, addr, peers, func() {
			gap()
			if !connected {
				connected = true
				ready()
			}
		}) {
			gap()
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// follow returns when the connection ends, and whether there was one.
func follow(ctx context.Context, h *history, addr string, peers map[string]bool, connected func()) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := io.WriteString(conn, "MONITOR\r\n"); err != nil {
		return false
	}
	r := bufio.NewReaderSize(conn, 256<<10)
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "+OK") {
		return false
	}
	connected()
	p := parser{h: h, addr: addr, peers: peers}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return true
		}
		p.line(line)
	}
}

// parser knows the current call, to which the lines of the library belong.
type parser struct {
	h      *history
	addr   string
	peers  map[string]bool // the addresses of all data nodes
	fn     string
	caller string
	begun  int64
	shared bool // this call wrote into the set of the co-holders: its PEXPIRE is for all of them
}

func (p *parser) line(line string) {
	// +1795444325.851739 [0 127.0.0.1:59776] "FCALL" "lock_acquire" ...
	stamp, rest, ok := strings.Cut(strings.TrimPrefix(line, "+"), " [")
	if !ok {
		return
	}
	from, rest, ok := strings.Cut(rest, "] ")
	if !ok {
		return
	}
	args := unquote(rest)
	seconds, micros, _ := strings.Cut(stamp, ".")
	s, _ := strconv.ParseInt(seconds, 10, 64)
	us, _ := strconv.ParseInt(micros, 10, 64)
	at := s*1_000_000 + us
	if len(args) < 2 {
		return
	}
	if !strings.HasSuffix(from, " lua") {
		_, peer, _ := strings.Cut(from, " ")
		p.topLevel(at, args, p.peers[peer])
		return
	}
	e := serverEvent{at: at, begun: p.begun, node: p.addr, fn: p.fn, caller: p.caller}
	key := args[1]
	e.name = nameOf(key)
	switch command := strings.ToUpper(args[0]); {
	case e.name == "":
		return
	case command == "SET" && len(args) >= 3 && strings.HasPrefix(key, "lock:"):
		e.kind, e.token = srvGrant, args[2]
		if len(args) >= 5 {
			e.number, _ = strconv.ParseInt(args[4], 10, 64)
		}
	case command == "PEXPIRE" && len(args) == 3 && strings.HasPrefix(key, "lock:") && !p.shared:
		e.kind, e.token = srvRenew, p.caller
		e.number, _ = strconv.ParseInt(args[2], 10, 64)
	case command == "ZADD" && len(args) == 4 && strings.HasPrefix(key, "lock:"):
		p.shared = true
		e.kind, e.token = srvShare, args[3]
		ends, _ := strconv.ParseInt(args[2], 10, 64)
		e.number = ends - p.begun/1000
	case command == "ZREM" && strings.HasPrefix(key, "lock:"):
		p.shared = true
		for _, token := range args[2:] {
			left := e
			left.kind, left.token = srvLeave, token
			p.h.addServer(left)
		}
		return
	case command == "ZADD" && len(args) == 5:
		e.kind, e.token = srvEnqueue, args[4]
	case command == "HDEL":
		for _, field := range args[2:] {
			gone := e
			gone.kind, gone.token = srvGone, strings.TrimPrefix(field, "@")
			p.h.addServer(gone)
		}
		return
	case (command == "UNLINK" || command == "DEL") && strings.HasPrefix(key, "lock:"):
		e.kind = srvFree
	case command == "HSET" && len(args) == 4 && args[2] == "fence":
		e.kind = srvFence
		e.number, _ = strconv.ParseInt(strings.TrimSuffix(args[3], " shared"), 10, 64)
	default:
		return
	}
	p.h.addServer(e)
}

// topLevel is a command outside the library. Replicas repeat the commands of their primary.
func (p *parser) topLevel(at int64, args []string, repeated bool) {
	p.fn, p.caller, p.begun, p.shared = "", "", at, false
	switch strings.ToUpper(args[0]) {
	case "FCALL", "EVAL", "EVALSHA":
		keys := 0
		if len(args) > 2 {
			keys, _ = strconv.Atoi(args[2])
		}
		p.fn = args[1]
		if len(args) > 3+keys {
			p.caller = args[3+keys]
		}
	case "DEL", "UNLINK":
		if repeated {
			return
		}
		for _, key := range args[1:] {
			if name := nameOf(key); name != "" {
				p.h.addServer(serverEvent{at: at, node: p.addr, kind: srvDelete, name: name, token: keyKind(key)})
			}
		}
	}
}

// nameOf is the lock that a key belongs to, "" if none.
func nameOf(key string) string {
	if !strings.HasPrefix(key, "lock") {
		return ""
	}
	_, rest, ok := strings.Cut(key, "{")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "}")
	return name
}

func keyKind(key string) string {
	kind, _, _ := strings.Cut(key, ":")
	if kind == "lock" {
		return "lock"
	}
	return strings.TrimPrefix(kind, "lock-")
}

// unquote splits the quoted words of a MONITOR line. Ours have no escapes inside but \n of a script.
func unquote(s string) []string {
	var words []string
	for {
		i := strings.IndexByte(s, '"')
		if i < 0 {
			return words
		}
		s = s[i+1:]
		end := 0
		for end < len(s) && s[end] != '"' {
			if s[end] == '\\' {
				end++
			}
			end++
		}
		if end >= len(s) {
			return words
		}
		words = append(words, s[:end])
		s = s[end+1:]
	}
}

// watchers follow all nodes.
type watchers struct {
	wg      sync.WaitGroup
	pending []chan struct{}
}

func (w *watchers) watch(ctx context.Context, h *history, nodes []string) {
	peers := map[string]bool{}
	for _, addr := range nodes {
		peers[addr] = true
	}
	for _, addr := range nodes {
		first := make(chan struct{})
		w.pending = append(w.pending, first)
		w.wg.Go(func() { monitor(ctx, h, addr, peers, func() { close(first) }) })
	}
}

// ready waits until all are following.
func (w *watchers) ready() error {
	timeout := time.After(5 * time.Second)
	for _, first := range w.pending {
		select {
		case <-first:
		case <-timeout:
			return errors.New("MONITOR does not answer")
		}
	}
	return nil
}
