package redistest

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// The kernel sends Pdeathsig when the thread that forked ends, not the process. So all children
// are forked on one thread that is never given back: it ends with the process, however that ends.
var forks = sync.OnceValue(func() chan<- func() {
	c := make(chan func())
	go forkThread(c)
	return c
})

func forkThread(c <-chan func()) {
	runtime.LockOSThread()
	for f := range c {
		f()
	}
}

func start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := make(chan error, 1)
	forks() <- func() { err <- cmd.Start() }
	return <-err
}

// hangSign tells the other processes that a port is ours: by a name that is no file, and that ends with us.
func hangSign(port int) (io.Closer, error) {
	return net.Listen("unix", fmt.Sprintf("@redistest-%d", port))
}
