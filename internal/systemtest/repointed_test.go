package systemtest

import (
	"errors"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/proxy"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// named gives a client's connections a name, see connectionsOf.
func named(name string) func(*rueidis.ClientOption) {
	return func(o *rueidis.ClientOption) { o.ClientName = name }
}

// fourPipelines is what rueidis does by itself where there are four processors or more. It takes any of
// them for a command with a key, and always the first one for others.
func fourPipelines(o *rueidis.ClientOption) { o.PipelineMultiplex = 2 }

// connectionsOf are the lines of CLIENT LIST on a server for a client with this name.
func connectionsOf(s *redistest.Server, name string) (lines []string) {
	GinkgoHelper()
	list, err := s.Do("CLIENT", "LIST").ToString()
	Expect(err).NotTo(HaveOccurred())
	for line := range strings.Lines(list) {
		if strings.Contains(line, " name="+name+" ") {
			lines = append(lines, line)
		}
	}
	return lines
}

// repeat collects what n calls return.
func repeat[T any](n int, do func() T) (all []T) {
	for range n {
		all = append(all, do())
	}
	return all
}

var _ = Describe("an address that is repointed while the old connections live on", func() {
	var old, replica *redistest.Server
	var network *proxy.Proxy
	BeforeEach(func() {
		old = OwnServer("--repl-diskless-sync-delay", "0")
		replica = OwnServer("--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1 "+strconv.Itoa(old.Port()))
		Eventually(func() (string, error) { return old.Do("INFO", "replication").ToString() }).Should(ContainSubstring("state=online"))
		network = NewProxy(old.Addr())
	})
	repoint := func() {
		GinkgoHelper()
		caughtUp(old, replica)
		Expect(replica.Do("REPLICAOF", "NO", "ONE").Error()).NotTo(HaveOccurred())
		network.SetTarget(replica.Addr())
		Expect(old.Do("REPLICAOF", "127.0.0.1", strconv.Itoa(replica.Port())).Error()).NotTo(HaveOccurred())
	}

	It("Acquire WithReplicas goes on although idle connections of the blocking pool lead to the old one", NodeTimeout(time.Minute), func(ctx SpecContext) {
		client := Connect(network.Addr())
		locker, err := redislock.New(client, redislock.Options{})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(locker.Close)
		var giveBack []func()
		for range 3 {
			c, release := client.Dedicate()
			Expect(c.Do(ctx, c.B().Ping().Build()).Error()).NotTo(HaveOccurred())
			giveBack = append(giveBack, release)
		}
		for _, release := range giveBack {
			release()
		}
		Expect(MustAcquire(ctx, locker, "x", redislock.WithReplicas(1, Soon)).Release(ctx)).To(Succeed())
		repoint()
		Expect(MustAcquire(ctx, locker, "x", redislock.WithReplicas(1, Soon)).Release(ctx)).To(Succeed())
	})

	It("a holder and a waiter go on by themselves, and leave the demoted server for good", NodeTimeout(2*time.Minute), func(ctx SpecContext) {
		var lockers []*redislock.Locker
		var clients []rueidis.Client
		for _, name := range []string{"holder", "waiter"} {
			client := Connect(network.Addr(), named(name), fourPipelines)
			locker, err := redislock.New(client, redislock.Options{})
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(locker.Close)
			lockers, clients = append(lockers, locker), append(clients, client)
		}
		lock := MustAcquire(ctx, lockers[0], "x")
		next := Acquiring(ctx, lockers[1], "x", 1)
		for i, name := range []string{"holder", "waiter"} {
			Eventually(func() int {
				StateOf(lockers[i], "x")
				return len(connectionsOf(old, name))
			}).Should(BeNumerically(">=", 4+i))
		}
		held := holdMany(ctx, lockers[0], 100) // all of them find out at about the same time
		repoint()

		renewed := func() time.Time { d, _ := lock.Deadline(); return d }
		before := renewed()
		Eventually(ctx, renewed).Should(BeTemporally(">", before))
		Eventually(ctx, func() []string { return connectionsOf(old, "waiter") }).Should(BeEmpty(), "it looks every second")
		Expect(lock.Context().Err()).NotTo(HaveOccurred())
		Expect(lock.Release(ctx)).To(Succeed())
		Eventually(ctx, next).Should(Receive(&lock))
		Expect(lock.Release(ctx)).To(Succeed())

		held.renewed(ctx)

		// The connections that are left are met one by one, as calls are made.
		for i, client := range clients {
			Eventually(ctx, func() []string {
				Expect(MustAcquire(ctx, lockers[i], NewName()).Release(ctx)).To(Succeed())
				return connectionsOf(old, []string{"holder", "waiter"}[i])
			}).Should(BeEmpty())
			Eventually(func() error { // another user of the client
				return errors.Join(repeat(50, func() error { return Redis(client, "SET", "x", "y").Error() })...)
			}).Should(Succeed())
		}
	})
})
