package redislock_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"os"
	"strconv"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/proxy"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// topology is a way to run Redis. The specs of the lock run on each, see describe.
type topology struct {
	name string
	// shared starts what all processes of the suite use and returns the primaries, the Sentinels
	// and how to end it.
	shared func() (primaries, sentinels []string, stop func() error, err error)
	// own starts the smallest one of this kind: one primary, that a spec has for itself.
	own func(args ...string) (*redistest.Server, []string, func() error, error)
}

// calm is a node timeout that no load of the tests exceeds: nothing here fails over by itself.
const calm = time.Minute

var topologies = []topology{{
	name: "standalone",
	shared: func() ([]string, []string, func() error, error) {
		s, err := redistest.Start("--appendonly", "yes")
		if err != nil {
			return nil, nil, nil, err
		}
		return []string{s.Addr()}, nil, s.Stop, nil
	},
	own: func(args ...string) (*redistest.Server, []string, func() error, error) {
		s, err := redistest.Start(args...)
		if err != nil {
			return nil, nil, nil, err
		}
		return s, nil, s.Stop, nil
	},
}, {
	name: "sentinel",
	shared: func() ([]string, []string, func() error, error) {
		s, err := redistest.StartSentinel(1, 3, calm)
		if err != nil {
			return nil, nil, nil, err
		}
		return []string{s.Servers[0].Addr()}, s.Addrs(), s.Stop, nil
	},
	own: func(args ...string) (*redistest.Server, []string, func() error, error) {
		s, err := redistest.StartSentinel(0, 1, calm, args...)
		if err != nil {
			return nil, nil, nil, err
		}
		return s.Servers[0], s.Addrs(), s.Stop, nil
	},
}, {
	name: "cluster",
	shared: func() ([]string, []string, func() error, error) {
		c, err := redistest.StartCluster(3, 1, calm)
		if err != nil {
			return nil, nil, nil, err
		}
		var primaries []string
		for _, p := range c.Primaries() {
			primaries = append(primaries, p.Addr())
		}
		return primaries, nil, c.Stop, nil
	},
	own: func(args ...string) (*redistest.Server, []string, func() error, error) {
		c, err := redistest.StartCluster(1, 0, calm, args...)
		if err != nil {
			return nil, nil, nil, err
		}
		return c.Servers[0], nil, c.Stop, nil
	},
}}

// shared is one Redis per topology, for all processes of the suite. What is global to a server
// (CONFIG, FUNCTION FLUSH, CLIENT KILL, commandstats) gets one of its own, see ownRedis.
var shared map[string]deployment

// deployment is where a running Redis is. Only addresses, for the other processes.
type deployment struct{ Primaries, Sentinels []string }

// server is the shared Redis of the topology that the present spec runs on.
var server endpoint

// endpoint is the address of a primary.
type endpoint string

func (e endpoint) Addr() string { return string(e) }

// Port is that of the address.
func (e endpoint) Port() int {
	_, port, _ := net.SplitHostPort(string(e))
	n, _ := strconv.Atoi(port)
	return n
}

// here is the topology that the present spec runs on.
var here *topology

// routes say how a client gets to what is at an address, where that takes more than to dial it.
var routes = map[string]route{}

type route struct {
	Sentinels []string
	Via       map[string]string // the proxy in front of an address
}

var _ = SynchronizedBeforeSuite(func() []byte {
	all := map[string]deployment{}
	for _, t := range topologies {
		primaries, sentinels, stop, err := t.shared()
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(stop)
		all[t.name] = deployment{primaries, sentinels}
	}
	text, err := json.Marshal(all)
	Expect(err).NotTo(HaveOccurred())
	return text
}, func(text []byte) {
	Expect(json.Unmarshal(text, &shared)).To(Succeed())
	for _, d := range shared {
		routes[d.Primaries[0]] = route{Sentinels: d.Sentinels}
	}
	// What is said nowhere else is standalone.
	here, server = &topologies[0], endpoint(shared["standalone"].Primaries[0])
})

// describe is Describe, on each topology.
func describe(text string, body func()) bool {
	for i := range topologies {
		t := &topologies[i]
		Describe(text+" ["+t.name+"]", Label(t.name), func() {
			BeforeEach(func() {
				before, at := here, server
				here, server = t, endpoint(shared[t.name].Primaries[0])
				DeferCleanup(func() { here, server = before, at })
			})
			body()
		})
	}
	return true
}

// ownRedis starts a Redis of the present topology for one spec, and returns its primary.
func ownRedis(args ...string) *redistest.Server {
	GinkgoHelper()
	s, sentinels, stop, err := here.own(args...)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(stop)
	routes[s.Addr()] = route{Sentinels: sentinels}
	return s
}

// directly connects to one server and asks nobody where else to go.
func directly(addr string, change ...func(*rueidis.ClientOption)) rueidis.Client {
	GinkgoHelper()
	option := rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true, ForceSingleClient: true}
	for _, c := range change {
		c(&option)
	}
	client, err := rueidis.NewClient(option)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(client.Close)
	return client
}

// clientOption is how to connect to what is at an address: a server, a cluster (rueidis asks), a
// primary that Sentinels watch; with a proxy in between or not.
func clientOption(addr string) rueidis.ClientOption {
	r := routes[addr]
	o := rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true}
	if len(r.Sentinels) > 0 {
		o.InitAddress = r.Sentinels
		o.Sentinel.MasterSet = redistest.PrimarySet
	}
	if len(r.Via) > 0 {
		o.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			if proxy, ok := r.Via[addr]; ok {
				addr = proxy
			}
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	return o
}

// newProxy puts a proxy in front of one server. Who connects to the proxy's address gets to what is
// there, and talks to that server by way of the proxy only.
func newProxy(target string) *proxy.Proxy {
	GinkgoHelper()
	p, err := proxy.New(target)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(p.Close)
	routes[p.Addr()] = route{Sentinels: routes[target].Sentinels, Via: map[string]string{target: p.Addr()}}
	return p
}

// routeVar is where a child process finds how to connect.
const routeVar = "REDISLOCK_ROUTE"

func routeEnv(addr string) []string {
	text, err := json.Marshal(routes[addr])
	Expect(err).NotTo(HaveOccurred())
	return []string{"ADDR=" + addr, routeVar + "=" + string(text)}
}

// childOption is clientOption in a child that got routeEnv.
func childOption() rueidis.ClientOption {
	addr := os.Getenv("ADDR")
	var r route
	must(json.Unmarshal([]byte(os.Getenv(routeVar)), &r))
	routes[addr] = r
	return clientOption(addr)
}
