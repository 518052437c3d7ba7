//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"
)

// passedOn are the signals that the command's group gets from us.
var passedOn = []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2}

// fromTerminal stop a process that does not handle them.
var fromTerminal = []syscall.Signal{syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU}

// pollEvery is how often we look for processes whose end nobody tells us.
const pollEvery = 20 * time.Millisecond

// stopWithin is how long a stop may take to come.
const stopWithin = 100 * time.Millisecond

// notify is signal.Notify, but for signals that were ignored when this process started (by nohup, say):
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

// isGone tells that nobody is left in it. Its number is not used anew before.
func (g group) isGone() bool {
	return g == 0 || syscall.Kill(-int(g), 0) == syscall.ESRCH
}

// kill ends the group, and what has left it but is still a descendant of ours. It has to be repeated until
// allGone: a process can start another one meanwhile.
func (g group) kill() {
	g.signal(syscall.SIGKILL)
	for _, pid := range descendants() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func (g group) allGone() bool { return g.isGone() && len(descendants()) == 0 }

// reap takes what the kernel has to tell of our children, those that we inherited included.
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
