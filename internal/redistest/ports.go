package redistest

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
)

// A port belongs to its server until Stop, also while the server is down. Else a server of another test process
// could take it, and those who know the old server, Sentinels say, would meet a stranger.
var (
	portsMu sync.Mutex
	ports   = map[int]io.Closer{}
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
	if ports[port] != nil {
		return false
	}
	sign, err := hangSign(port)
	if err != nil {
		return false
	}
	ports[port] = sign
	return true
}

func release(port int) {
	portsMu.Lock()
	defer portsMu.Unlock()
	if sign := ports[port]; sign != nil {
		delete(ports, port)
		_ = sign.Close()
	}
}

func free(port int) bool {
	l, err := net.Listen("tcp", address(port))
	return err == nil && l.Close() == nil
}
