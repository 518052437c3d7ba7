package main

import "syscall"

// dieWithParent has the kernel kill a child, even a stopped one, when the thread that started it
// ends. That is the main thread, see main.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
