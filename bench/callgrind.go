package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// callgrind is a redis-server whose instructions valgrind counts, from when it reads a request until the
// reply is in the buffer. A busy machine changes their time but not their number. The server's own work
// (cron, expiry) is left out, as valgrind knows functions by name: redis-server is linked with these names.
type callgrind struct {
	client rueidis.Client
	socket string
	cmd    *exec.Cmd
	dir    string
	dumps  int
	empty  float64 // what a count of no calls comes to
	names  int
}

func hasCallgrind() bool {
	_, err := exec.LookPath("valgrind")
	return err == nil
}

// startCallgrind returns when the server answers. It ends with ctx, at the latest.
func startCallgrind(ctx context.Context) (_ *callgrind, err error) {
	dir, err := os.MkdirTemp("", "callgrind-")
	if err != nil {
		return nil, err
	}
	v := &callgrind{dir: dir, socket: filepath.Join(dir, "redis.sock")}
	v.cmd = exec.CommandContext(ctx, "valgrind", "--quiet", "--tool=callgrind",
		"--callgrind-out-file="+filepath.Join(dir, "out"), "--toggle-collect=readQueryFromClient",
		"--zero-before=pingCommand", "--dump-before=echoCommand",
		redistest.Binary(), "--port", "0", "--unixsocket", v.socket, "--dir", dir, "--save", "", "--appendonly", "no", "--hz", "1")
	if err := v.cmd.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		v.client, err = newTarget("unix://" + v.socket).rueidis(func(o *rueidis.ClientOption) {
			o.ForceSingleClient, o.DisableCache = true, true
			o.ConnWriteTimeout = time.Minute
			o.Dialer.KeepAlive = -1 // no PING but ours
		})
		if err == nil {
			if v.empty, err = v.total(ctx, nil); err != nil {
				v.stop()
			}
			return v, err
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			v.stop()
			return nil, fmt.Errorf("%s under valgrind: %w", redistest.Binary(), err)
		}
	}
}

func (v *callgrind) stop() {
	if v.client != nil {
		v.client.Close()
	}
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
	_ = os.RemoveAll(v.dir)
}

// newLock has a name as long as all others.
func (v *callgrind) newLock() *rawLock {
	v.names++
	return &rawLock{name: fmt.Sprintf("counted-%06d", v.names)}
}

// count is how many instructions the server runs for each of these calls in one pipeline.
func (v *callgrind) count(ctx context.Context, calls []rueidis.Completed) (float64, error) {
	n, err := v.total(ctx, calls)
	return (n - v.empty) / float64(len(calls)), err
}

// total counts from a PING to an ECHO.
func (v *callgrind) total(ctx context.Context, calls []rueidis.Completed) (float64, error) {
	c := v.client
	all := append([]rueidis.Completed{c.B().Ping().Build()}, calls...)
	if err := send(ctx, c, append(all, c.B().Echo().Message("").Build())); err != nil {
		return 0, err
	}
	v.dumps++
	file := filepath.Join(v.dir, fmt.Sprint("out.", v.dumps))
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("callgrind did not see the server's functions: %w", err)
	}
	_, rest, _ := strings.Cut(string(text), "\ntotals: ")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseFloat(line, 64)
	if err != nil {
		return 0, fmt.Errorf("callgrind wrote no totals: %w", err)
	}
	return n, os.Remove(file)
}
