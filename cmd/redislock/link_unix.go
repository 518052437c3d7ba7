//go:build unix

package main

import (
	"encoding/json"
	"os"
	"sync"
	"syscall"
)

// message goes between the two processes of run.
type message struct {
	Kind string // one of the following
	N    int    `json:",omitempty"`
	Left int64  `json:",omitempty"` // ms until the lock may be lost
	Text string `json:",omitempty"`
}

const (
	// To the keeper.
	msgSignal   = "signal"   // N was sent to the front
	msgContinue = "continue" // the front goes on, after a stop
	msgPing     = "ping"     // how long is the lock still held?
	// To the front.
	msgStarted = "started" // the command runs in the group N, and the lock is held for Left; N 0: it has ended
	msgStopped = "stopped" // the signal N stopped it
	msgSay     = "say"     // Text is for the user
	msgHeld    = "held"    // for Left after the ping was sent
	msgExit    = "exit"    // with N: everything has ended
)

// link is one end of the socket between the two.
type link struct {
	file *os.File
	mu   sync.Mutex
	out  *json.Encoder
}

func newLink(fd int) *link {
	syscall.CloseOnExec(fd) // otherwise the command keeps it open
	_ = syscall.SetNonblock(fd, true)
	file := os.NewFile(uintptr(fd), "link")
	return &link{file: file, out: json.NewEncoder(file)}
}

// send ignores errors: received is closed when the other process has ended.
func (l *link) send(m message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.out.Encode(m)
}

// received is closed when the other process has ended.
func (l *link) received() <-chan message {
	c := make(chan message, 16)
	go func() {
		defer close(c)
		in := json.NewDecoder(l.file)
		for {
			var m message
			if in.Decode(&m) != nil {
				return
			}
			c <- m
		}
	}()
	return c
}
