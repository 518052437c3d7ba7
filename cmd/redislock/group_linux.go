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

// stopGroup sends TSTP to our group, which the kernel heeds if a shell could have it go on. Go has no way
// back to the default action once the signal was asked for, so that is done here.
func stopGroup() {
	var byDefault, before [4]uint64 // at least as large as the kernel's sigaction
	change := func(to, old *[4]uint64) {
		_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGTSTP),
			uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
	}
	change(&byDefault, &before)
	_ = syscall.Kill(0, syscall.SIGTSTP)
	time.Sleep(stopWithin) // another thread may be the one that takes it
	change(&before, nil)
}

// adopt has orphans among our descendants become our children. So nobody leaves the family.
func adopt() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// dieWithParent has the kernel kill the child when the thread that forked it ends.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// descendants are the processes that we started, those that they started, and so on.
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
