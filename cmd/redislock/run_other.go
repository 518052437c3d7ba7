//go:build !unix

package main

var keeperFD = -1

func keeperOf([]string) (int, bool) { return 0, false }

func runCommand(*runOptions) int {
	println("redislock: run needs Linux or another Unix")
	return exitUsage
}
