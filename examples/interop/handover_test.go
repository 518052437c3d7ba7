package interop_test

import (
	"bufio"
	"context"
	"regexp"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// fcall is one call of a function, as MONITOR shows it.
type fcall struct {
	at     time.Duration // by the server's clock
	caller string
	text   string
}

var monitored = regexp.MustCompile(`^(\d+\.\d+) \[\d+ (\S+)\] "FCALL" (.*)$`)

// monitor follows the calls of functions. Each is sent when the server has carried it out.
func monitor(s *redistest.Server) <-chan fcall {
	GinkgoHelper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := command(ctx, ".", nil, "redis-cli", "-p", strconv.Itoa(s.Port()), "MONITOR")
	out, err := cmd.StdoutPipe()
	Expect(err).NotTo(HaveOccurred())
	Expect(cmd.Start()).To(Succeed())
	lines := bufio.NewScanner(out)
	Expect(lines.Scan()).To(BeTrue()) // OK: from now on
	calls := make(chan fcall, 10_000)
	go func() {
		defer close(calls)
		for lines.Scan() {
			if m := monitored.FindStringSubmatch(lines.Text()); m != nil {
				seconds, _ := strconv.ParseFloat(m[1], 64)
				calls <- fcall{time.Duration(seconds * float64(time.Second)), m[2], m[3]}
			}
		}
	}()
	DeferCleanup(func() {
		cancel()
		for range calls { // until its output ends
		}
		_ = cmd.Wait()
	})
	return calls
}

var _ = Describe("A hand-over takes one round trip:", func() {
	// Release in, signal out. Until then and a little later the next holder calls nothing but what its work does.
	DescribeTable("", func(ctx SpecContext, kind string) {
		server := startServer()
		f := newFleet(ctx, server.Addr())
		lock, err := f.locker.Acquire(ctx, f.name)
		Expect(err).NotTo(HaveOccurred())
		w := f.queue(ctx, kind)
		w.turn()
		calls := monitor(server)
		next := func() (call fcall) {
			GinkgoHelper()
			Eventually(ctx, calls).Should(Receive(&call))
			return call
		}
		// Right after a check-in, so that the next one is a second away. The confirmation comes after half a second.
		checkIn := next()
		for !strings.Contains(checkIn.text, "lock_acquire") {
			checkIn = next()
		}
		Expect(lock.Release(ctx)).To(Succeed())
		release := next()
		Expect(release.text).To(ContainSubstring("lock_release"))
		until := min(release.at+400*time.Millisecond, checkIn.at+900*time.Millisecond)
		Eventually(w.over).Should(BeClosed())
		var made []string
		for len(made) == 0 || made[len(made)-1] != "lock_release" {
			if call := next(); call.at < until || strings.Contains(call.text, "lock_release") {
				made = append(made, strings.Trim(strings.Fields(call.text)[0], `"`))
			}
		}
		Expect(made).To(BeElementOf([]string{"register_write", "lock_release"}, []string{"lock_release"}))
	}, entries([]string{"go", "python", "asyncio", "redis RESP2", "redis RESP3", "ioredis RESP2", "ioredis RESP3"}))
})
