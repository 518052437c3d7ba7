package systemtest

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/proxy"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// renewed returns when each lock has been renewed once more, and was not lost.
func (m *manyHeld) renewed(ctx context.Context) {
	GinkgoHelper()
	before := m.deadlines()
	for name, lock := range m.locks {
		Eventually(ctx, func() bool {
			now, _ := lock.Deadline()
			return lock.Context().Err() != nil || now.After(before[name])
		}).Should(BeTrue(), name)
	}
	var lost []string
	for name, lock := range m.locks {
		if lock.Context().Err() != nil {
			lost = append(lost, name)
		}
	}
	Expect(lost).To(BeEmpty(), "%d locks", len(lost))
}

// behind puts a proxy before each node of a cluster. Clients of its first address go through them.
func behind(c *redistest.Cluster) (addr string, networks []*proxy.Proxy) {
	GinkgoHelper()
	via := map[string]string{}
	for _, s := range c.Servers {
		p := NewProxy(s.Addr())
		via[s.Addr()] = p.Addr()
		networks = append(networks, p)
	}
	addr = c.Servers[0].Addr()
	SetRoute(addr, Route{Via: via})
	return addr, networks
}

func ownCluster(primaries int) *redistest.Cluster {
	GinkgoHelper()
	c, err := redistest.StartCluster(primaries, 0, Calm)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(c.Stop)
	return c
}

var _ = Describe("FUNCTION FLUSH under held locks, 20 ms away", func() {
	loadedOnce := func(client rueidis.Client) {
		GinkgoHelper()
		calls := CommandCalls(client)
		Expect(calls["fcall_ro"]).To(Equal(1), "looks")
		Expect(calls["info"]).To(BeNumerically("<=", 1))
		Expect(calls["function|load"]).To(Equal(1))
	}
	flush := func(client rueidis.Client) {
		GinkgoHelper()
		Expect(Redis(client, "CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())
		Expect(Redis(client, "FUNCTION", "FLUSH").Error()).NotTo(HaveOccurred())
	}

	It("none of 1,000 is lost, and the library is loaded once", NodeTimeout(2*time.Minute), func(ctx SpecContext) {
		s := OwnServer()
		network, client := NewProxy(s.Addr()), Connect(s.Addr())
		held := holdMany(ctx, NewLocker(network.Addr()), 1000)
		network.SetDelay(10 * time.Millisecond)
		held.renewed(ctx)
		flush(client)
		held.renewed(ctx)
		loadedOnce(client)
	})

	It("none of 300 in a cluster is lost, and the library is loaded once on each primary", NodeTimeout(2*time.Minute), func(ctx SpecContext) {
		c := ownCluster(3)
		addr, networks := behind(c)
		locker, err := redislock.New(Connect(addr), redislock.Options{})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(locker.Close)
		held := holdMany(ctx, locker, 300)
		var clients []rueidis.Client
		for i, s := range c.Servers {
			clients = append(clients, Directly(s.Addr()))
			networks[i].SetDelay(10 * time.Millisecond)
		}
		held.renewed(ctx)
		for _, client := range clients {
			flush(client)
		}
		held.renewed(ctx)
		for _, client := range clients {
			calls := CommandCalls(client)
			Expect(calls["function|load"]).To(Equal(1))
			// Each node may be met after the round for another one.
			Expect(calls["fcall_ro"]).To(BeNumerically("<=", 3), "looks")
		}
	})
})
