package redistest

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// A port belongs to its server until Stop, also while the server is down. Else a server of another test process
// could take it, and those who know the old server, Sentinels say, would meet a stranger.
var (
	portsMu sync.Mutex
	ports   = map[int]bool{}
	locked  = sync.OnceValue(func() *os.File { // a byte for each port; closed with the process, which unlocks them
		name := filepath.Join(os.TempDir(), fmt.Sprintf("redistest-ports-%d", os.Getuid()))
		f, _ := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
		return f
	})
)

// freePort stays, with its cluster bus, below the range from which systems take the ports of
// outgoing connections: none of those can slip in while a server is down.
func freePort() int {
	for range 1000 {
		port := 10_000 + rand.IntN(12_000)
		if !reserve(port) {
			continue
		}
		if free(port) && free(port+10_000) {
			return port
		}
		release(port)
	}
	return 0 // redis-server listens nowhere then: Start fails with its log
}

// reserve keeps a port from this process and all others.
func reserve(port int) bool {
	portsMu.Lock()
	defer portsMu.Unlock()
	if ports[port] || setLock(port, syscall.F_WRLCK) != nil {
		return false
	}
	ports[port] = true
	return true
}

func release(port int) {
	portsMu.Lock()
	defer portsMu.Unlock()
	if ports[port] {
		delete(ports, port)
		_ = setLock(port, syscall.F_UNLCK)
	}
}

func setLock(port int, kind int16) error {
	return syscall.FcntlFlock(locked().Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: kind, Whence: io.SeekStart, Start: int64(port), Len: 1})
}

func free(port int) bool {
	l, err := net.Listen("tcp", address(port))
	return err == nil && l.Close() == nil
}
