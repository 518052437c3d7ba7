package systemtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// refused is what Redis says to a user without the right; the second, inside a function of Redis 7.0.
const refused = "NOPERM|no permissions|can't run this command"

// users are the commands of SECURITY.md that make users, by the user's name, each as one line.
func users() map[string]string {
	GinkgoHelper()
	all := map[string]string{}
	joined := strings.ReplaceAll(codeBlocks("SECURITY.md", "sh")[0], "\\\n", "")
	for _, line := range regexp.MustCompile(`(?m)^redis-cli ACL SETUSER (lock-\w+) .*$`).FindAllStringSubmatch(joined, -1) {
		all[line[1]] = strings.Join(strings.Fields(line[0]), " ")
	}
	Expect(all).To(HaveLen(3))
	return all
}

// rightsOf are the words of such a line that give a right.
func rightsOf(line string) (rights []string) {
	GinkgoHelper()
	for _, word := range strings.Fields(line) {
		if regexp.MustCompile(`^'?[+~%&]`).MatchString(word) {
			rights = append(rights, word)
		}
	}
	Expect(rights).NotTo(BeEmpty())
	return rights
}

// without is such a line without one of its words.
func without(line, right string) string {
	return strings.Join(slices.DeleteFunc(strings.Fields(line), func(word string) bool { return word == right }), " ")
}

// additional are the rights that a row of the table in SECURITY.md names.
func additional(row string) string {
	GinkgoHelper()
	text, err := os.ReadFile(top + "SECURITY.md")
	Expect(err).NotTo(HaveOccurred())
	found := regexp.MustCompile(`(?m)^\| `+regexp.QuoteMeta(row)+".* \\| `(.*)` \\|$").FindAllStringSubmatch(string(text), -1)
	Expect(found).To(HaveLen(1), row)
	return strings.ReplaceAll(found[0][1], `\|`, "|")
}

// grant adds rights, written as for a shell, to a user.
func grant(ctx context.Context, to interface{ Port() int }, user, rights string) {
	GinkgoHelper()
	cli(ctx, to, "redis-cli ACL SETUSER "+user+" "+regexp.MustCompile(`\S*\|\S*`).ReplaceAllString(rights, "'$0'"))
}

// login makes a client one of the users of SECURITY.md.
func login(user string) func(*rueidis.ClientOption) {
	return func(o *rueidis.ClientOption) {
		o.Username, o.Password = user, strings.TrimPrefix(user, "lock-")+"-password"
	}
}

// ofUser makes a Locker that logs in, closed after the spec.
func ofUser(addr, user string, options redislock.Options) *redislock.Locker {
	GinkgoHelper()
	l, err := redislock.New(Connect(addr, login(user)), options)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(l.Close)
	return l
}

// life is all that an app does with a lock through this package. It ends with the first error.
func life(ctx context.Context, client rueidis.Client, name string) error {
	ctx, cancel := context.WithTimeout(ctx, Soon)
	defer cancel()
	l, err := redislock.New(client, redislock.Options{LoadMode: redislock.LoadVerify})
	if err != nil {
		return err
	}
	defer l.Close()
	lock, err := l.Acquire(ctx, name, redislock.WithoutExpiry())
	if err != nil {
		return err
	}
	if err := lock.Extend(ctx, 2*time.Second); err != nil {
		return err
	}
	if err := renewal(ctx, lock); err != nil {
		return err
	}
	if err := lock.Release(ctx); err != nil {
		return err
	}
	for range 2 { // a queue that was empty once is another case
		if err := contention(ctx, l, name); err != nil {
			return err
		}
	}
	lock, err = l.TryAcquire(ctx, name)
	if err != nil {
		return err
	}
	if held, err := l.Reset(ctx, name); err != nil || !held {
		return fmt.Errorf("reset: %v %w", held, err)
	}
	if err := lock.Release(ctx); !errors.Is(err, redislock.ErrNotHeld) {
		return fmt.Errorf("after reset: %w", err)
	}
	return nil
}

// together is what holding a lock together takes beside that, and the second waiter that calls again.
func together(l RawLock) error {
	for _, token := range []string{"a", "b", "c", "d", "d"} {
		if err := l.Call("lock_acquire", token, Long, Long, 2).Error(); err != nil {
			return err
		}
	}
	return nil
}

// renewal returns when the lock was renewed.
func renewal(ctx context.Context, lock *redislock.Lock) error {
	first, _ := lock.Deadline()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if deadline, _ := lock.Deadline(); deadline.After(first) {
			return nil
		}
		select {
		case <-tick.C:
		case <-lock.Context().Done():
			return context.Cause(lock.Context())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// contention has two wait for a lock, and get it one after the other.
func contention(ctx context.Context, l *redislock.Locker, name string) error {
	lock, err := l.Acquire(ctx, name)
	if err != nil {
		return err
	}
	through := make(chan error, 2)
	for range cap(through) {
		go func() {
			lock, err := l.Acquire(ctx, name)
			if err == nil {
				err = lock.Release(ctx)
			}
			through <- err
		}()
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for waiting := 0; waiting < cap(through); {
		select {
		case err := <-through:
			return err
		case <-tick.C:
		}
		state, err := l.Inspect(ctx, name)
		if err != nil {
			return err
		}
		waiting = state.Waiting
	}
	if _, err := l.TryAcquire(ctx, name); !errors.Is(err, redislock.ErrNotAcquired) {
		return fmt.Errorf("try: %w", err)
	}
	if err := lock.Release(ctx); err != nil {
		return err
	}
	for range cap(through) {
		if err := <-through; err != nil {
			return err
		}
	}
	return nil
}

// deadWaiters is what the library does for those who wait for long or have died: steps that life has no time for.
func deadWaiters(ctx context.Context, l RawLock) error {
	return InterceptGomegaFailure(func() {
		free := func() bool { return l.Inspect().Holder == "" }

		l.Contended("a")
		Expect(l.Acquire("a", Long, Long)).To(Queued(1), "checks in")
		Expect(l.Release("h")).To(Equal(int64(1)))
		Expect(l.Inspect().Holder).To(Equal("a"), "handed over at once")
		Expect(l.Release("a")).To(Equal(int64(1)))

		// c leaves a signal unread: its second waiter is skipped.
		c := l.As(l.Signal("c"))
		l.Contended()
		Expect(c.Acquire("c1", 1, Long)).To(Queued(1))
		Expect(c.Acquire("c2", 1, Long)).To(Queued(2))
		Expect(l.Acquire("b", Long, Long)).To(Queued(3))
		Expect(l.Release("h")).To(Equal(int64(1)))
		Eventually(ctx, free).Should(BeTrue())
		Expect(l.Acquire("b", Long, Long)).To(Hold())
		Expect(l.Release("b")).To(Equal(int64(1)))

		// d has called since it left one unread: only that is removed.
		d := l.As(l.Signal("d"))
		l.Contended()
		Expect(d.Acquire("d1", 1, Long)).To(Queued(1))
		Expect(l.Release("h")).To(Equal(int64(1)))
		Eventually(ctx, free).Should(BeTrue())
		l.Contended()
		Expect(d.Acquire("d2", Long, Long)).To(Queued(1))
		Expect(l.Release("h")).To(Equal(int64(1)))
		Expect(l.Inspect().Holder).To(Equal("d2"))
		Expect(l.Release("d2")).To(Equal(int64(1)))
	})
}

// harmless is what SECURITY.md says may be refused, by its names in ACL LOG.
var harmless = []string{"info", "cluster|slots", "cluster|shards", "ping", "client|setinfo", "role"}

// refusals are the commands, keys and channels that a server has refused to somebody.
func refusals(s *redistest.Server) (all []string) {
	GinkgoHelper()
	entries, err := s.Do("ACL", "LOG").ToArray()
	Expect(err).NotTo(HaveOccurred())
	for _, entry := range entries {
		fields, err := entry.AsMap()
		Expect(err).NotTo(HaveOccurred())
		object := fields["object"]
		text, err := object.ToString()
		Expect(err).NotTo(HaveOccurred())
		all = append(all, text)
	}
	return all
}

// rawOf is the lock of this name, for a user who may not look which keys exist.
func rawOf(client rueidis.Client, name string) RawLock {
	k := KeysOf(name)
	return RawLock{Client: client, Lock: k[0], Queue: k[1], State: k[2]}
}

var _ = Describe("the users of SECURITY.md", func() {
	var (
		own   *redistest.Server
		admin rueidis.Client
	)
	BeforeEach(func(ctx SpecContext) {
		own = OwnServer("--enable-debug-command", "yes")
		admin = Connect(own.Addr())
		Put(admin, redislock.Source())
		cli(ctx, own, codeBlocks("SECURITY.md", "sh")[0])
	})

	// expectRefused runs a command that the user must not be able to run.
	expectRefused := func(user string, commands ...string) {
		GinkgoHelper()
		client := Connect(own.Addr(), login(user))
		for _, command := range commands {
			Expect(Redis(client, strings.Fields(command)...).Error()).To(MatchError(HavePrefix("NOPERM")), command)
		}
	}
	everywhere := []string{"FUNCTION DELETE lock", "FUNCTION FLUSH", "FUNCTION RESTORE x", "FUNCTION DUMP", "FUNCTION LIST",
		"FUNCTION KILL", "FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET *", "CONFIG SET maxmemory-policy allkeys-lru", "ACL LIST",
		"ACL SETUSER me on", "ACL WHOAMI", "SHUTDOWN NOSAVE", "DEBUG SLEEP 0", "EVAL x 0", "SCRIPT FLUSH", "MODULE LIST", "INFO",
		"CLIENT LIST", "CLIENT KILL TYPE normal", "MONITOR", "SAVE", "BGREWRITEAOF", "REPLICAOF NO ONE", "SELECT 1", "SWAPDB 0 1",
		"MULTI", "PUBLISH c m", "RANDOMKEY", "LATENCY RESET", "SLOWLOG GET", "MIGRATE 127.0.0.1 1 lock:{x} 0 1",
		"GET other", "SET other x", "DEL other", "SET lock other", "GET locker:{x}", "DEL lock-orders:{x}",
		"FCALL lock_reset 3 other:{x} other-queue:{x} other-state:{x}",
		"FCALL_RO lock_inspect 3 other:{x} other-queue:{x} other-state:{x}",
	}

	Describe("app", func() {
		It("can do all that an app does, and nothing else", func(ctx SpecContext) {
			Expect(life(ctx, Connect(own.Addr(), login("lock-app")), "x")).To(Succeed())
			Expect(deadWaiters(ctx, rawOf(Connect(own.Addr(), login("lock-app")), "x"))).To(Succeed())
			Expect(refusals(own)).To(ContainElement("info"))
			Expect(refusals(own)).To(HaveEach(BeElementOf(harmless)))
			expectRefused("lock-app", append(everywhere, "FUNCTION LOAD x", "FUNCTION LOAD REPLACE x", "SCAN 0", "ROLE", "WAIT 0 0",
				"RENAME lock:{x} lock:{y}", "GETDEL lock:{x}", "MSET lock:{x} y", "DEL lock:{x}", "PERSIST other:{x}", "LPUSH lock-signal:x y",
				"FCALL lock_acquire 4 lock:{x} lock-queue:{x} lock-state:{x} other:{x} t 1 1")...)
		})

		It("has no right that it does not need; a missing one is an error at once, which names the lock", Longest, func(ctx SpecContext) {
			line := users()["lock-app"]
			unnoticed := []string{}
			for i, right := range rightsOf(line) {
				cli(ctx, own, without(line, right))
				client, name := Connect(own.Addr(), login("lock-app")), fmt.Sprintf("x%d", i)
				err := life(ctx, client, name)
				if err == nil {
					unnoticed = append(unnoticed, right)
					if slices.Contains([]string{"+zcount", "+zrank", "+zscore"}, right) {
						Expect(together(rawOf(client, name))).To(MatchError(MatchRegexp(refused)), "%s", right)
					} else {
						Expect(deadWaiters(ctx, rawOf(client, name))).NotTo(Succeed(), "%s", right)
					}
					continue
				}
				Expect(err).To(MatchError(And(MatchRegexp(refused), ContainSubstring(`"`+name+`"`))), "%s", right)
				Expect(err).NotTo(MatchError(redislock.ErrNotAcquired), "%s", right)
				if right != "+zrem" && right != "+hmget" { // who has no right to leave stays for Options.WaitTTL
					Expect(Redis(admin, "ZCARD", KeysOf(name)[1]).ToInt64()).To(BeZero(), "%s", right)
				}
			}
			Expect(unnoticed).To(ConsistOf("+zrank", "+zremrangebyrank", "+lindex", "+lpop", "+rpop", "+rpush", "+zcount", "+zscore"))
			cli(ctx, own, line)
			Expect(together(rawOf(Connect(own.Addr(), login("lock-app")), "together"))).To(Succeed())
			Expect(life(ctx, Connect(own.Addr(), login("lock-app")), "x")).To(Succeed())
		})

		It("may be given more", func(ctx SpecContext) {
			replicated := func() error {
				return Second(ofUser(own.Addr(), "lock-app", redislock.Options{LoadMode: redislock.LoadVerify}).
					Acquire(ctx, "x", redislock.WithReplicas(1, time.Millisecond)))
			}
			Expect(replicated()).To(MatchError(And(ContainSubstring("NOPERM"), ContainSubstring(`"x"`))))
			Expect(Redis(admin, "EXISTS", "lock:{x}").ToInt64()).To(BeZero(), "released")
			grant(ctx, own, "lock-app", additional("`WithReplicas`"))
			Expect(replicated()).To(MatchError(redislock.ErrNotReplicated))

			l := ofUser(own.Addr(), "lock-app", redislock.Options{LoadMode: redislock.LoadVerify})
			MustAcquire(ctx, l, "x")
			Expect(Second(l.ResetAll(ctx))).To(MatchError(ContainSubstring("NOPERM")))
			grant(ctx, own, "lock-app", additional("`ResetAll`"))
			Expect(l.ResetAll(ctx)).To(Equal(1))

			Expect(Redis(admin, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru").Error()).NotTo(HaveOccurred())
			warned := func() []string {
				logger, lines := logged()
				l := ofUser(own.Addr(), "lock-app", redislock.Options{LoadMode: redislock.LoadVerify, Logger: logger})
				Expect(MustAcquire(ctx, l, "x").Release(ctx)).To(Succeed())
				return lines()
			}
			Expect(warned()).To(BeEmpty(), "and no error")
			grant(ctx, own, "lock-app", additional("being warned"))
			Expect(warned()).To(aboutEviction("allkeys-lru", own.Addr()))
			Expect(Redis(admin, "CONFIG", "SET", "maxmemory-policy", "noeviction").Error()).NotTo(HaveOccurred())

			for row, change := range map[string]func(*rueidis.ClientOption){
				"a rueidis client without `DisableCache": func(o *rueidis.ClientOption) { o.DisableCache = false },
				"a rueidis client with `SelectDB`":       func(o *rueidis.ClientOption) { o.SelectDB = 1 },
			} {
				option := ClientOption(own.Addr())
				login("lock-app")(&option)
				change(&option)
				_, err := rueidis.NewClient(option)
				Expect(err).To(MatchError(ContainSubstring("NOPERM")), row)
				grant(ctx, own, "lock-app", additional(row))
				Expect(life(ctx, Connect(own.Addr(), login("lock-app"), change), "x")).To(Succeed(), row)
			}
		})

		It("works with LoadIfNeeded if the library is there, and is told what to do if not", func(ctx SpecContext) {
			Expect(MustAcquire(ctx, ofUser(own.Addr(), "lock-app", redislock.Options{}), "x").Release(ctx)).To(Succeed())
			for _, library := range []string{"", OfVersion("1.-1.0")} {
				Expect(Redis(admin, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
				if library != "" {
					Put(admin, library)
				}
				err := Second(ofUser(own.Addr(), "lock-app", redislock.Options{}).Acquire(ctx, "x"))
				var version *redislock.VersionError
				Expect(AsVersion(err, &version)).To(BeTrue(), "%v", err)
				Expect(err).To(MatchError(And(ContainSubstring(`"x"`), ContainSubstring("may not load it: NOPERM"), ContainSubstring("redis-cli -h 127.0.0.1"))))
			}
		})

		It("is told at once when it loses its rights while it holds and waits", func(ctx SpecContext) {
			l := ofUser(own.Addr(), "lock-app", redislock.Options{LoadMode: redislock.LoadVerify})
			lock := MustAcquire(ctx, l, "x", redislock.WithLease(3*time.Second))
			failed := make(chan error, 1)
			go func() {
				_, err := l.Acquire(ctx, "x")
				failed <- err
			}()
			Eventually(WaitingFor(NewLocker(own.Addr()), "x")).Should(Equal(1))
			cli(ctx, own, "redis-cli ACL SETUSER lock-app -fcall")
			deadline, _ := lock.Deadline()
			Expect(lock.Extend(ctx, time.Hour)).To(MatchError(And(ContainSubstring("NOPERM"), ContainSubstring(`extend "x"`))))
			Expect(<-failed).To(MatchError(And(ContainSubstring("NOPERM"), ContainSubstring(`acquire "x"`))), "at its next check-in")
			<-lock.Context().Done()
			Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
			now, _ := lock.Deadline()
			Expect(now).To(Equal(deadline), "not renewed")
			Expect(lock.Release(ctx)).To(MatchError(And(ContainSubstring("NOPERM"), ContainSubstring(`release "x"`))))
			for _, setting := range []string{"'>another'", "off"} {
				cli(ctx, own, "redis-cli ACL SETUSER lock-app resetpass "+setting)
				Expect(Redis(admin, "CLIENT", "KILL", "USER", "lock-app").Error()).NotTo(HaveOccurred())
				Expect(Second(l.Acquire(ctx, "x"))).To(MatchError(And(ContainSubstring("WRONGPASS"), ContainSubstring(`acquire "x"`))))
			}
		})

		It("pushes no signal to a list of somebody else, whatever the state says", func() {
			Expect(Redis(admin, "RPUSH", "other", "x").Error()).NotTo(HaveOccurred())
			forged := func() RawLock {
				l := rawOf(admin, "x")
				l.Contended("w")
				fields, err := Redis(admin, "HGET", l.State, "@w").ToString()
				Expect(err).NotTo(HaveOccurred())
				fields = strings.Replace(fields, l.Signal("w"), "other", 1)
				Expect(fields).To(HaveSuffix(" other"))
				Expect(Redis(Connect(own.Addr(), login("lock-app")), "HSET", l.State, "@w", fields).Error()).NotTo(HaveOccurred())
				return l
			}
			l := forged()
			Expect(l.With(Connect(own.Addr(), login("lock-app"))).Release("h")).To(Equal(int64(1)))
			Expect(Redis(admin, "LRANGE", "other", "0", "-1").AsStrSlice()).To(Equal([]string{"x"}))
			Expect(l.Acquire("w", Long, Long)).To(Hold(), "it is told when it checks in")
			Expect(l.Release("w")).To(Equal(int64(1)))

			Expect(forged().Release("h")).To(Equal(int64(1)))
			Expect(Redis(admin, "LRANGE", "other", "0", "-1").AsStrSlice()).To(Equal([]string{"x"}), "nor where an administrator releases")
		})
	})

	It("are not kept from forging each other's signals: that is found out at the next call", func(ctx SpecContext) {
		forger := rawOf(Connect(own.Addr(), login("lock-app")), "x")
		forger.Contended()
		l := ofUser(own.Addr(), "lock-app", redislock.Options{LoadMode: redislock.LoadVerify})
		next := Acquiring(ctx, l, "x", 1)
		seen := StateOf(l, "x").Waiters[0]
		var lock *redislock.Lock
		for lock == nil {
			forged := fmt.Sprintf("7 %d %s", forger.Inspect().Now+Claim, seen.Token)
			Expect(Redis(forger.Client, "RPUSH", seen.Signal, forged).Error()).NotTo(HaveOccurred())
			select {
			case got, ok := <-next:
				Expect(ok).To(BeTrue())
				lock = got
			case <-time.After(time.Second): // it has run out before it was read
			}
		}
		Expect(forger.Inspect().Holder).To(Equal("h"))
		Expect(lock.Fence()).To(BeEquivalentTo(7))
		<-lock.Context().Done()
		Expect(context.Cause(lock.Context())).To(MatchError(redislock.ErrLost))
		Expect(lock.Release(ctx)).To(MatchError(redislock.ErrNotHeld))
	})

	Describe("loader", func() {
		load := func(ctx context.Context) error { return redislock.Load(ctx, Connect(own.Addr(), login("lock-loader"))) }
		const byHand = "redis-cli --user lock-loader --pass loader-password --no-auth-warning -x FUNCTION LOAD REPLACE < lua/lock.lua"

		It("can load and replace the library, and nothing else", func(ctx SpecContext) {
			for _, library := range []string{"", OfVersion("1.-1.0")} {
				for _, how := range []func(){func() { Expect(load(ctx)).To(Succeed()) }, func() { cli(ctx, own, byHand) }} {
					Expect(Redis(admin, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
					if library != "" {
						Put(admin, library)
					}
					how()
					Expect(FCall(admin, "lock_version", nil).ToString()).To(Equal(redislock.Version))
				}
			}
			Expect(MustAcquire(ctx, ofUser(own.Addr(), "lock-app", redislock.Options{LoadMode: redislock.LoadVerify}), "x").Release(ctx)).To(Succeed())
			expectRefused("lock-loader", append(everywhere, "SCAN 0", "GET lock:{x}", "DEL lock:{x}", "TIME",
				"FCALL lock_reset 3 lock:{x} lock-queue:{x} lock-state:{x}",
				"FCALL_RO lock_inspect 3 lock:{x} lock-queue:{x} lock-state:{x}")...)
		})

		It("has no right that it does not need", func(ctx SpecContext) {
			line := users()["lock-loader"]
			for _, right := range rightsOf(line) {
				Expect(Redis(admin, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
				cli(ctx, own, without(line, right))
				Expect(load(ctx)).To(MatchError(ContainSubstring("NOPERM")), "%s", right)
			}
			cli(ctx, own, without(line, "+fcall_ro"))
			cli(ctx, own, byHand)
		})
	})

	Describe("observer", func() {
		look := func(ctx context.Context) error {
			client := Connect(own.Addr(), login("lock-observer"))
			l, err := redislock.New(client, redislock.Options{LoadMode: redislock.LoadVerify})
			Expect(err).NotTo(HaveOccurred())
			defer l.Close()
			found, err := Redis(client, "SCAN", "0", "MATCH", "lock:*", "COUNT", "1000", "TYPE", "string").AsScanEntry()
			if err != nil {
				return err
			}
			Expect(found.Elements).To(Equal([]string{"lock:{x}"}))
			state, err := l.Inspect(ctx, "x")
			if err != nil {
				return err
			}
			Expect(state.Waiting).To(Equal(1))
			_, err = l.Inspect(ctx, "together")
			return err
		}
		BeforeEach(func() {
			rawOf(admin, "x").Contended("w")
			Expect(together(rawOf(admin, "together"))).To(Succeed())
		})

		It("sees the locks and their queues, and changes nothing", func(ctx SpecContext) {
			before := rawOf(admin, "x").Snapshot()
			Expect(look(ctx)).To(Succeed())
			expectRefused("lock-observer", append(everywhere, "FUNCTION LOAD x", "SET lock:{x} y", "DEL lock:{x}", "PEXPIRE lock:{x} 1",
				"HSET lock-state:{x} fence 1", "ZREM lock-queue:{x} w", "LPOP lock-signal:{x}:w", "LRANGE lock-signal:{x}:w 0 -1", "BLPOP lock-signal:{x}:w 1",
				"FCALL lock_release 3 lock:{x} lock-queue:{x} lock-state:{x} h",
				"FCALL lock_reset 3 lock:{x} lock-queue:{x} lock-state:{x}")...)
			client := Connect(own.Addr(), login("lock-observer"))
			for _, function := range []string{"lock_release", "lock_reset", "lock_acquire", "lock_extend"} {
				reply := Redis(client, "FCALL_RO", function, "3", "lock:{x}", "lock-queue:{x}", "lock-state:{x}", "h")
				Expect(reply.Error()).To(MatchError(ContainSubstring("write flag")), function)
			}
			grant(ctx, own, "lock-observer", "+fcall +@write") // the keys are only for reading, whatever else is given
			expectRefused("lock-observer", "FCALL lock_release 3 lock:{x} lock-queue:{x} lock-state:{x} h", "DEL lock:{x}")
			Expect(rawOf(admin, "x").Snapshot()).To(Equal(before))
		})

		It("has no right that it does not need", func(ctx SpecContext) {
			line := users()["lock-observer"]
			// Only of a waiter whose entry was lost, lock_inspect asks with HGET.
			Expect(Redis(admin, "HDEL", "lock-state:{x}", "@w", "since").ToInt64()).To(BeEquivalentTo(2))
			for _, right := range rightsOf(line) {
				cli(ctx, own, without(line, right))
				Expect(look(ctx)).To(MatchError(MatchRegexp(refused)), "%s", right)
			}
		})
	})

	It("get one lock for a name with and without braces", func(ctx SpecContext) {
		l := ofUser(own.Addr(), "lock-app", redislock.Options{})
		MustAcquire(ctx, l, "x")
		Expect(Second(l.TryAcquire(ctx, "{x}"))).To(MatchError(redislock.ErrNotAcquired))
	})

	It("have a way to compare the library in the server with the file", func(ctx SpecContext) {
		compare := codeBlocks("SECURITY.md", "sh")[1]
		Expect(cli(ctx, own, compare)).To(BeEmpty())
		Put(admin, strings.TrimSuffix(redislock.Source(), "\n")) // by FUNCTION LOAD "$(cat lua/lock.lua)"
		Expect(cli(ctx, own, compare)).To(BeEmpty())
		Put(admin, redislock.Source()+"-- more\n")
		Expect(cli(ctx, own, "! "+compare)).NotTo(BeEmpty())
	})
})

var _ = Describe("the users of SECURITY.md in a cluster", func() {
	var (
		cluster *redistest.Cluster
		addr    string
	)
	BeforeEach(func(ctx SpecContext) {
		var err error
		cluster, err = redistest.StartCluster(3, 1, Calm)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(cluster.Stop)
		addr = cluster.Addrs()[0]
		for _, node := range cluster.Servers {
			cli(ctx, node, codeBlocks("SECURITY.md", "sh")[0])
		}
	})
	everywhere := func(ctx context.Context, user, rights string) {
		for _, node := range cluster.Servers {
			grant(ctx, node, user, rights)
		}
	}

	It("need the rights that the table says, and no others", Longest, func(ctx SpecContext) {
		more := additional("Redis Cluster")
		Expect(strings.Fields(more)).To(HaveLen(3))
		for user := range users() {
			everywhere(ctx, user, more)
		}
		Expect(redislock.Load(ctx, Connect(addr, login("lock-loader")))).To(Succeed())
		app := Connect(addr, login("lock-app"))
		for i := range 3 { // on several nodes
			Expect(life(ctx, app, fmt.Sprintf("x%d", i))).To(Succeed())
		}
		Expect(Second(ofUser(addr, "lock-observer", redislock.Options{LoadMode: redislock.LoadVerify}).Inspect(ctx, "x1"))).To(Succeed())
		for _, node := range cluster.Servers {
			Expect(refusals(node)).To(Or(BeEmpty(), HaveEach(BeElementOf(harmless))))
		}

		// A waiter's BLPOP while its slot is moved.
		signal := "lock-signal:{moving}:x"
		from := cluster.Owner(signal)
		to := cluster.Primaries()[0]
		if to == from {
			to = cluster.Primaries()[1]
		}
		pop := func(limit time.Duration) error {
			trying, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			return app.Do(trying, app.B().Blpop().Key(signal).Timeout(0.001).Build()).Error()
		}
		began := false
		Expect(cluster.Move(signal, to, func(int) {
			if began {
				return
			}
			began = true
			Expect(rueidis.IsRedisNil(pop(Soon))).To(BeTrue())
			everywhere(ctx, "lock-app", "-asking")
			Expect(pop(300 * time.Millisecond)).To(MatchError(context.DeadlineExceeded))
			everywhere(ctx, "lock-app", "+asking")
		})).To(Succeed())

		shards := func(o *rueidis.ClientOption) { o.ClusterOption.PreferClusterShards = true }
		Expect(life(ctx, Connect(addr, login("lock-app"), shards), "x")).To(Succeed())
		everywhere(ctx, "lock-app", "-cluster|slots")
		single := Connect(addr, login("lock-app")).Mode() == rueidis.ClientModeStandalone
		Expect(single).To(Equal(slices.Contains(refusals(cluster.Servers[0]), "cluster|slots")), "from version 8 on rueidis asks for the shards")
		everywhere(ctx, "lock-app", "-cluster|shards")
		for _, change := range []func(*rueidis.ClientOption){func(*rueidis.ClientOption) {}, shards} {
			Expect(Connect(addr, login("lock-app"), change).Mode()).To(Equal(rueidis.ClientModeStandalone), "as if it were a single server")
		}
	})
})

var _ = Describe("the users of SECURITY.md with Sentinels", func() {
	It("need the rights that the table says, and no others", Longest, func(ctx SpecContext) {
		all, err := redistest.StartSentinel(0, 1, Calm)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(all.Stop)
		primary, watcher := all.Servers[0], all.Watchers[0]
		SetRoute(primary.Addr(), Route{Sentinels: all.Addrs()})
		cli(ctx, primary, codeBlocks("SECURITY.md", "sh")[0])
		watch := "redis-cli ACL SETUSER watch reset on '>watch-password' resetchannels"
		cli(ctx, watcher, watch)
		onBoth := func(o *rueidis.ClientOption) {
			login("lock-app")(o)
			o.Sentinel.Username, o.Sentinel.Password = "watch", "watch-password"
		}
		option := ClientOption(primary.Addr())
		onBoth(&option)

		more := additional("Sentinel: the user of the Sentinels")
		_, err = rueidis.NewClient(option)
		Expect(err).To(MatchError(ContainSubstring("NOPERM")))
		grant(ctx, watcher, "watch", more)
		_, err = rueidis.NewClient(option)
		Expect(err).To(MatchError(ContainSubstring("'role'")))
		for user := range users() {
			grant(ctx, primary, user, additional("Sentinel: any of the three"))
		}
		Expect(watcher.Do("ACL", "LOG", "RESET").Error()).NotTo(HaveOccurred())
		Put(Connect(primary.Addr(), func(o *rueidis.ClientOption) { o.Sentinel.Username, o.Sentinel.Password = "watch", "watch-password" }), redislock.Source())
		Expect(life(ctx, Connect(primary.Addr(), onBoth), "x")).To(Succeed())
		Expect(refusals(watcher)).To(Or(BeEmpty(), HaveEach(BeElementOf(harmless))))
		Expect(refusals(primary)).To(Or(BeEmpty(), HaveEach(BeElementOf(harmless))))
		for _, right := range rightsOf(more) {
			cli(ctx, watcher, watch)
			grant(ctx, watcher, "watch", without(more, right))
			Expect(watcher.Do("ACL", "LOG", "RESET").Error()).NotTo(HaveOccurred())
			if client, err := rueidis.NewClient(option); err == nil {
				DeferCleanup(client.Close)
			}
			Eventually(refusals).WithArguments(watcher).Should(ContainElement(strings.Trim(right, "'")[1:]), "%s", right)
		}
	})
})
