//go:build unix && !linux

package main

import (
	"os"
	"syscall"
	"time"
)

// Elsewhere, only the group is known.

func adopt() {}

func dieWithParent(*syscall.SysProcAttr) {}

func descendants() []int { return nil }

// stopGroup stops our group, if there seems to be a shell that can continue it.
func stopGroup() {
	parent, _ := syscall.Getpgid(os.Getppid())
	if parent != syscall.Getpgrp() && os.Getppid() != 1 {
		_ = syscall.Kill(0, syscall.SIGTSTP)
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		time.Sleep(stopWithin)
	}
}
