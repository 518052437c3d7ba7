//go:build unix

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/charmbracelet/x/term"

	"github.com/seed-ee05a192/redislock"
)

// run is two processes. The user calls the front: it has the terminal, and takes the signals. Its child, the
// keeper, has the lock and starts the command as its own child. So the keeper renews the lock while the front
// is stopped (Ctrl-Z), and each of the two outlives the other to end the command:
//
//	killed     who notices        what ends the command
//	front      keeper: no socket  the keeper kills group and descendants, then gives the lock back
//	keeper     the kernel         the command itself is killed (Pdeathsig)
//	           front: no socket   the front kills group and orphans; the lock ends with its lease
//
// Both are in other process groups than the command.

// keeperName is the keeper's name in ps, before the arguments of run.
const keeperName = "redislock-keeper"

// keeperFD is the socket to the front, if this process is a keeper.
var keeperFD = -1

func keeperOf(args []string) (fd int, ok bool) {
	if len(args) < 3 || args[0] != keeperName {
		return 0, false
	}
	fd, err := strconv.Atoi(args[1])
	return fd, err == nil && fd > 2
}

func runCommand(o *runOptions) int {
	if keeperFD >= 0 {
		return newKeeper(o, keeperFD).run()
	}
	return newFront(o).run()
}

type keeper struct {
	o        *runOptions
	front    *link
	messages <-chan message // closed when the front has died; nil after that
	lock     *redislock.Lock

	leader   int // the command
	group    group
	ended    bool // the command has ended; others of its group may still run
	status   int  // its exit code
	isPaused bool // it was stopped
	isTold   bool // it was sent TERM
	isLost   bool
	killing  bool
	killAt   <-chan time.Time
}

func newKeeper(o *runOptions, fd int) *keeper {
	front := newLink(fd)
	logger = slog.New(slog.NewTextHandler(sayer{front}, nil))
	return &keeper{o: o, front: front, messages: front.received()}
}

// run's result does not matter: the front has the exit code by then.
func (k *keeper) run() int {
	runtime.LockOSThread() // Pdeathsig fires when the forking thread ends
	adopt()
	// The front passes on the signals for the command. A signal from the terminal must not stop the renewal.
	// Do not ignore it: the command would inherit that.
	notify(make(chan os.Signal), append(fromTerminal, passedOn...)...)
	status := k.work()
	k.front.send(message{Kind: msgExit, N: status})
	return status
}

func (k *keeper) work() int {
	if _, err := exec.LookPath(k.o.command[0]); err != nil {
		return k.cannotRun(err) // before the wait for the lock
	}
	lock, status := k.acquire()
	if lock == nil {
		return status
	}
	k.lock = lock
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	if err := k.start(); err != nil {
		k.release()
		return k.cannotRun(err)
	}
	k.watch(ended)
	k.front.send(message{Kind: msgStarted, N: 0})
	k.release()
	if k.isLost {
		return exitLost
	}
	return k.status
}

// acquire waits for the lock, until a signal ends the wait. Without the lock, it returns the exit code.
func (k *keeper) acquire() (*redislock.Lock, int) {
	type result struct {
		lock *redislock.Lock
		err  error
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan result, 1)
	go func() {
		host, _ := os.Hostname()
		lock, err := k.o.acquire(ctx, cmp.Or(k.o.owner, fmt.Sprintf("%s:%d", host, os.Getppid())))
		done <- result{lock, err}
	}()
	stopped := 0
	for {
		select {
		case m, ok := <-k.messages:
			s := syscall.Signal(m.N)
			switch {
			case !ok:
				k.messages, stopped = nil, exitSignal+int(syscall.SIGKILL)
				cancel()
			case m.Kind != msgSignal, s == syscall.SIGUSR1, s == syscall.SIGUSR2:
			case stopped != 0: // the second signal does not wait for Redis
				return nil, stopped
			default:
				stopped = exitSignal + m.N
				cancel() // leaves the queue
			}
		case r := <-done:
			switch {
			case stopped != 0 && r.lock != nil:
				_ = r.lock.Release(context.Background())
			case stopped == 0 && r.err != nil:
				return nil, k.notAcquired(r.err)
			case stopped == 0:
				return r.lock, 0
			}
			return nil, stopped
		}
	}
}

func (k *keeper) notAcquired(err error) int {
	status := code(err)
	switch {
	case status != exitBusy:
		k.say("%s", explain(err))
	case !k.o.quiet:
		k.say("%s", k.o.busy())
	}
	return status
}

func (k *keeper) cannotRun(err error) int {
	k.say("%v", err)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return exitNotFound
	}
	return exitCannotRun
}

// start runs the command in a group of its own, in the foreground of the terminal if run is there.
func (k *keeper) start() error {
	cmd := exec.Command(k.o.command[0], k.o.command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "LOCK_NAME="+k.o.name, "LOCK_FENCE="+strconv.FormatInt(k.lock.Fence(), 10),
		"LOCK_TOKEN="+k.lock.Token())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(cmd.SysProcAttr)
	if tty := openTerminal(); tty != nil {
		defer tty.Close()
		front, _ := syscall.Getpgid(os.Getppid())
		// In a pipeline, others may need the terminal. The command gets it when it wants to read.
		if term.IsTerminal(os.Stdin.Fd()) && term.IsTerminal(os.Stdout.Fd()) && foregroundOf(tty) == front {
			cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, int(tty.Fd())
		}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	k.leader, k.group = cmd.Process.Pid, group(cmd.Process.Pid)
	k.front.send(message{Kind: msgStarted, N: k.leader, Left: k.left()})
	return nil
}

// watch returns when no process of the command's group runs.
func (k *keeper) watch(children <-chan os.Signal) {
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	mayBeLost := k.lock.Context().Done()
	var graceOver <-chan time.Time
	for !k.isOver() {
		look := poll.C
		if !k.ended && !k.killing {
			look = nil // SIGCHLD is enough
		}
		select {
		case <-children:
			reap(k.reaped)
		case <-look:
			reap(k.reaped)
			if k.killing {
				k.group.kill()
			}
		case m, ok := <-k.messages:
			if !ok {
				k.messages = nil
				k.kill()
				continue
			}
			if m.Kind == msgSignal && syscall.Signal(m.N) == syscall.SIGTERM && !k.isTold && k.o.grace > 0 {
				graceOver = time.After(k.o.grace)
			}
			k.obey(m)
		case <-mayBeLost:
			mayBeLost = nil
			k.lose()
		case <-k.killAt:
			k.kill()
		case <-graceOver:
			k.kill()
		}
	}
}

func (k *keeper) isOver() bool {
	return k.ended && k.group.isGone() && (!k.killing || k.group.allGone())
}

func (k *keeper) reaped(pid int, status syscall.WaitStatus) {
	switch {
	case pid != k.leader: // an orphan
	case status.Stopped():
		k.isPaused = true
		k.front.send(message{Kind: msgStopped, N: int(status.StopSignal())})
	case status.Signaled():
		k.ended, k.status = true, exitSignal+int(status.Signal())
	default:
		k.ended, k.status = true, status.ExitStatus()
	}
}

func (k *keeper) obey(m message) {
	switch {
	case m.Kind == msgPing:
		k.front.send(message{Kind: msgHeld, Left: k.left()})
	case m.Kind == msgContinue:
		k.isPaused = false
		k.group.signal(syscall.SIGCONT)
	case syscall.Signal(m.N) == syscall.SIGTERM && k.isTold:
		k.kill()
	case syscall.Signal(m.N) == syscall.SIGTERM:
		k.terminate()
	default:
		k.group.signal(syscall.Signal(m.N))
	}
}

// left is how long the lock is surely held, in ms.
func (k *keeper) left() int64 {
	deadline, _ := k.lock.Deadline()
	return time.Until(deadline).Milliseconds()
}

// terminate asks the group to end. A stopped group must continue for that.
func (k *keeper) terminate() {
	k.isTold = true
	k.group.signal(syscall.SIGTERM)
	if k.isPaused {
		k.isPaused = false
		k.group.signal(syscall.SIGCONT)
	}
}

// kill starts to end everything; watch goes on with it.
func (k *keeper) kill() {
	k.killing = true
	k.group.kill()
}

// lose ends the group before the server gives the lock to somebody else: TERM at once, KILL after half of
// the rest, so a busy machine has time. If somebody took the lock away, the rest of the lease means nothing.
func (k *keeper) lose() {
	k.isLost = true
	left := min(k.o.lease/10, 500*time.Millisecond) // see Lock.Context
	if deadline, expires := k.lock.Deadline(); expires {
		left = min(left, time.Until(deadline))
	}
	k.killAt = time.After(left / 2)
	k.terminate()
	k.say("%s is lost, or may be, so %s is ended: %v", quote(k.o.name), quote(k.o.command[0]), context.Cause(k.lock.Context()))
}

// release gives the lock back, unless it is lost already.
func (k *keeper) release() {
	done := make(chan error, 1)
	go func() { done <- k.lock.Release(context.Background()) }()
	var tooLate <-chan time.Time
	if deadline, expires := k.lock.Deadline(); k.isLost && expires {
		tooLate = time.After(time.Until(deadline))
	}
	select {
	case err := <-done:
		switch {
		case err == nil || k.isLost:
		case errors.Is(err, redislock.ErrNotHeld):
			k.isLost = true
			k.say("%s had been lost before the command ended", quote(k.o.name))
		default:
			k.say("%s", explain(err))
		}
	case <-tooLate:
	}
}

func (k *keeper) say(format string, args ...any) {
	k.front.send(message{Kind: msgSay, Text: fmt.Sprintf(format, args...)})
}

// sayer sends the Locker's log to the front. The keeper itself does not write to the terminal, which could
// stop it for that.
type sayer struct{ to *link }

func (s sayer) Write(text []byte) (int, error) {
	s.to.send(message{Kind: msgSay, Text: string(text)})
	return len(text), nil
}
