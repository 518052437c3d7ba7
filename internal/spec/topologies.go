package spec

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"strconv"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/proxy"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// Topology is a way to run Redis. The specs of the lock run on each, see OnEachTopology.
type Topology struct {
	Name string
	// shared starts what all processes of the suite use and returns the primaries, the Sentinels
	// and how to end it.
	shared func() (primaries, sentinels []string, stop func() error, err error)
	// Own starts the smallest one of this kind: one primary, that a spec has for itself.
	Own func(args ...string) (*redistest.Server, []string, func() error, error)
}

// Calm is a node timeout that no load of the tests exceeds: nothing here fails over by itself.
const Calm = time.Minute

// Topologies are those that Redis is tested on.
var Topologies = []Topology{{
	Name: "standalone",
	shared: func() ([]string, []string, func() error, error) {
		s, err := redistest.Start("--appendonly", "yes")
		if err != nil {
			return nil, nil, nil, err
		}
		return []string{s.Addr()}, nil, s.Stop, nil
	},
	Own: func(args ...string) (*redistest.Server, []string, func() error, error) {
		s, err := redistest.Start(args...)
		if err != nil {
			return nil, nil, nil, err
		}
		return s, nil, s.Stop, nil
	},
}, {
	Name: "sentinel",
	shared: func() ([]string, []string, func() error, error) {
		s, err := redistest.StartSentinel(1, 3, Calm)
		if err != nil {
			return nil, nil, nil, err
		}
		return []string{s.Servers[0].Addr()}, s.Addrs(), s.Stop, nil
	},
	Own: func(args ...string) (*redistest.Server, []string, func() error, error) {
		s, err := redistest.StartSentinel(0, 1, Calm, args...)
		if err != nil {
			return nil, nil, nil, err
		}
		return s.Servers[0], s.Addrs(), s.Stop, nil
	},
}, {
	Name: "cluster",
	shared: func() ([]string, []string, func() error, error) {
		c, err := redistest.StartCluster(3, 1, Calm)
		if err != nil {
			return nil, nil, nil, err
		}
		var primaries []string
		for _, p := range c.Primaries() {
			primaries = append(primaries, p.Addr())
		}
		return primaries, nil, c.Stop, nil
	},
	Own: func(args ...string) (*redistest.Server, []string, func() error, error) {
		c, err := redistest.StartCluster(1, 0, Calm, args...)
		if err != nil {
			return nil, nil, nil, err
		}
		return c.Servers[0], nil, c.Stop, nil
	},
}}

// shared is one Redis per topology, for all processes of the suite. What is global to a server
// (CONFIG, FUNCTION FLUSH, CLIENT KILL, commandstats) gets one of its own, see OwnRedis.
var shared map[string]deployment

// deployment is where a running Redis is. Only addresses, for the other processes.
type deployment struct{ Primaries, Sentinels []string }

// Server is the shared Redis of the topology that the present spec runs on.
var Server endpoint

// endpoint is the address of a primary.
type endpoint string

// Addr is the address itself.
func (e endpoint) Addr() string { return string(e) }

// Port is that of the address.
func (e endpoint) Port() int {
	_, port, _ := net.SplitHostPort(string(e))
	n, _ := strconv.Atoi(port)
	return n
}

// here is the topology that the present spec runs on.
var here *Topology

// routes say how a client reaches an address that it cannot just dial.
var routes = map[string]Route{}

// SetRoute is for the present spec: the next one may have another server on that port.
func SetRoute(addr string, r Route) {
	before, was := routes[addr]
	routes[addr] = r
	DeferCleanup(func() {
		if delete(routes, addr); was {
			routes[addr] = before
		}
	})
}

// RouteOf is the zero Route where nothing was set.
func RouteOf(addr string) Route { return routes[addr] }

// Route is nil of both where the address is dialled as it is.
type Route struct {
	Sentinels []string
	Via       map[string]string // the proxy in front of an address
}

var _ = SynchronizedBeforeSuite(func() []byte {
	all := map[string]deployment{}
	for i, t := range Topologies {
		// What no label asks for is not started; the first is also for specs without one.
		if i > 0 && !Label(t.Name).MatchesLabelFilter(GinkgoLabelFilter()) {
			continue
		}
		primaries, sentinels, stop, err := t.shared()
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(stop)
		all[t.Name] = deployment{primaries, sentinels}
	}
	text, err := json.Marshal(all)
	Expect(err).NotTo(HaveOccurred())
	return text
}, func(text []byte) {
	Expect(json.Unmarshal(text, &shared)).To(Succeed())
	for _, d := range shared {
		routes[d.Primaries[0]] = Route{Sentinels: d.Sentinels}
	}
	// The default is standalone.
	here, Server = &Topologies[0], endpoint(shared["standalone"].Primaries[0])
})

// OnEachTopology is Describe, on each of them.
func OnEachTopology(text string, body func()) bool {
	for i := range Topologies {
		t := &Topologies[i]
		Describe(text+" ["+t.Name+"]", Label(t.Name), func() {
			BeforeEach(func() {
				before, at := here, Server
				here, Server = t, endpoint(shared[t.Name].Primaries[0])
				DeferCleanup(func() { here, Server = before, at })
			})
			body()
		})
	}
	return true
}

// OwnRedis starts a Redis of the present topology for one spec, and returns its primary.
func OwnRedis(args ...string) *redistest.Server {
	GinkgoHelper()
	s, sentinels, stop, err := here.Own(args...)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(stop)
	SetRoute(s.Addr(), Route{Sentinels: sentinels})
	return s
}

// Directly connects to one server, and follows no topology.
func Directly(addr string, change ...func(*rueidis.ClientOption)) rueidis.Client {
	GinkgoHelper()
	return connect(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true, ForceSingleClient: true}, change)
}

// ClientOption is how to connect to what is at an address: a server, a cluster (rueidis asks), a
// primary that Sentinels watch; with a proxy in between or not.
func ClientOption(addr string) rueidis.ClientOption { return RouteOf(addr).ClientOption(addr) }

// ClientOption is how to connect to an address by this route.
func (r Route) ClientOption(addr string) rueidis.ClientOption {
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

// NewProxy puts a proxy in front of one server. Who connects to the proxy's address gets to what is
// there, and talks to that server by way of the proxy only.
func NewProxy(target string) *proxy.Proxy {
	GinkgoHelper()
	p, err := proxy.New(target)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(p.Close)
	SetRoute(p.Addr(), Route{Sentinels: RouteOf(target).Sentinels, Via: map[string]string{target: p.Addr()}})
	return p
}
