//go:build !linux

package redistest

import (
	"io"
	"os/exec"
	"strings"
)

func start(cmd *exec.Cmd) error { return cmd.Start() }

// hangSign does nothing: other systems have no names for it that end with a process.
func hangSign(int) (io.Closer, error) { return io.NopCloser(strings.NewReader("")), nil }
