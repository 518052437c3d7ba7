package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"unsafe"

	"golang.org/x/sys/unix"
)

// stopGroup sends TSTP to our group. The kernel stops the group if a shell can continue it. Go cannot
// restore the default action after signal.Notify, so stopGroup does.
func stopGroup() {
	var byDefault, before [4]uint64 // at least as large as the kernel's sigaction
	change := func(to, old *[4]uint64) {
		_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGTSTP),
			uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
	}
	change(&byDefault, &before)
	_ = syscall.Kill(0, syscall.SIGTSTP)
	time.Sleep(stopWithin) // another thread may take the signal
	change(&before, nil)
}

// adopt makes orphans among our descendants our children, so we know all of them.
func adopt() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// dieWithParent makes the kernel kill the child when the thread that forked it ends.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// descendants returns our children, their children, and so on.
func descendants() []int {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	children := map[int][]int{}
	for _, file := range files {
		text, err := os.ReadFile(file) // PID (NAME) STATE PPID ...; the name can be anything
		i := bytes.LastIndexByte(text, ')')
		if err != nil || i < 0 {
			continue
		}
		fields := bytes.Fields(text[i+1:])
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		parent, _ := strconv.Atoi(string(fields[1]))
		children[parent] = append(children[parent], pid)
	}
	family := children[os.Getpid()]
	for i := 0; i < len(family); i++ {
		family = append(family, children[family[i]]...)
	}
	return family
}
