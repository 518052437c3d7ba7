package redislock_test

import (
	"errors"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

// ofVersion is the library with another version number. 1.-1.0 is older than 1.0.0, of the same major
// version: no real one is.
func ofVersion(version string) string {
	GinkgoHelper()
	text := strings.Replace(redislock.Source(), "VERSION = '"+redislock.Version+"'", "VERSION = '"+version+"'", 1)
	if version != redislock.Version {
		Expect(text).NotTo(Equal(redislock.Source()))
	}
	return text
}

func put(client rueidis.Client, library string) {
	GinkgoHelper()
	Expect(redis(client, "FUNCTION", "LOAD", "REPLACE", library).Error()).NotTo(HaveOccurred())
}

var _ = describe("loading the library", func() {
	var (
		addr   string
		client rueidis.Client
	)
	BeforeEach(func() {
		addr = ownRedis().Addr()
		client = connect(addr)
	})
	versionThere := func() (string, error) { return fcall(client, "lock_version", nil).ToString() }

	It("loads it where it is missing, and does nothing where it is the same", func(ctx SpecContext) {
		Expect(redislock.Load(ctx, client)).To(Succeed())
		Expect(versionThere()).To(Equal(redislock.Version))
		Expect(redislock.Load(ctx, client)).To(Succeed())
		Expect(mustAcquire(ctx, newLocker(addr), "x").Release(ctx)).To(Succeed())
		Expect(commandCalls(client)["function|load"]).To(Equal(1))
	})

	It("replaces an older one of the same major version", func(ctx SpecContext) {
		put(client, ofVersion("1.-1.0"))
		Expect(redislock.Load(ctx, client)).To(Succeed())
		Expect(versionThere()).To(Equal(redislock.Version))
	})

	It("leaves a newer one alone, in every mode, and works with it", func(ctx SpecContext) {
		put(client, ofVersion("1.99.0"))
		for _, mode := range []redislock.LoadMode{redislock.LoadIfNeeded, redislock.LoadVerify, redislock.LoadNever} {
			Expect(mustAcquire(ctx, newLocker(addr, redislock.Options{LoadMode: mode}), "x").Release(ctx)).To(Succeed())
		}
		Expect(versionThere()).To(Equal("1.99.0"))
	})

	DescribeTable("refuses, and changes nothing,", func(ctx SpecContext, library func() string, have, reason string) {
		put(client, library())
		before, err := redis(client, "FUNCTION", "DUMP").ToString()
		Expect(err).NotTo(HaveOccurred())
		for _, err := range []error{redislock.Load(ctx, client), second(newLocker(addr).Acquire(ctx, "x"))} {
			var version *redislock.VersionError
			Expect(err).To(MatchError(ContainSubstring("redis-cli -h 127.0.0.1 -p " + strings.Split(addr, ":")[1] + " -x FUNCTION LOAD")))
			Expect(asVersion(err, &version)).To(BeTrue())
			Expect(version.Node).To(Equal(addr))
			Expect(version.Have).To(Equal(have))
			Expect(version.Want).To(Equal(redislock.Version))
			Expect(version.Reason).To(ContainSubstring(reason))
		}
		Expect(redis(client, "FUNCTION", "DUMP").ToString()).To(Equal(before))
	},
		Entry("a newer major version", func() string { return ofVersion("2.0.0") }, "2.0.0", "major"),
		Entry("an older major version", func() string { return ofVersion("0.9.9") }, "0.9.9", "major"),
		Entry("what is no version", func() string { return ofVersion("latest") }, "latest", "not ours"),
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
		Expect(redis(client, "ACL", "SETUSER", "app", "on", ">secret", "~lock*", "-@all", "+@read", "+@write", "+@connection",
			"+fcall", "+fcall_ro", "+time", "+role", "+cluster", "-function").Error()).NotTo(HaveOccurred())
		app := connect(addr, func(o *rueidis.ClientOption) { o.Username, o.Password = "app", "secret" })
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
			Expect(asVersion(err, &version)).To(BeTrue())
			Expect(version.Reason).To(ContainSubstring("missing"))
		}
		Expect(redislock.Load(ctx, client)).To(Succeed())
		for _, l := range []*redislock.Locker{verifying, never, lockerOf(redislock.LoadIfNeeded)} {
			Expect(mustAcquire(ctx, l, "x").Release(ctx)).To(Succeed())
		}
		put(client, ofVersion("1.-1.0"))
		_, err = lockerOf(redislock.LoadVerify).TryAcquire(ctx, "x")
		Expect(asVersion(err, &version)).To(BeTrue())
		Expect(version.Reason).To(ContainSubstring("older"))
	})

	It("loads it again when it has gone while the lock was held and waited for", func(ctx SpecContext) {
		l, o := newLocker(addr), newLocker(addr)
		lock := mustAcquire(ctx, l, "x", redislock.WithLease(time.Second))
		first := acquiring(ctx, o, "x", 1)
		second := acquiring(ctx, l, "x", 2)
		Expect(redis(client, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
		deadline, _ := lock.Deadline()
		Eventually(ctx, func() time.Time { d, _ := lock.Deadline(); return d }).Should(BeTemporally(">", deadline))
		put(client, redislock.Source())
		Expect(lock.Release(ctx)).To(Succeed())
		lock = <-first
		Expect(redis(client, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
		Expect(lock.Release(ctx)).To(Succeed())
		Expect((<-second).Release(ctx)).To(Succeed())
	})

	It("says that a replica cannot be loaded, and that an old server has no functions", func(ctx SpecContext) {
		replica := ownServer("--replicaof", "127.0.0.1 1")
		Expect(redislock.Load(ctx, connect(replica.Addr()))).To(MatchError(ContainSubstring("READONLY")))
		old := ownServer("--rename-command", "FCALL_RO", "")
		Expect(redislock.Load(ctx, connect(old.Addr()))).To(MatchError(ContainSubstring("Redis 7.0 or newer")))
	})
})

func asVersion(err error, version **redislock.VersionError) bool { return errors.As(err, version) }
