package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

// jobVar is set in the environment of a child process: what it has to do, as JSON.
const jobVar = "BENCH_JOB"

// childName is what a child's connections are called in CLIENT LIST.
const childName = "bench-crowd"

// job is a process in which Count goroutines wait for one lock.
type job struct {
	URL, Name string
	Count     int
	Keep      bool // what they get, until the process ends
}

// memory is what a process has, in bytes.
type memory struct {
	InUse    uint64 // heap and stacks, after garbage collection
	Resident uint64 // by the kernel, after unused memory was given back to it
	Peak     uint64 // of the same, until now
}

// served is what came of the waiters of a child.
type served struct {
	Took   time.Duration // from the first grant to the release after the last
	Tokens []string      // in the order of the grants
	Lost   int           // locks whose lease had run out when they were released
}

// runChild answers each line on stdin with one of JSON: "memory" and "served".
func runChild(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	t := newTarget(j.URL)
	client, err := t.rueidis(func(o *rueidis.ClientOption) { o.ClientName = childName })
	if err != nil {
		return err
	}
	defer client.Close()
	locker, err := redislock.New(client, redislock.Options{})
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(memoryNow()); err != nil { // before anybody waits
		return err
	}

	var all sync.WaitGroup
	var mu sync.Mutex // for the following: where a lock is lost, two may come at once
	var result served
	var first time.Time
	var failed error
	note := func(lock *redislock.Lock) {
		mu.Lock()
		defer mu.Unlock()
		if first.IsZero() {
			first = time.Now()
		}
		result.Tokens = append(result.Tokens, lock.Token())
	}
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if errors.Is(err, redislock.ErrNotHeld) {
			result.Lost++
		} else if err != nil {
			failed = err
		}
	}
	for range j.Count {
		all.Go(func() {
			lock, err := locker.Acquire(context.Background(), j.Name)
			if j.Keep {
				return
			}
			if err == nil {
				note(lock)
				err = lock.Release(context.Background())
			}
			fail(err)
		})
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "memory":
			err = out.Encode(memoryNow())
		case "served":
			all.Wait()
			if failed != nil {
				return failed
			}
			result.Took = time.Since(first)
			err = out.Encode(result)
		}
		if err != nil {
			return err
		}
	}
	return nil // the parent is through, or gone
}

func memoryNow() memory {
	// Each collects garbage first. What is in a sync.Pool goes with the second collection.
	debug.FreeOSMemory()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return memory{
		InUse:    m.HeapInuse + m.StackInuse,
		Resident: procStatus("VmRSS"),
		Peak:     procStatus("VmHWM"),
	}
}

// procStatus is a number of /proc/self/status in bytes, 0 if it is missing.
func procStatus(field string) uint64 {
	text, _ := os.ReadFile("/proc/self/status")
	_, rest, _ := strings.Cut(string(text), field+":")
	line, _, _ := strings.Cut(rest, "kB")
	kib, _ := strconv.ParseUint(strings.TrimSpace(line), 10, 64)
	return kib << 10
}

// child is such a process, seen from here.
type child struct {
	cmd    *exec.Cmd
	in     *json.Decoder
	ask    func(line string) error
	before memory
}

func startChild(j job) (*child, error) {
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), jobVar+"="+string(text))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, in: json.NewDecoder(stdout)}
	c.ask = func(line string) error {
		_, err := fmt.Fprintln(stdin, line)
		return err
	}
	if err := c.in.Decode(&c.before); err != nil {
		c.kill()
		return nil, fmt.Errorf("child: %w", err)
	}
	return c, nil
}

// query sends a line and reads the answer.
func (c *child) query(line string, answer any) error {
	return errors.Join(c.ask(line), c.in.Decode(answer))
}

// kill ends it by SIGKILL and returns when it is gone.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}
