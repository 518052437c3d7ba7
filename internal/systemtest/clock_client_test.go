package systemtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// steppable builds testdata/stepped with a package time whose wall clock can be stepped. Programs in
// Go read the clock without libc, so nothing that is preloaded gets between.
func steppable(ctx context.Context) (program string) {
	GinkgoHelper()
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	Expect(err).NotTo(HaveOccurred())
	original := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	text, err := os.ReadFile(filepath.Join(original, "time.go"))
	Expect(err).NotTo(HaveOccurred())
	const now = "\nfunc Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	Expect(strings.Count(string(text), now)).To(Equal(1), "time.Now is another one in this Go: adapt this")

	dir := GinkgoT().TempDir()
	overlay := map[string]string{}
	for name, text := range map[string]string{
		"time.go": strings.Replace(string(text), now, now+"\tsec += stepped.Load()\n", 1),
		"step.go": "package time\n\nimport \"sync/atomic\"\n\nvar stepped atomic.Int64\n\n" +
			"// Step sets the wall clock so many seconds off.\nfunc Step(seconds int64) { stepped.Store(seconds) }\n",
	} {
		overlay[filepath.Join(original, name)] = filepath.Join(dir, name)
		Expect(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)).To(Succeed())
	}
	list, err := json.Marshal(map[string]any{"Replace": overlay})
	Expect(err).NotTo(HaveOccurred())
	Expect(os.WriteFile(filepath.Join(dir, "overlay.json"), list, 0o600)).To(Succeed())

	program = filepath.Join(dir, "stepped")
	build := exec.CommandContext(ctx, "go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, "./testdata/stepped")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	output, err := build.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), "%s", output)
	return program
}

var _ = Describe("a client's clock", func() {
	It("changes nothing, whatever it is stepped to while the client holds, waits and is handed the lock", Longest, func(ctx SpecContext) {
		const (
			lease   = 3 * time.Second // of the child
			renewal = lease / 3       // and not sooner
			checkIn = time.Second     // of the first in the queue, and not sooner
			block   = 2 * time.Second // of its BLPOP
		)
		program := steppable(ctx)
		s := OwnServer()
		seen := Monitor(s.Addr())
		locker, client := NewLocker(s.Addr()), Connect(s.Addr())
		Expect(redislock.Load(ctx, client)).To(Succeed())

		live := func(clocks ...time.Duration) {
			defer GinkgoRecover()
			name := NewName()
			key := KeysOf(name)[0]
			c := launch(program, "ADDR="+s.Addr(), "NAME="+name)
			ask := func(words ...any) string {
				GinkgoHelper()
				fmt.Fprintln(c.In, words...)
				return c.Line()
			}
			// What the child is sure of, which is what the server says.
			var last int64
			surely := func(words ...any) (left time.Duration) {
				GinkgoHelper()
				var fence, ms int64
				_, err := fmt.Sscan(ask(words...), &fence, &ms)
				Expect(err).NotTo(HaveOccurred())
				Expect(fence).To(BeNumerically(">=", last))
				last = fence
				Expect(ms).To(BeNumerically(">", 0), "it is not lost")
				Expect(ms).To(BeNumerically("<=", lease.Milliseconds()))
				state := StateOf(locker, name)
				Expect(state.Fence).To(Equal(fence))
				Expect(state.TTL).To(And(BeNumerically(">", 0), BeNumerically("<=", lease)))
				return time.Duration(ms) * time.Millisecond
			}
			stepTo := func(ahead time.Duration) {
				GinkgoHelper()
				var shown int64
				before := time.Now().Add(ahead - time.Second)
				_, err := fmt.Sscan(ask("step", ahead.Seconds()), &shown)
				Expect(err).NotTo(HaveOccurred())
				Expect(time.Unix(shown, 0)).To(And(BeTemporally(">=", before), BeTemporally("<=", time.Now().Add(ahead))), "it has effect")
			}
			count := func(words ...string) int { return seen.Count(append(words, key)...) }

			// It holds the lock and renews it.
			began := time.Now()
			Expect(ask("acquire")).To(Equal("asked"))
			surely("held")
			for _, ahead := range clocks {
				stepTo(ahead)
				surely("held")
				surely("renewed", 1)
			}
			Expect(count("lock_extend")).To(And(BeNumerically(">=", len(clocks)), BeNumerically("<=", time.Since(began)/renewal)))
			Expect(ask("release")).To(Equal("released"))
			Expect(count("lock_acquire")).To(Equal(1))
			Expect(count("lock_release")).To(Equal(1))

			// It waits.
			lock := MustAcquire(ctx, locker, name, redislock.WithLease(time.Hour))
			called := count("lock_acquire")
			began = time.Now()
			Expect(ask("acquire")).To(Equal("asked"))
			Eventually(WaitingFor(locker, name)).Should(Equal(1))
			list := StateOf(locker, name).Waiters[0].Signal
			for _, ahead := range clocks {
				stepTo(ahead)
				before := count("lock_acquire")
				Eventually(func() int { return count("lock_acquire") }).Should(BeNumerically(">", before), "it checks in")
				Expect(WaitingFor(locker, name)()).To(Equal(1))
			}
			for _, ahead := range clocks {
				stepTo(ahead) // and is handed the lock
			}
			Expect(lock.Release(ctx)).To(Succeed())
			surely("held")
			Expect(count("lock_acquire") - called).To(BeNumerically("<=", 1+time.Since(began)/checkIn))
			Expect(seen.Count("BLPOP", list)).To(And(BeNumerically(">=", 1), BeNumerically("<=", 2+time.Since(began)/block)), "one more after the signal")

			// It holds what it was handed: claims it, and renews it.
			for _, ahead := range clocks {
				stepTo(ahead)
			}
			Expect(surely("renewed", 1)).To(BeNumerically(">", 2*time.Second), "claimed")
			Expect(PTTL(client, key)).To(BeNumerically(">", 0))
			Expect(ask("release")).To(Equal("released"))
			Expect(StateOf(locker, name).Holder).To(BeEmpty())
		}
		var all sync.WaitGroup
		for _, clocks := range [][]time.Duration{{0, 0}, {time.Hour, -time.Hour}, {-time.Hour, time.Hour}} {
			all.Go(func() { live(clocks...) })
		}
		all.Wait()
	})

	It("is not read: no source takes a time apart, or makes one without its monotonic reading", func() {
		sources, err := filepath.Glob(top + "*.go")
		Expect(err).NotTo(HaveOccurred())
		noTime := regexp.MustCompile(`\b(slog|Kind)\.String\(`)
		wall := regexp.MustCompile(`\.(Round|UTC|Local|In|AddDate|Date|Clock|Format|String|Unix\w*|Marshal\w*)\(|time\.(Unix\w*|Date|Parse\w*)\(`)
		checked := 0
		for _, source := range sources {
			if strings.HasSuffix(source, "_test.go") {
				continue
			}
			text, err := os.ReadFile(source)
			Expect(err).NotTo(HaveOccurred())
			Expect(wall.FindAll(noTime.ReplaceAll(text, nil), -1)).To(BeEmpty(), source)
			checked++
		}
		Expect(checked).To(BeNumerically(">", 5))
	})
})
