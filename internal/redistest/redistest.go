// Package redistest starts private redis-server processes on loopback ports, for tests, the demo
// and the benchmarks. On Linux a server dies with the process that started it, even by SIGKILL.
// REDIS_SERVER is another binary to start than the redis-server on the PATH: of another version, or
// valkey-server. REDIS_CLI is the same for redis-cli.
package redistest

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	startTimeout = time.Minute     // until a new server must answer
	stopTimeout  = 5 * time.Second // from SIGTERM to SIGKILL
	attempts     = 10              // ports tried
)

var errPortTaken = errors.New("redistest: the port is taken")

// Server is one redis-server process. Its methods may be called from any goroutine.
type Server struct {
	port int
	dir  string
	conf string // of a Sentinel; "": none
	args []string
	env  []string // more than ours

	mu    sync.Mutex // held over a whole Stop, Kill or Restart
	cmd   *exec.Cmd
	done  chan struct{} // closed when cmd has ended and was waited for
	ahead time.Duration // its clock of ours, see StepClock

	ready atomic.Pointer[exec.Cmd] // it has answered
	ended atomic.Bool              // by us
}

// Start runs a redis-server that keeps nothing on disk and returns once it answers. args are more
// of its options ("--maxmemory", "1mb"); they win over the ones set here, but must not change
// port, bind or dir. Output goes to redis.log in Dir.
func Start(args ...string) (*Server, error) {
	if _, err := exec.LookPath(Binary()); err != nil {
		if os.Getenv("REDIS_SERVER") != "" {
			return nil, fmt.Errorf("redistest: REDIS_SERVER: %w", err)
		}
		return nil, errors.New("redistest: no redis-server on the PATH: `apt-get install redis-server`, or `make demo` or `make test`, which install it")
	}
	dir, err := os.MkdirTemp("", "redistest-")
	if err != nil {
		return nil, err
	}
	return startIn(dir, "", args...)
}

// Binary is the server that Start runs.
func Binary() string { return cmp.Or(os.Getenv("REDIS_SERVER"), "redis-server") }

// Version is that of Binary: "Redis 7.0.15", "Valkey 9.1.2"; "" if it cannot be told.
func Version() string {
	text, _ := exec.Command(Binary(), "--version").Output()
	var maker, version string
	_, _ = fmt.Sscanf(string(text), "%s server v=%s", &maker, &version)
	return strings.TrimSpace(maker + " " + version)
}

// VersionIn returns the maker and version of a running server, from its INFO.
func VersionIn(info string) string {
	maker, version := "Redis", ""
	for line := range strings.Lines(info) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), ":"); name {
		case "redis_version":
			version = cmp.Or(version, value)
		case "valkey_version":
			maker, version = "Valkey", value
		}
	}
	return maker + " " + version
}

// CLI is redis-cli, or the one of REDIS_CLI.
func CLI() string { return cmp.Or(os.Getenv("REDIS_CLI"), "redis-cli") }

func startIn(dir, conf string, args ...string) (*Server, error) {
	s := &Server{dir: dir, conf: conf, args: args}
	if err := s.onFreePort(); err != nil {
		return nil, err
	}
	return s, nil
}

// onFreePort removes the server's folder if it does not start.
func (s *Server) onFreePort() (err error) {
	for range attempts {
		s.port = freePort()
		if err = s.run(); err == nil {
			return nil
		}
		release(s.port)
		if !errors.Is(err, errPortTaken) {
			break
		}
	}
	_ = os.RemoveAll(s.dir)
	return err
}

// Addr is "127.0.0.1:PORT".
func (s *Server) Addr() string { return address(s.port) }

// Port is the TCP port. PORT+10000, the cluster bus, was free as well.
func (s *Server) Port() int { return s.port }

// Dir is the server's own folder.
func (s *Server) Dir() string { return s.dir }

// PID is the id of the process that was started last.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd.Process.Pid
}

// Stop ends the server in good order, or by force after 5 s, and removes its folder.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.terminate()
	release(s.port)
	return os.RemoveAll(s.dir)
}

// Kill ends the server with SIGKILL and returns when it is gone. Its folder stays.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended.Store(true)
	err := s.cmd.Process.Kill()
	<-s.done
	return ignoreDone(err)
}

// Restart runs the server again with the same port, folder and arguments and returns once it
// answers. One that still runs is ended in good order first.
func (s *Server) Restart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.terminate()
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	reserve(s.port) // after a Stop
	return s.run()
}

// Pause stops the process with SIGSTOP: connections stay, nothing answers.
func (s *Server) Pause() error { return s.signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig os.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd.Process.Signal(sig)
}

func (s *Server) terminate() {
	s.ended.Store(true)
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Process.Signal(syscall.SIGCONT) // a paused one would sleep through its SIGTERM
	select {
	case <-s.done:
	case <-time.After(stopTimeout):
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}

// run starts the process and waits until it answers; if it does not, no process is left.
func (s *Server) run() error {
	log, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	offset, _ := log.Seek(0, io.SeekEnd)

	var args []string
	if s.conf != "" {
		args = append(args, s.conf)
	}
	args = append(args, "--bind", "127.0.0.1", "--port", strconv.Itoa(s.port), "--save", "",
		"--appendonly", "no", "--daemonize", "no", "--dir", s.dir)
	cmd := exec.Command(Binary(), append(args, s.args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	cmd.Env = append(os.Environ(), s.env...)
	if err := start(cmd); err != nil {
		return fmt.Errorf("redistest: %w", err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
		if state := cmd.ProcessState; s.ready.Load() == cmd && !s.ended.Load() {
			fmt.Fprintf(os.Stderr, "redistest: the server on %s ended by itself: %v\n%s\n", s.Addr(), state, s.log(offset))
		}
	}()
	s.cmd, s.done = cmd, done
	s.ended.Store(false)

	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); {
		if s.isReady(offset) && answers(s.Addr(), cmd.Process.Pid) {
			unlinkShared(cmd.Process.Pid)
			s.ready.Store(cmd)
			return nil
		}
		select {
		case <-tick.C:
		case <-done:
			text := s.log(offset)
			if strings.Contains(text, "already in use") {
				return fmt.Errorf("%w\n%s", errPortTaken, text)
			}
			return fmt.Errorf("redistest: %s ended: %v\n%s", Binary(), cmd.ProcessState, text)
		}
	}
	_ = cmd.Process.Kill()
	<-done
	return fmt.Errorf("redistest: no answer from %s within %v\n%s", Binary(), startTimeout, s.log(offset))
}

// isReady tells whether the process says in its log that it has the port: an error that answers a PING
// could be a stranger's. A Sentinel says no such thing.
func (s *Server) isReady(offset int64) bool {
	text, _ := os.ReadFile(s.logPath())
	return s.conf != "" || bytes.Contains(text[min(int(offset), len(text)):], []byte("Ready to accept connections"))
}

func (s *Server) logPath() string { return filepath.Join(s.dir, "redis.log") }

// log is the end of what the server wrote after offset.
func (s *Server) log(offset int64) string {
	text, _ := os.ReadFile(s.logPath())
	text = text[min(int(offset), len(text)):]
	return string(text[max(0, len(text)-2000):])
}

// answers tells whether the process pid, and not a stranger who took the port first, replies to
// PING on addr. An error other than LOADING (a password is set, say) is an answer too.
func answers(addr string, pid int) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	r := bufio.NewReader(conn)
	if _, err := io.WriteString(conn, "PING\r\nINFO server\r\n"); err != nil {
		return false
	}
	pong, err := r.ReadString('\n')
	if err != nil || strings.HasPrefix(pong, "-LOADING") {
		return false
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return false
		}
		if id, ok := strings.CutPrefix(line, "process_id:"); ok {
			return strings.TrimSpace(id) == strconv.Itoa(pid)
		}
		if strings.HasPrefix(line, "-") {
			return true
		}
	}
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func ignoreDone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
