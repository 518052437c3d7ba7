package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/seed-ee05a192/redislock/internal/proxy"
)

// fleet is the client processes, each with proxies of its own to every node.
type fleet struct {
	h       *history
	job     job // the common part of all
	clients []*client
	readers sync.WaitGroup
}

// client is one place in the fleet: a process, and its successor after its death.
type client struct {
	index   int
	proxies []*proxy.Proxy
	dial    map[string]string

	mu   sync.Mutex
	life int
	cmd  *exec.Cmd
	in   io.WriteCloser
	done chan struct{}
}

func newFleet(h *history, common job, size int, nodes []string) (*fleet, error) {
	f := &fleet{h: h, job: common}
	for i := range size {
		c := &client{index: i, dial: map[string]string{}}
		f.clients = append(f.clients, c)
		for _, node := range nodes {
			p, err := proxy.New(node)
			if err != nil {
				return f, err
			}
			c.proxies = append(c.proxies, p)
			c.dial[node] = p.Addr()
		}
		if err := f.start(c); err != nil {
			return f, err
		}
	}
	return f, nil
}

// The kernel kills the children of a thread with it. So one thread that never ends starts them all, and none
// of them outlives this process, not even a stopped child.
var forks = sync.OnceValue(func() chan<- func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range c {
			f()
		}
	}()
	return c
})

func (f *fleet) start(c *client) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := f.job
	j.Worker, j.Life, j.Dial = c.index, c.life, c.dial
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), jobVar+"="+string(text), "GOMAXPROCS=2")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if c.in, err = cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	started := make(chan error, 1)
	forks() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return err
	}
	done := make(chan struct{})
	c.cmd, c.done = cmd, done
	f.readers.Go(func() {
		defer close(done)
		r := bufio.NewScanner(out)
		for r.Scan() {
			var e Event
			if json.Unmarshal(r.Bytes(), &e) == nil { // the last line of a killed client may be cut
				f.h.add(e)
			}
		}
		_ = cmd.Wait()
	})
	return nil
}

// kill ends a client's process with SIGKILL and notes when.
func (f *fleet) kill(c *client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.cmd.Process.Kill()
	<-c.done
	f.h.died(c.index, c.life, mono())
	c.life++
}

func (c *client) signal(s syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.cmd.Process.Signal(s)
}

func (c *client) eachProxy(do func(*proxy.Proxy)) {
	for _, p := range c.proxies {
		do(p)
	}
}

// finish tells all clients to begin nothing new, and waits this long for them to finish. It returns how many
// did not.
func (f *fleet) finish(patience time.Duration) int {
	for _, c := range f.clients {
		c.mu.Lock()
		_, _ = io.WriteString(c.in, "stop\n")
		c.mu.Unlock()
	}
	late := 0
	deadline := time.After(patience)
	for _, c := range f.clients {
		select {
		case <-c.done:
		case <-deadline:
			late++
			deadline = time.After(0)
		}
	}
	return late
}

// close ends the rest.
func (f *fleet) close() {
	for _, c := range f.clients {
		c.mu.Lock()
		if c.cmd != nil {
			_ = c.cmd.Process.Kill()
			<-c.done
		}
		c.mu.Unlock()
		c.eachProxy((*proxy.Proxy).Close)
	}
	f.readers.Wait()
}

func (c *client) String() string { return fmt.Sprintf("client %d", c.index) }
