package redislock_test

import (
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = OnEachTopology("loading the library", func() {
	var (
		addr   string
		client rueidis.Client
	)
	BeforeEach(func() {
		addr = OwnRedis().Addr()
		client = Connect(addr)
	})
	versionThere := func() (string, error) { return FCall(client, "lock_version", nil).ToString() }

	It("loads it where it is missing, and does nothing where it is the same", func(ctx SpecContext) {
		Expect(redislock.Load(ctx, client)).To(Succeed())
		Expect(versionThere()).To(Equal(redislock.Version))
		Expect(redislock.Load(ctx, client)).To(Succeed())
		Expect(MustAcquire(ctx, NewLocker(addr), "x").Release(ctx)).To(Succeed())
		Expect(CommandCalls(client)["function|load"]).To(Equal(1))
	})

	It("replaces an older one of the same major version", func(ctx SpecContext) {
		Put(client, OfVersion("1.-1.0"))
		Expect(redislock.Load(ctx, client)).To(Succeed())
		Expect(versionThere()).To(Equal(redislock.Version))
	})

	It("leaves a newer one alone, in every mode, and works with it", func(ctx SpecContext) {
		Put(client, OfVersion("1.99.0"))
		for _, mode := range []redislock.LoadMode{redislock.LoadIfNeeded, redislock.LoadVerify, redislock.LoadNever} {
			Expect(MustAcquire(ctx, NewLocker(addr, redislock.Options{LoadMode: mode}), "x").Release(ctx)).To(Succeed())
		}
		Expect(versionThere()).To(Equal("1.99.0"))
	})

	DescribeTable("refuses, and changes nothing,", func(ctx SpecContext, library func() string, have, reason string) {
		Put(client, library())
		before, err := Redis(client, "FUNCTION", "DUMP").ToString()
		Expect(err).NotTo(HaveOccurred())
		for _, err := range []error{redislock.Load(ctx, client), Second(NewLocker(addr).Acquire(ctx, "x"))} {
			var version *redislock.VersionError
			Expect(err).To(MatchError(ContainSubstring("redis-cli -h 127.0.0.1 -p " + strings.Split(addr, ":")[1] + " -x FUNCTION LOAD")))
			Expect(AsVersion(err, &version)).To(BeTrue())
			Expect(version.Node).To(Equal(addr))
			Expect(version.Have).To(Equal(have))
			Expect(version.Want).To(Equal(redislock.Version))
			Expect(version.Reason).To(ContainSubstring(reason))
		}
		Expect(Redis(client, "FUNCTION", "DUMP").ToString()).To(Equal(before))
	},
		Entry("a newer major version", func() string { return OfVersion("2.0.0") }, "2.0.0", "major"),
		Entry("an older major version", func() string { return OfVersion("0.9.9") }, "0.9.9", "major"),
		Entry("what is no version", func() string { return OfVersion("latest") }, "latest", "not ours"),
		Entry("a lock_version that is somebody else's", func() string {
			return "#!lua name=mine\nredis.register_function{function_name='lock_version', callback=function() return 7 end, flags={'no-writes'}}"
		}, "unknown", "somebody else's"),
		Entry("a library of our name that is somebody else's", func() string {
			return "#!lua name=lock\nredis.register_function('mine', function() return 7 end)"
		}, "", "taken"),
		Entry("a function of our name that is somebody else's", func() string {
			return "#!lua name=mine\nredis.register_function('lock_acquire', function() return 7 end)"
		}, "", "taken"),
	)

	It("verifies for a user without the right to load, who can work once it is there", func(ctx SpecContext) {
		Expect(Redis(client, "ACL", "SETUSER", "app", "on", ">secret", "~lock*", "-@all", "+@read", "+@write", "+@connection",
			"+fcall", "+fcall_ro", "+time", "+role", "+cluster", "-function").Error()).NotTo(HaveOccurred())
		app := Connect(addr, func(o *rueidis.ClientOption) { o.Username, o.Password = "app", "secret" })
		lockerOf := func(mode redislock.LoadMode) *redislock.Locker {
			l, err := redislock.New(app, redislock.Options{LoadMode: mode})
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(l.Close)
			return l
		}
		var version *redislock.VersionError
		_, err := lockerOf(redislock.LoadIfNeeded).Acquire(ctx, "x")
		Expect(err).To(MatchError(ContainSubstring("NOPERM")))
		verifying, never := lockerOf(redislock.LoadVerify), lockerOf(redislock.LoadNever)
		for _, l := range []*redislock.Locker{verifying, never} {
			_, err = l.TryAcquire(ctx, "x")
			Expect(AsVersion(err, &version)).To(BeTrue())
			Expect(version.Reason).To(ContainSubstring("missing"))
		}
		Expect(redislock.Load(ctx, client)).To(Succeed())
		for _, l := range []*redislock.Locker{verifying, never, lockerOf(redislock.LoadIfNeeded)} {
			Expect(MustAcquire(ctx, l, "x").Release(ctx)).To(Succeed())
		}
		Put(client, OfVersion("1.-1.0"))
		_, err = lockerOf(redislock.LoadVerify).TryAcquire(ctx, "x")
		Expect(AsVersion(err, &version)).To(BeTrue())
		Expect(version.Reason).To(ContainSubstring("older"))
	})

	It("loads it again when it has gone while the lock was held and waited for", func(ctx SpecContext) {
		l, o := NewLocker(addr), NewLocker(addr)
		lock := MustAcquire(ctx, l, "x", redislock.WithLease(time.Second))
		first := Acquiring(ctx, o, "x", 1)
		second := Acquiring(ctx, l, "x", 2)
		Expect(Redis(client, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
		deadline, _ := lock.Deadline()
		Eventually(ctx, func() time.Time { d, _ := lock.Deadline(); return d }).Should(BeTemporally(">", deadline))
		Put(client, redislock.Source())
		Expect(lock.Release(ctx)).To(Succeed())
		lock = <-first
		Expect(Redis(client, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
		Expect(lock.Release(ctx)).To(Succeed())
		Expect((<-second).Release(ctx)).To(Succeed())
	})

	It("says that a replica cannot be loaded, and that an old server has no functions", func(ctx SpecContext) {
		replica := OwnServer("--replicaof", "127.0.0.1 1")
		Expect(redislock.Load(ctx, Connect(replica.Addr()))).To(MatchError(ContainSubstring("READONLY")))
		old := OwnServer("--rename-command", "FCALL_RO", "")
		Expect(redislock.Load(ctx, Connect(old.Addr()))).To(MatchError(ContainSubstring("Redis 7.0 or newer")))
	})
})
