//go:build !linux

package redistest

import "os/exec"

func start(cmd *exec.Cmd) error { return cmd.Start() }
