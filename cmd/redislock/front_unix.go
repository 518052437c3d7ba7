//go:build unix

package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// front is the process that the user called, see keeper.
type front struct {
	o       *runOptions
	keeper  *link
	pid     int // of the keeper
	group   group
	tty     *os.File // nil: no terminal
	signals chan os.Signal

	// The front asks the keeper regularly how long the lock is held, in case the keeper is stopped or hangs.
	every    time.Duration
	asked    time.Time // the zero time: it has answered
	deadline time.Time // of the last answer
	late     int       // how often the deadline was near since then
}

func newFront(o *runOptions) *front {
	return &front{o: o, every: max(20*time.Millisecond, min(o.lease/20, 500*time.Millisecond)), signals: make(chan os.Signal, 32)}
}

func (f *front) run() int {
	adopt()
	notify(f.signals, append(passedOn, syscall.SIGTSTP)...)
	if err := f.start(); err != nil {
		fmt.Fprintln(os.Stderr, "redislock:", err)
		return exitUnavailable
	}
	f.tty = openTerminal()
	signal.Ignore(syscall.SIGTTOU) // so that we can take the terminal back. The keeper runs already
	messages := f.keeper.received()
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for {
		select {
		case s := <-f.signals:
			f.signalled(s.(syscall.Signal))
		case m, ok := <-messages:
			if !ok {
				return f.bereaved()
			}
			if m.Kind == msgExit {
				_, _ = syscall.Wait4(f.pid, nil, 0, nil) // leave no zombie to process 1
				return m.N
			}
			f.told(m)
		case <-tick.C:
			if f.isOverdue(time.Now()) {
				return f.bereaved()
			}
		}
	}
}

// start runs this program again, as the keeper. The socket has no fixed number there, so the command
// inherits all open files of the caller.
func (f *front) start() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	f.keeper = newLink(pair[0])
	defer syscall.Close(pair[1])
	cmd := &exec.Cmd{
		Path:  exe,
		Args:  append([]string{keeperName, strconv.Itoa(pair[1])}, os.Args[1:]...),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	f.pid = cmd.Process.Pid
	return nil
}

func (f *front) signalled(s syscall.Signal) {
	if s == syscall.SIGTSTP && f.group == 0 {
		stopGroup()
		return
	}
	f.keeper.send(message{Kind: msgSignal, N: int(s)})
}

func (f *front) told(m message) {
	switch m.Kind {
	case msgStarted:
		f.takeTerminal()
		f.group, f.deadline = group(m.N), time.Now().Add(time.Duration(m.Left)*time.Millisecond)
	case msgSay:
		fmt.Fprintln(os.Stderr, "redislock:", strings.TrimPrefix(strings.TrimSpace(m.Text), "redislock: "))
	case msgStopped:
		f.stopped(syscall.Signal(m.N))
	case msgHeld:
		f.deadline = f.asked.Add(time.Duration(m.Left) * time.Millisecond)
		f.asked, f.late = time.Time{}, 0
	}
}

// isOverdue asks the keeper again if it has answered. A silent keeper cannot end the command when the lock
// may soon be lost. A second look tells a silent keeper from a front that was stopped itself and has unread
// answers.
func (f *front) isOverdue(now time.Time) bool {
	switch {
	case f.group == 0:
	case f.asked.IsZero():
		f.asked = now
		f.keeper.send(message{Kind: msgPing})
	case now.Add(3 * f.every).After(f.deadline):
		f.late++
	}
	return f.late > 1
}

// bereaved ends the command in the keeper's place.
func (f *front) bereaved() int {
	_ = syscall.Kill(f.pid, syscall.SIGKILL) // its children become ours
	had := f.group != 0
	for f.group.kill(); ; f.group.kill() {
		reap(func(int, syscall.WaitStatus) {})
		if f.group.allGone() {
			break
		}
		time.Sleep(pollEvery)
	}
	f.takeTerminal()
	if !had {
		fmt.Fprintln(os.Stderr, "redislock: the process that keeps the lock was killed, no command was running")
		return exitUnavailable
	}
	fmt.Fprintln(os.Stderr, "redislock: the process that keeps the lock was killed or hangs, so the command was killed; the lock ends with its lease")
	return exitLost
}

// Job control: the command's group has the terminal in our place, and stops and continues with us.

// stopped handles a stop of the command's group. Without a shell that watches our group, the command
// continues at once.
func (f *front) stopped(by syscall.Signal) {
	switch {
	case f.tty == nil || by == syscall.SIGSTOP: // the sender of STOP sends CONT
	case by != syscall.SIGTSTP && foregroundOf(f.tty) == syscall.Getpgrp():
		f.giveTerminal() // it wants to read, or to change the terminal's modes
		f.keeper.send(message{Kind: msgContinue})
	default:
		f.takeTerminal()
		stopGroup()
		if foregroundOf(f.tty) == syscall.Getpgrp() {
			f.giveTerminal()
		}
		f.keeper.send(message{Kind: msgContinue})
	}
}

func openTerminal() *os.File {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	return tty
}

// foregroundOf returns the process group that has the terminal.
func foregroundOf(tty *os.File) int {
	id, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	if err != nil {
		return -1
	}
	return id
}

func (f *front) giveTerminal() {
	_ = unix.IoctlSetPointerInt(int(f.tty.Fd()), unix.TIOCSPGRP, int(f.group))
}

// takeTerminal takes the terminal back, but only from the command.
func (f *front) takeTerminal() {
	if f.tty != nil && f.group != 0 && foregroundOf(f.tty) == int(f.group) {
		_ = unix.IoctlSetPointerInt(int(f.tty.Fd()), unix.TIOCSPGRP, syscall.Getpgrp())
	}
}
