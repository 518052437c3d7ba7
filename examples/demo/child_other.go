//go:build !linux

package main

import "syscall"

// dieWithParent: here only the end of its stdin tells a child that the director is gone.
func dieWithParent() *syscall.SysProcAttr { return nil }
