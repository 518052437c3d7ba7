//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"
)

// passedOn are the signals that we pass on to the command's group.
var passedOn = []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2}

// fromTerminal stop a process that does not handle them.
var fromTerminal = []syscall.Signal{syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU}

// pollEvery is how often we look for processes that end without a signal to us.
const pollEvery = 20 * time.Millisecond

// stopWithin is how long a stop may take.
const stopWithin = 100 * time.Millisecond

// notify is signal.Notify, except for signals that were ignored when this process started (by nohup, say):
// the command inherits that.
func notify(c chan<- os.Signal, signals ...syscall.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// group is the process group of the command, 0: none.
type group int

func (g group) signal(s syscall.Signal) {
	if g > 0 {
		_ = syscall.Kill(-int(g), s)
	}
}

// isGone tells that no process is left in the group. Until then the kernel does not reuse its number.
func (g group) isGone() bool {
	return g == 0 || syscall.Kill(-int(g), 0) == syscall.ESRCH
}

// kill ends the group, and all descendants that have left it. Repeat it until allGone, because a process can
// start another one meanwhile.
func (g group) kill() {
	g.signal(syscall.SIGKILL)
	for _, pid := range descendants() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func (g group) allGone() bool { return g.isGone() && len(descendants()) == 0 }

// reap collects the state changes of our children, also of inherited ones.
func reap(each func(pid int, status syscall.WaitStatus)) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG|syscall.WUNTRACED, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil || pid <= 0:
			return
		default:
			each(pid, status)
		}
	}
}
