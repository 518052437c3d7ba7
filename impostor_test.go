package redislock_test

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// impostor is a library of our name and version whose functions reply with something else.
func impostor(reply string) string {
	text := "#!lua name=lock\n" +
		"redis.register_function{function_name='lock_version', callback=function() return '" + redislock.Version + "' end, flags={'no-writes'}}\n"
	for _, function := range []string{"acquire", "release", "extend", "reset", "inspect"} {
		text += fmt.Sprintf("redis.register_function{function_name='lock_%s', callback=function() return %s end, flags={'no-writes'}}\n", function, reply)
	}
	return text
}

var _ = OnEachTopology("what the server says", func() {
	DescribeTable("is an error if it is no reply of the library, and nothing panics", func(ctx SpecContext, reply string) {
		own := OwnRedis()
		client, l := Connect(own.Addr()), NewLocker(own.Addr())
		lock := MustAcquire(ctx, l, "x", redislock.WithoutRenewal())
		Put(client, impostor(reply))
		for _, err := range []error{
			Second(l.Acquire(ctx, "x")), Second(l.TryAcquire(ctx, "x")), Second(l.Inspect(ctx, "x")),
			Second(l.Reset(ctx, "x")), lock.Extend(ctx, time.Second), lock.Release(ctx),
		} {
			Expect(err).To(MatchError(And(ContainSubstring("unexpected reply"), ContainSubstring(`"x"`))))
		}
		Expect(Second(l.ResetAll(ctx))).To(MatchError(ContainSubstring("unexpected reply")))
	},
		Entry("text", "'nonsense'"), Entry("null", "nil"), Entry("another array", "{'a', 'b'}"),
		Entry("an array of arrays", "{{1}, {2}, {3}, {4}}"),
		Entry("a map without content", "{'holder', '', 'fence', 'x', 'ttl_ms', 1, 'waiting', 1}"),
		Entry("a waiter without content", "{'holder', '', 'fence', 1, 'ttl_ms', 1, 'waiting', 1, 'waiters', {{'a', 1}}}"),
		Entry("a waiter of other types", "{'holder', '', 'fence', 1, 'ttl_ms', 1, 'waiting', 1, 'waiters', {{'a', 'b', 'c', 'd', 'e'}}}"),
	)

	It("is told to all waiters if they may not block, and they leave", func(ctx SpecContext) {
		own := OwnRedis()
		admin, l := Connect(own.Addr()), NewLocker(own.Addr())
		lock := MustAcquire(ctx, l, "x")
		Expect(Redis(admin, "ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-blpop").Error()).NotTo(HaveOccurred())
		app, err := redislock.New(Connect(own.Addr(), func(o *rueidis.ClientOption) { o.Username, o.Password = "app", "secret" }), redislock.Options{})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(app.Close)
		failed := make(chan error)
		for range 3 {
			go func() {
				_, err := app.Acquire(ctx, "x")
				failed <- err
			}()
		}
		for range 3 {
			Expect(<-failed).To(MatchError(ContainSubstring("NOPERM")))
		}
		Expect(WaitingFor(l, "x")()).To(BeZero())
		Expect(lock.Release(ctx)).To(Succeed())
	})

	It("does not come: a try gives up with its ctx, or when the Locker is closed", func(ctx SpecContext) {
		own := OwnRedis()
		network := NewProxy(own.Addr())
		name := NewName()
		for _, closing := range []bool{false, true} {
			l, err := redislock.New(Connect(network.Addr()), redislock.Options{})
			Expect(err).NotTo(HaveOccurred())
			Expect(MustAcquire(ctx, l, name).Release(ctx)).To(Succeed())
			network.SetDelay(300 * time.Millisecond)
			trying, cancel := context.WithCancel(ctx)
			failed := make(chan error, 1)
			go func() {
				_, err := l.TryAcquire(trying, name)
				failed <- err
			}()
			if closing {
				Consistently(failed, "50ms").ShouldNot(Receive())
				l.Close()
				Expect(<-failed).To(MatchError(redislock.ErrClosed))
			} else {
				cancel()
				Expect(<-failed).To(MatchError(context.Canceled))
			}
			cancel()
			network.SetDelay(0)
			l.Close()
			state := StateOf(NewLocker(own.Addr()), name)
			Expect(state.Holder).To(BeEmpty())
		}
	})
})
