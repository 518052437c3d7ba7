package proxy

import (
	"syscall"
	"time"
)

// timersAreLate is by how much Go's timers may be late where nothing else goes on: they round up to
// the milliseconds of epoll.
const timersAreLate = 1500 * time.Microsecond

// sleepExactly is for the rest of a delay. It keeps a thread.
func sleepExactly(d time.Duration) {
	t := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&t, nil) // a signal cuts it short
}
