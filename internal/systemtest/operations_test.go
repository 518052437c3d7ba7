package systemtest

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// What lua/OPERATIONS.md says of the library and the locks, where no command there shows it.

// another is a newer library of the same major version.
const another = "1.99.0"

// take has a token take a lock, and returns its fence.
func take(s *redistest.Server, name, token string, lease time.Duration) int64 {
	GinkgoHelper()
	args := append([]string{"FCALL", "lock_acquire", "4"}, KeysOf(name)...)
	reply, err := s.Do(append(args, "lock-signal:{"+name+"}", token, strconv.FormatInt(lease.Milliseconds(), 10), "0")...).AsIntSlice()
	Expect(err).NotTo(HaveOccurred())
	Expect(reply[0]).To(BeEquivalentTo(1), "%s is busy", name)
	return reply[1]
}

// version is that of the library on a server.
func version(s *redistest.Server) (string, error) {
	text, err := s.Do("FCALL_RO", "lock_version", "0").ToString()
	if err != nil {
		text = "" // rueidis puts the error's text there
	}
	return text, err
}

func haveLibrary(s *redistest.Server, want string) {
	GinkgoHelper()
	Expect(version(s)).To(Equal(want))
}

func haveNoLibrary(s *redistest.Server) {
	GinkgoHelper()
	_, err := version(s)
	Expect(err).To(MatchError(ContainSubstring("Function not found")))
}

// A traffic of clients that take the locks a and b in turns, by FCALL and BLPOP alone.
type traffic struct {
	client rueidis.Client
	grants atomic.Int64
	stop   atomic.Bool
	all    sync.WaitGroup
	inside [2]atomic.Int32
	last   [2]atomic.Int64
}

func (t *traffic) start(ctx SpecContext, clients int) {
	for i := range clients {
		t.all.Go(func() {
			defer GinkgoRecover()
			defer t.stop.Store(true) // the others too, if this one failed
			for turn := 0; !t.stop.Load(); turn++ {
				t.turn(ctx, i%2, fmt.Sprintf("%d-%d", i, turn))
			}
		})
	}
}

func (t *traffic) turn(ctx SpecContext, lock int, token string) {
	GinkgoHelper()
	name := string(rune('a' + lock))
	signal := "lock-signal:{" + name + "}:" + token
	for !t.stop.Load() {
		reply, err := FCall(t.client, "lock_acquire", append(KeysOf(name), signal), token, "60000", "60000").AsIntSlice()
		Expect(err).NotTo(HaveOccurred())
		if reply[0] == 1 {
			Expect(t.last[lock].Swap(reply[1])).To(BeNumerically("<", reply[1]), "fences grow")
			Expect(t.inside[lock].Add(1)).To(BeEquivalentTo(1), "one holder")
			t.inside[lock].Add(-1)
			Expect(FCall(t.client, "lock_release", KeysOf(name), token).AsInt64()).To(BeEquivalentTo(1))
			t.grants.Add(1)
			return
		}
		err = t.client.Do(ctx, t.client.B().Blpop().Key(signal).Timeout(float64(reply[2])/1000).Build()).Error()
		Expect(rueidis.IsRedisNil(err) || err == nil).To(BeTrue(), "%v", err)
	}
}

var _ = Describe("the library", func() {
	It("is replaced and rolled back under traffic: no call fails, who waits stays blocked, in order, and fences grow", SpecTimeout(5*time.Minute),
		func(ctx SpecContext) {
			s := OwnServer()
			client := Connect(s.Addr())
			Put(client, redislock.Source())
			crew := newCrew(ctx, s.Addr(), "x", redislock.WithLease(minute))

			// One that waits in a single BLPOP all the time.
			take(s, "y", "holder", minute)
			signal := "lock-signal:{y}:waiter"
			queued := FCall(client, "lock_acquire", append(KeysOf("y"), signal), "waiter", "60000", "600000")
			Expect(queued.Error()).NotTo(HaveOccurred())
			blocking := Connect(s.Addr(), func(o *rueidis.ClientOption) { o.ClientName = "blocking" })
			signalled := make(chan string, 1)
			go func() {
				defer GinkgoRecover()
				pair, err := blocking.Do(ctx, blocking.B().Blpop().Key(signal).Timeout(600).Build()).AsStrSlice()
				Expect(err).NotTo(HaveOccurred())
				signalled <- pair[1]
			}()
			blocked := func() string { // its connection
				list, err := Redis(client, "CLIENT", "LIST").ToString()
				Expect(err).NotTo(HaveOccurred())
				found := regexp.MustCompile(`(?m)^id=(\d+) .* name=blocking .* flags=b .* cmd=blpop `).FindStringSubmatch(list)
				if found == nil {
					return ""
				}
				return found[1]
			}
			Eventually(blocked).ShouldNot(BeEmpty())
			before := blocked()

			Expect(Redis(client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
			t := &traffic{client: Connect(s.Addr())}
			t.start(ctx, 8)
			for round := 0; !t.stop.Load() && (round < 100 || t.grants.Load() < 1000); round++ {
				for _, number := range []string{another, redislock.Version} {
					Put(client, OfVersion(number))
					Expect(FCall(client, "lock_version", nil).ToString()).To(Equal(number))
				}
			}
			t.stop.Store(true)
			t.all.Wait()
			Eventually(blocked).Should(Equal(before), "the same BLPOP")
			Expect(Redis(client, "INFO", "commandstats").ToString()).NotTo(MatchRegexp(
				`cmdstat_(fcall|fcall_ro|blpop|function\|load):.*(rejected|failed)_calls=[1-9]`), "no call of anybody failed")

			Expect(FCall(client, "lock_release", KeysOf("y"), "holder").AsInt64()).To(BeEquivalentTo(1))
			Eventually(ctx, signalled).Should(Receive(HaveSuffix(" waiter")))
			crew.takeTurns(ctx)
		})

	const missing, older, major = "", "1.-1.0", "2.0.0"
	DescribeTable("an app and a library of another version:", func(ctx SpecContext, mode redislock.LoadMode, there string, works bool, after string) {
		s := OwnServer()
		if there != missing {
			Put(Connect(s.Addr()), OfVersion(there))
		}
		lock, err := NewLocker(s.Addr(), redislock.Options{LoadMode: mode}).Acquire(ctx, "x")
		if works {
			Expect(err).NotTo(HaveOccurred())
			Expect(lock.Release(ctx)).To(Succeed())
		} else {
			var wrong *redislock.VersionError
			Expect(AsVersion(err, &wrong)).To(BeTrue(), "%v", err)
			Expect(wrong.Have).To(Equal(there))
		}
		if after == missing {
			haveNoLibrary(s)
		} else {
			haveLibrary(s, after)
		}
	},
		Entry("LoadIfNeeded loads a missing one", redislock.LoadIfNeeded, missing, true, redislock.Version),
		Entry("LoadIfNeeded replaces an older one", redislock.LoadIfNeeded, older, true, redislock.Version),
		Entry("LoadIfNeeded works with the same", redislock.LoadIfNeeded, redislock.Version, true, redislock.Version),
		Entry("LoadIfNeeded works with a newer one", redislock.LoadIfNeeded, another, true, another),
		Entry("LoadIfNeeded refuses another major one", redislock.LoadIfNeeded, major, false, major),
		Entry("LoadVerify refuses a missing one", redislock.LoadVerify, missing, false, missing),
		Entry("LoadVerify refuses an older one", redislock.LoadVerify, older, false, older),
		Entry("LoadVerify works with the same", redislock.LoadVerify, redislock.Version, true, redislock.Version),
		Entry("LoadVerify works with a newer one", redislock.LoadVerify, another, true, another),
		Entry("LoadVerify refuses another major one", redislock.LoadVerify, major, false, major),
		Entry("LoadNever refuses a missing one", redislock.LoadNever, missing, false, missing),
		Entry("LoadNever works with an older one", redislock.LoadNever, older, true, older),
		Entry("LoadNever works with the same", redislock.LoadNever, redislock.Version, true, redislock.Version),
		Entry("LoadNever works with a newer one", redislock.LoadNever, another, true, another),
		Entry("LoadNever does not notice another major one", redislock.LoadNever, major, true, major),
	)

	It("that was rolled back is not noticed by who runs, refused by LoadVerify, and replaced again by the next app with LoadIfNeeded", func(ctx SpecContext) {
		s := OwnServer()
		running := NewLocker(s.Addr())
		lock := MustAcquire(ctx, running, "x")
		Put(Connect(s.Addr()), OfVersion(older))
		Expect(lock.Release(ctx)).To(Succeed())
		Expect(MustAcquire(ctx, running, "x").Release(ctx)).To(Succeed())
		_, err := NewLocker(s.Addr(), redislock.Options{LoadMode: redislock.LoadVerify}).Acquire(ctx, "x")
		Expect(err).To(MatchError(ContainSubstring("older")))
		haveLibrary(s, older)
		Expect(MustAcquire(ctx, NewLocker(s.Addr()), "x").Release(ctx)).To(Succeed())
		haveLibrary(s, redislock.Version)
	})

	It("survives FLUSHALL and FLUSHDB; FUNCTION FLUSH and FUNCTION DELETE take it away, on replicas too", func() {
		s := OwnServer("--repl-diskless-sync-delay", "0")
		replica := OwnServer("--replicaof", "127.0.0.1 "+strconv.Itoa(s.Port()))
		client := Connect(s.Addr())
		both := func() []string {
			one, _ := version(s)
			two, _ := version(replica)
			return []string{one, two}
		}
		for _, command := range [][]string{{"FUNCTION", "FLUSH"}, {"FUNCTION", "DELETE", "lock"}} {
			Put(client, redislock.Source())
			Eventually(both).Should(HaveEach(redislock.Version))
			for _, flush := range []string{"FLUSHALL", "FLUSHDB"} {
				Expect(Redis(client, flush).Error()).NotTo(HaveOccurred())
				caughtUp(s, replica)
				Expect(both()).To(HaveEach(redislock.Version), flush)
			}
			Expect(Redis(client, command...).Error()).NotTo(HaveOccurred())
			caughtUp(s, replica)
			haveNoLibrary(s)
			haveNoLibrary(replica)
		}
	})

	It("is on a replica that becomes primary, and gone from the replicas of a primary that came back without files", func() {
		s := OwnServer("--repl-diskless-sync-delay", "0")
		promoted, other := OwnServer("--replicaof", "127.0.0.1 "+strconv.Itoa(s.Port())), OwnServer("--replicaof", "127.0.0.1 "+strconv.Itoa(s.Port()))
		Put(Connect(s.Addr()), redislock.Source())
		take(s, "x", "me", 0)
		for _, replica := range []*redistest.Server{promoted, other} {
			Eventually(func() (string, error) { return version(replica) }).Should(Equal(redislock.Version))
			caughtUp(s, replica)
		}
		Expect(promoted.Do("REPLICAOF", "NO", "ONE").Error()).NotTo(HaveOccurred())
		haveLibrary(promoted, redislock.Version)
		Expect(promoted.Do("GET", "lock:{x}").ToString()).To(Equal("me"))

		Expect(s.Kill()).To(Succeed())
		Expect(s.Restart()).To(Succeed())
		Eventually(func() error { _, err := version(other); return err }).Should(MatchError(ContainSubstring("Function not found")))
		Expect(other.Do("GET", "lock:{x}").Error()).To(MatchError(rueidis.Nil))
	})

	It("is gone after a restart without files", func() {
		s := OwnServer()
		Put(Connect(s.Addr()), redislock.Source())
		Expect(s.Kill()).To(Succeed())
		Expect(s.Restart()).To(Succeed())
		haveNoLibrary(s)
	})

	It("comes back with an RDB file as at the last save, and so do the locks: those that were released since are held again", func() {
		s := OwnServer()
		client := Connect(s.Addr())
		Put(client, redislock.Source())
		take(s, "kept", "a", minute)
		take(s, "released", "b", 0)
		Expect(Redis(client, "SAVE").Error()).NotTo(HaveOccurred())
		Expect(FCall(client, "lock_release", KeysOf("released"), "b").AsInt64()).To(BeEquivalentTo(1))
		lost := take(s, "newer", "c", minute)
		Put(client, OfVersion(another))
		Expect(s.Kill()).To(Succeed())
		Expect(s.Restart()).To(Succeed())

		haveLibrary(s, redislock.Version)
		Expect(s.Do("GET", "lock:{kept}").ToString()).To(Equal("a"))
		Expect(s.Do("PTTL", "lock:{kept}").AsInt64()).To(And(BeNumerically(">", 0), BeNumerically("<=", minute.Milliseconds())), "by the clock")
		Expect(s.Do("GET", "lock:{released}").ToString()).To(Equal("b"))
		Expect(s.Do("PTTL", "lock:{released}").AsInt64()).To(BeEquivalentTo(-1))
		Expect(take(s, "newer", "d", minute)).To(BeNumerically(">", lost), "two hold it, the fences tell them apart")
	})

	It("comes back with an append-only file, everysec, and so do the locks", func() {
		s := OwnServer("--appendonly", "yes", "--appendfsync", "everysec")
		Put(Connect(s.Addr()), redislock.Source())
		take(s, "x", "me", minute)
		// While an fsync takes its time, Redis answers before it writes, for two seconds at most.
		Eventually(func() (string, error) { return s.Do("INFO", "persistence").ToString() }).Should(ContainSubstring("\naof_buffer_length:0"))
		Expect(s.Kill()).To(Succeed())
		Expect(s.Restart()).To(Succeed())
		haveLibrary(s, redislock.Version)
		Expect(s.Do("GET", "lock:{x}").ToString()).To(Equal("me"))
	})

	It("does not come from an RDB file where there should be an append-only one", func() {
		s := OwnServer("--appendonly", "yes")
		Put(Connect(s.Addr()), redislock.Source())
		Expect(s.Do("SAVE").Error()).NotTo(HaveOccurred())
		Expect(s.Kill()).To(Succeed())
		Expect(filepath.Join(s.Dir(), "dump.rdb")).To(BeAnExistingFile())
		Expect(os.RemoveAll(filepath.Join(s.Dir(), "appendonlydir"))).To(Succeed())
		Expect(s.Restart()).To(Succeed())
		haveNoLibrary(s)
	})

	It("as a dump of a newer server is refused", func() {
		s := OwnServer()
		Put(Connect(s.Addr()), redislock.Source())
		dump, err := s.Do("FUNCTION", "DUMP").ToString()
		Expect(err).NotTo(HaveOccurred())
		Expect(s.Do("FUNCTION", "RESTORE", dump, "REPLACE").Error()).NotTo(HaveOccurred())
		version, sum := len(dump)-10, len(dump)-8 // the version of the format, two bytes, and a checksum that is looked at after it
		newer := dump[:version] + "\xff\xff" + dump[sum:]
		Expect(s.Do("FUNCTION", "RESTORE", newer, "REPLACE").Error()).To(MatchError(ContainSubstring("DUMP payload version or checksum are wrong")))
	})
})
