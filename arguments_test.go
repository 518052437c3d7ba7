package redislock_test

import (
	"slices"
	"strconv"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/types"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("the function library", func() {
	var l RawLock
	BeforeEach(func(ctx SpecContext) { l = libraryAt(ctx, Server.Addr()) })

	DescribeTable("writes numbers of any size", func(lease int64) {
		ms, wait := strconv.FormatInt(lease, 10), min(lease, waitMax)
		Expect(AsInts(l.Call("lock_acquire", "h", ms, 0))).To(HaveExactElements(int64(1), BeNumerically(">", 0), lease, BeNumerically(">", 0)))
		Expect(l.PTTL(l.Lock)).To(Within(lease))
		Expect(AsInts(l.Call("lock_acquire", "a", ms, wait))).To(Queued(1))
		Expect(l.Inspect().Details[0][3].ToInt64()).To(Equal(lease))
		Expect(l.PTTL(l.Queue)).To(Within(wait))
	},
		Entry(nil, int64(20_000)), Entry(nil, int64(999_999_999)), Entry(nil, int64(1_000_000_000)), Entry(nil, int64(1_000_000_001)),
		Entry(nil, int64(2_999_999_999)), Entry(nil, int64(9_999_999_999_999)),
	)

	Describe("bad input", func() {
		// unchanged looks that nothing was written.
		unchanged := func(do func()) {
			GinkgoHelper()
			before := l.Snapshot()
			do()
			Expect(l.Snapshot()).To(Equal(before))
		}
		// good are arguments that would work.
		good := func(s signature) (keys, args []string) {
			keys = append(l.Keys(), l.Signal("h"))[:len(s.keys)]
			args = []string{"h", "60000", "60000", "1"}[:len(s.args)]
			return slices.Clone(keys), slices.Clone(args)
		}
		BeforeEach(func() { l.Contended("a", "b") })

		entries := func(of func(signature) bool) (all []any) {
			for _, s := range signatures {
				if of(s) {
					all = append(all, Entry(s.function, s))
				}
			}
			return all
		}

		DescribeTable("a wrong number of keys or arguments", append([]any{func(s signature) {
			keys, args := good(s)
			unchanged(func() {
				for _, wrong := range [][]string{append(keys, l.Signal("extra")), append(keys, l.Signal("extra"), l.Signal("more"))} {
					Expect(FCall(l.Client, s.function, wrong, args...).Error()).To(refuse("LOCKARG", append(s.keys, "keys")...))
				}
				for n := range keys {
					Expect(FCall(l.Client, s.function, keys[:n], args...).Error()).To(refuse("LOCKARG", append(s.keys, "keys")...))
				}
				Expect(FCall(l.Client, s.function, keys, append(args, "1")...).Error()).To(refuse("LOCKARG", append(s.args, "arguments")...))
				for n := range len(args) - s.optional {
					Expect(FCall(l.Client, s.function, keys, args[:n]...).Error()).To(refuse("LOCKARG", append(s.args, "arguments")...))
				}
			})
		}}, entries(func(signature) bool { return true })...)...)

		DescribeTable("an empty token", append([]any{func(s signature) {
			keys, args := good(s)
			args[0] = ""
			unchanged(func() { Expect(FCall(l.Client, s.function, keys, args...).Error()).To(refuse("LOCKARG", "TOKEN")) })
		}}, entries(func(s signature) bool { return len(s.args) > 0 })...)...)

		DescribeTable("anything but a decimal integer of up to 13 digits", append([]any{func(s signature) {
			keys, args := good(s)
			unchanged(func() {
				for i := 1; i < len(args); i++ {
					for _, bad := range []string{
						"", "-1", "-0", "+1", "1.5", "1.", ".5", "1e3", "0x10", " 1", "1 ", "1 1", "1\n", "\n1", "1,000", "nan", "inf", "-inf", "true",
						"12345678901234", "00000000000001", "1\x00", "\x001", "\u0661", "1\xb2", "1ms", strings.Repeat("9", 400),
					} {
						wrong := slices.Clone(args)
						wrong[i] = bad
						Expect(FCall(l.Client, s.function, keys, wrong...).Error()).To(refuse("LOCKARG", s.args[i]), "%q", bad)
					}
				}
			})
		}}, entries(func(s signature) bool { return len(s.args) > 1 })...)...)

		DescribeTable("the same key twice", append([]any{func(s signature) {
			_, args := good(s)
			unchanged(func() {
				for i := range s.keys {
					for j := range i {
						keys, _ := good(s)
						keys[i] = keys[j]
						Expect(FCall(l.Client, s.function, keys, args...).Error()).To(refuse("LOCKARG", s.keys[i], s.keys[j]))
					}
				}
			})
		}}, entries(func(s signature) bool { return len(s.keys) > 0 })...)...)

		DescribeTable("a key of the wrong type", append([]any{func(s signature) {
			keys, args := good(s)
			for i, key := range keys {
				for _, alone := range []bool{true, false} { // the only key that exists?
					if alone {
						Redis(l.Client, append([]string{"DEL"}, l.Existing()...)...)
					}
					Redis(l.Client, "DEL", key)
					if s.keys[i] == "lock" {
						Redis(l.Client, "LPUSH", key, "x")
					} else {
						Redis(l.Client, "SET", key, "x", "PX", "600000")
					}
					unchanged(func() {
						tokens := []string{"h", "a", "b", "new"}
						if s.keys[i] == "signal" { // only who may have to wait needs it
							tokens = tokens[1:]
							if alone {
								return
							}
						}
						for _, token := range tokens {
							if len(args) > 0 {
								args[0] = token
							}
							Expect(FCall(l.Client, s.function, keys, args...).Error()).To(refuse("WRONGTYPE"), "%s, %s", s.keys[i], token)
						}
					})
					Redis(l.Client, append([]string{"DEL"}, l.Existing()...)...)
					l.Contended("a", "b")
				}
			}
		}}, entries(func(s signature) bool { return len(s.keys) > 0 })...)...)
	})
})

// refuse is an error reply whose first word is this, that names these, and shows nothing of Lua.
func refuse(code string, names ...string) types.GomegaMatcher {
	all := []types.GomegaMatcher{HavePrefix(code + " ")}
	for _, name := range names {
		all = append(all, ContainSubstring(name))
	}
	for _, leak := range []string{"script:", "user_function", "stack", "lock.lua", "\n"} {
		all = append(all, Not(ContainSubstring(leak)))
	}
	return MatchError(And(all...))
}
