package redislock_test

import (
	"crypto/rand"
	"encoding/base64"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// watched passes on what a source of random bytes gives, and remembers it.
type watched struct {
	io.Reader
	mu   sync.Mutex
	seen map[string]bool
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[string(p[:n])] = true
	return n, err
}

// gave tells whether it gave these bytes; once.
func (w *watched) gave(p []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	gave := w.seen[string(p)]
	delete(w.seen, string(p))
	return gave
}

var _ = Describe("tokens", func() {
	It("are 128 bits of crypto/rand and nothing else, after the owner's label", func(ctx SpecContext) {
		random := &watched{Reader: rand.Reader, seen: map[string]bool{}}
		rand.Reader = random
		DeferCleanup(func() { rand.Reader = random.Reader })
		l, name := NewLocker(Server.Addr()), NewName()
		host, err := os.Hostname()
		Expect(err).NotTo(HaveOccurred())
		process := host + ":" + strconv.Itoa(os.Getpid()) + ":"

		const tokens = 1000
		var ones, zeros [16]byte
		for i := range tokens {
			label, opts := process, []redislock.Option(nil)
			switch i % 3 {
			case 1:
				label, opts = "me:", []redislock.Option{redislock.WithOwner("me")}
			case 2:
				label, opts = "", []redislock.Option{redislock.WithOwner("")}
			}
			lock := MustAcquire(ctx, l, name, opts...)
			text, labelled := strings.CutPrefix(lock.Token(), label)
			Expect(labelled).To(BeTrue(), lock.Token())
			bits, err := base64.RawURLEncoding.DecodeString(text)
			Expect(err).NotTo(HaveOccurred())
			Expect(bits).To(HaveLen(len(ones)))
			Expect(random.gave(bits)).To(BeTrue(), "not of crypto/rand, or seen before")
			for i, b := range bits {
				ones[i] |= b
				zeros[i] |= ^b
			}
			Expect(lock.Release(ctx)).To(Succeed())
		}
		Expect(ones[:]).To(HaveEach(byte(0xff)), "each bit is set in some")
		Expect(zeros[:]).To(HaveEach(byte(0xff)), "and not in others")
	})

	It("are the caller's own if it names one, as it is", func(ctx SpecContext) {
		lock := MustAcquire(ctx, NewLocker(Server.Addr()), NewName(), redislock.WithToken("mine"), redislock.WithOwner("me"))
		Expect(lock.Token()).To(Equal("mine"))
		Expect(lock.Release(ctx)).To(Succeed())
	})
})
