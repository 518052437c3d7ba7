package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

const patience = 10 * time.Second

// echo answers every byte with itself and tells what it read.
func echo(t *testing.T) (addr string, seen <-chan string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	got := make(chan string, 1000)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				buf := make([]byte, 4096)
				for {
					n, err := conn.Read(buf)
					if err != nil {
						return
					}
					got <- string(buf[:n])
					_, _ = conn.Write(buf[:n])
				}
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String(), got
}

func setup(t *testing.T) (*Proxy, <-chan string) {
	addr, seen := echo(t)
	p, err := New(addr)
	must(t, err)
	t.Cleanup(p.Close) // before the echo server's, whose links it ends
	return p, seen
}

func dial(t *testing.T, p *Proxy) net.Conn {
	conn, err := net.Dial("tcp", p.Addr())
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	_, err := io.WriteString(conn, text)
	must(t, err)
}

func expect(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	buf := make([]byte, len(text))
	_, err := io.ReadFull(conn, buf)
	must(t, err)
	if string(buf) != text {
		t.Fatalf("got %q, want %q", buf, text)
	}
}

// expectEnd takes a reset for an end, but not a time-out, and nothing that could be read.
func expectEnd(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the link is not closed: read %d bytes, %v", n, err)
	}
}

func TestForwardsAndCuts(t *testing.T) {
	p, _ := setup(t)
	a, b := dial(t, p), dial(t, p)
	for _, conn := range []net.Conn{a, b} {
		send(t, conn, "hello")
		expect(t, conn, "hello")
	}
	p.CutAll()
	expectEnd(t, a)
	expectEnd(t, b)
	c := dial(t, p)
	send(t, c, "again")
	expect(t, c, "again")
}

func TestSetTarget(t *testing.T) {
	p, first := setup(t)
	addr, second := echo(t)
	t.Cleanup(p.Close)
	old := dial(t, p)
	send(t, old, "1")
	expect(t, old, "1")
	p.SetTarget(addr)
	after := dial(t, p)
	send(t, after, "2")
	expect(t, after, "2")
	send(t, old, "3")
	expect(t, old, "3")
	if a, b, c := <-first, <-second, <-first; a != "1" || b != "2" || c != "3" {
		t.Fatalf("the servers saw %q, %q, %q", a, b, c)
	}
}

func TestClientEndArrivesAfterItsBytes(t *testing.T) {
	p, _ := setup(t)
	conn := dial(t, p)
	p.SetDelay(10 * time.Millisecond)
	send(t, conn, "last words")
	must(t, conn.(*net.TCPConn).CloseWrite())
	all, err := io.ReadAll(conn)
	must(t, err)
	if string(all) != "last words" {
		t.Fatalf("got %q", all)
	}
}

func TestBlackHole(t *testing.T) {
	p, seen := setup(t)
	old := dial(t, p)
	send(t, old, "1")
	expect(t, old, "1")
	p.BlackHole(true)
	inside := dial(t, p)
	send(t, old, "2")
	send(t, inside, "3")
	must(t, old.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	if _, err := old.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a reply or an end came out of the hole: %v", err)
	}
	must(t, old.SetReadDeadline(time.Now().Add(patience)))
	p.BlackHole(false)
	expectEnd(t, old)
	after := dial(t, p)
	send(t, after, "4")
	expect(t, after, "4")
	if a, b := <-seen, <-seen; a != "1" || b != "4" {
		t.Fatalf("the server saw %q, %q", a, b)
	}
}

func TestDelayKeepsOrderAndPipelining(t *testing.T) {
	p, _ := setup(t)
	conn := dial(t, p)
	const d, n = 100 * time.Millisecond, 50
	p.SetDelay(d)
	begin := time.Now()
	var want bytes.Buffer
	for i := range n {
		send(t, conn, string(rune('A'+i)))
		want.WriteRune(rune('A' + i))
	}
	expect(t, conn, want.String())
	if took := time.Since(begin); took < 2*d || took > n*d/2 {
		t.Fatalf("%d round trips took %v", n, took)
	}
}

func TestDropReply(t *testing.T) {
	p, seen := setup(t)
	conn := dial(t, p)
	dropped := p.DropReply(func(b []byte) bool { return bytes.Contains(b, []byte("X")) })
	send(t, conn, "a")
	expect(t, conn, "a")
	select {
	case <-dropped:
		t.Fatal("dropped the reply to another request")
	default:
	}
	send(t, conn, "X")
	expectEnd(t, conn)
	select {
	case <-dropped:
	case <-time.After(patience):
		t.Fatal("the channel is not closed")
	}
	if a, b := <-seen, <-seen; a != "a" || b != "X" {
		t.Fatalf("the server saw %q, %q", a, b)
	}
	again := dial(t, p)
	send(t, again, "X")
	expect(t, again, "X")
}

func TestCloseLeavesNothing(t *testing.T) {
	addr, _ := echo(t)
	before := runtime.NumGoroutine()
	p, err := New(addr)
	must(t, err)
	p.SetDelay(time.Hour) // chunks in the queues
	var conns []net.Conn
	for range 20 {
		conn := dial(t, p)
		send(t, conn, "x")
		conns = append(conns, conn)
	}
	p.Close()
	p.Close()
	for _, conn := range conns {
		expectEnd(t, conn)
	}
	for begin := time.Now(); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Since(begin) > patience {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}
