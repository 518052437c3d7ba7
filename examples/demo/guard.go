package main

import (
	"encoding/json"
	"fmt"
	"os"
	"syscall"
)

// book is what the shared file holds.
type book struct {
	Fence    int64            `json:"fence"` // of the last writer
	Balances map[string]cents `json:"balances"`
	Booked   []int            `json:"booked"` // the lines of the ledger, in the order they came
}

func (b *book) add(line int, e entry) {
	if b.Balances == nil {
		b.Balances = map[string]cents{}
	}
	b.Balances[e.account] += e.amount
	b.Booked = append(b.Booked, line)
}

// guardedFile takes no write with an older fencing token than it has seen. It is all that stands
// between the data and a holder that lost the lock without noticing.
type guardedFile struct {
	path string
	off  bool // for the test: let everything through
}

type staleError struct{ fence, newest int64 }

func (e *staleError) Error() string {
	return fmt.Sprintf("token %d is older than %d", e.fence, e.newest)
}

func (f guardedFile) read() (book, error) {
	var b book
	text, err := os.ReadFile(f.path)
	if err != nil {
		return b, err
	}
	return b, json.Unmarshal(text, &b)
}

// write replaces the file, unless it would be a step back. The flock makes one step of the look at
// the old token and the write; it is held for microseconds, and not what the workers queue for.
func (f guardedFile) write(b book) error {
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	guard, err := os.OpenFile(f.path+".guard", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer guard.Close() // ends the flock
	if err := syscall.Flock(int(guard.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("flock %s: %w", guard.Name(), err)
	}
	old, err := f.read()
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if b.Fence < old.Fence && !f.off {
		return &staleError{b.Fence, old.Fence}
	}
	if err := os.WriteFile(f.path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(f.path+".new", f.path) // a process that dies before this leaves the old file
}
