package redistest

import (
	"bufio"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

func ask(s *Server, command string) (string, error) {
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(command + "\r\n")); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

func want(t *testing.T, s *Server, command, reply string) {
	t.Helper()
	if got, err := ask(s, command); got != reply || err != nil {
		t.Fatalf("%s: got %q, %v, want %q", command, got, err, reply)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLife(t *testing.T) {
	s, err := Start("--appendonly", "yes", "--appendfsync", "always")
	must(t, err)
	t.Cleanup(func() { _ = s.Stop() })
	first := s.PID()
	want(t, s, "SET k v", "+OK")

	must(t, s.Kill())
	must(t, s.Kill())
	if _, err := ask(s, "PING"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("killed, but: %v", err)
	}
	must(t, s.Restart())
	if s.PID() == first {
		t.Fatal("the same process")
	}
	want(t, s, "EXISTS k", ":1")

	must(t, s.Pause())
	must(t, s.Resume())
	want(t, s, "PING", "+PONG")
	must(t, s.Restart())
	want(t, s, "EXISTS k", ":1")

	must(t, s.Pause())
	must(t, s.Stop())
	must(t, s.Stop())
	if _, err := os.Stat(s.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the folder is still there: %v", err)
	}
	must(t, s.Restart())
	want(t, s, "EXISTS k", ":0")
}

func TestAPasswordIsNoFailure(t *testing.T) {
	s, err := Start("--requirepass", "secret", "--cluster-enabled", "yes")
	must(t, err)
	must(t, s.Stop())
}

func TestBadOption(t *testing.T) {
	if _, err := Start("--no-such-option", "1"); err == nil || !strings.Contains(err.Error(), "no-such-option") {
		t.Fatalf("got %v", err)
	}
}
