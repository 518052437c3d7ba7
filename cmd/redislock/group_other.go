//go:build unix && !linux

package main

import "syscall"

// Elsewhere, only the group is known.

func adopt() {}

func dieWithParent(*syscall.SysProcAttr) {}

func descendants() []int { return nil }
