//go:build !linux

package proxy

import "time"

const timersAreLate = 0

func sleepExactly(d time.Duration) { time.Sleep(d) }
