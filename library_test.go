package redislock_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// signature is how a function is to be called.
type signature struct {
	function   string
	keys, args []string
	flags      []string
	optional   int // so many of the arguments can be left out
}

var signatures = []signature{
	{"lock_acquire", []string{"lock", "queue", "state", "signal"}, []string{"TOKEN", "LEASE_MS", "WAIT_MS", "HOLDERS"}, nil, 1},
	{"lock_release", []string{"lock", "queue", "state"}, []string{"TOKEN"}, []string{"allow-oom"}, 0},
	{"lock_extend", []string{"lock", "queue", "state"}, []string{"TOKEN", "LEASE_MS"}, []string{"allow-oom"}, 0},
	{"lock_reset", []string{"lock", "queue", "state"}, nil, []string{"allow-oom"}, 0},
	{"lock_inspect", []string{"lock", "queue", "state"}, nil, []string{"no-writes"}, 0},
	{"lock_version", nil, nil, []string{"no-writes"}, 0},
}

// textOf says which text of lua/lock.lua has which version.
const (
	textOf  = "1.0.0"
	textSum = "e5a2fa436d277011153541574b140252db2bc647e6bf1f7d26c09c853d4e4f8c"
)

// libraryAt is a lock of this spec's own, at a server that has the library.
func libraryAt(ctx context.Context, addr string) RawLock {
	GinkgoHelper()
	client := Directly(addr)
	Expect(redislock.Load(ctx, client)).To(Succeed())
	return NewRawLock(client)
}

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	It("has another version whenever its text changes", func() {
		sum := fmt.Sprintf("%x", sha256.Sum256([]byte(redislock.Source())))
		Expect([]string{redislock.Version, sum}).To(Equal([]string{textOf, textSum}),
			"lua/lock.lua has changed. Servers replace a library only by a newer version: raise VERSION in "+
				"lua/lock.lua and Version in functions.go, say it in CHANGELOG.md, then set textOf and textSum here. "+
				"(Before the first release of a version, setting textSum is enough.)")
	})

	It("registers six functions, each with its flags and a description that shows the call", func() {
		lists, err := Redis(l.Client, "FUNCTION", "LIST", "LIBRARYNAME", "lock", "WITHCODE").ToArray()
		Expect(err).NotTo(HaveOccurred())
		Expect(lists).To(HaveLen(1))
		library, err := lists[0].AsMap()
		Expect(err).NotTo(HaveOccurred())
		code := library["library_code"]
		Expect(code.ToString()).To(Equal(redislock.Source()))
		field := library["functions"]
		functions, err := field.ToArray()
		Expect(err).NotTo(HaveOccurred())
		Expect(functions).To(HaveLen(len(signatures)))
		for _, f := range functions {
			fields, err := f.AsMap()
			Expect(err).NotTo(HaveOccurred())
			name, description, flags := fields["name"], fields["description"], fields["flags"]
			function, err := name.ToString()
			Expect(err).NotTo(HaveOccurred())
			i := slices.IndexFunc(signatures, func(s signature) bool { return s.function == function })
			Expect(i).NotTo(Equal(-1), function)
			s := signatures[i]
			usage := strings.Join(s.keys, " ")
			if len(s.args) > 0 {
				needed := len(s.args) - s.optional
				usage += " | " + strings.Join(s.args[:needed], " ")
				for _, arg := range s.args[needed:] {
					usage += " [" + arg + "]"
				}
			}
			Expect(description.ToString()).To(And(HavePrefix(usage), MatchRegexp(`\w+ \w+`)), function)
			Expect(flags.AsStrSlice()).To(ConsistOf(s.flags), function)
		}
	})

	It("answers lock_inspect and lock_version to FCALL_RO, and the writing ones not", func() {
		for _, s := range signatures[:4] {
			words := l.Command(s.function, []any{"a", Long, Long, 1}[:len(s.args)]...)
			words[0] = "FCALL_RO"
			Expect(Redis(l.Client, words...).Error()).To(MatchError(ContainSubstring("write flag")), s.function)
		}
		Expect(l.Call("lock_inspect").Error()).NotTo(HaveOccurred())
		Expect(l.Call("lock_version").Error()).To(HaveOccurred(), "it takes no keys")
		Expect(FCall(l.Client, "lock_version", nil).Error()).NotTo(HaveOccurred())
		Expect(l.Existing()).To(BeEmpty())
	})
})
