// Package spec is what the suites of ginkgo share: servers, clients and Lockers that end with their
// spec, the topologies of Redis, a lock as a client in any language sees it.
package spec

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// Soon bounds what has to happen by itself. It is generous: nothing is proved by being fast.
const Soon = 20 * time.Second

// Longest lets a spec begin first, so that no process is left alone with it at the end of a run.
const Longest = SpecPriority(1)

// Run runs the specs of a package.
func Run(t *testing.T, name string) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(Soon)
	SetDefaultEventuallyPollingInterval(5 * time.Millisecond)
	RunSpecs(t, name)
}

// Every spec leaves no goroutine behind. Registered first, so it is checked last.
var _ = BeforeEach(func() {
	before := gleak.Goroutines()
	DeferCleanup(func() {
		Eventually(gleak.Goroutines).ShouldNot(gleak.HaveLeaked(before,
			gleak.IgnoringTopFunction("github.com/seed-ee05a192/redislock/internal/redistest.forkThread"))) // never ends
	})
})

// OwnServer starts a standalone Redis for one spec.
func OwnServer(args ...string) *redistest.Server {
	GinkgoHelper()
	s, err := redistest.Start(args...)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(s.Stop)
	return s
}

// Connect makes a client that is closed after the spec, of whatever is at this address.
func Connect(addr string, change ...func(*rueidis.ClientOption)) rueidis.Client {
	GinkgoHelper()
	return connect(ClientOption(addr), change)
}

func connect(option rueidis.ClientOption, change []func(*rueidis.ClientOption)) rueidis.Client {
	GinkgoHelper()
	for _, c := range change {
		c(&option)
	}
	client, err := rueidis.NewClient(option)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(client.Close)
	return client
}

// NewLocker makes a Locker with a client of its own, closed after the spec.
func NewLocker(addr string, options ...redislock.Options) *redislock.Locker {
	GinkgoHelper()
	var o redislock.Options
	if len(options) > 0 {
		o = options[0]
	}
	locker, err := redislock.New(Connect(addr), o)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(locker.Close)
	return locker
}

var names atomic.Int64

// NewName is a name that no other spec uses.
func NewName() string {
	return fmt.Sprintf("spec-%d-%d", GinkgoParallelProcess(), names.Add(1))
}

// KeysOf are lock, queue and state of a name, as the contract has them.
func KeysOf(name string) []string {
	_, rest, _ := strings.Cut(name, "{")
	if tag, _, ok := strings.Cut(rest, "}"); !ok || tag == "" {
		name = "{" + name + "}"
	}
	return []string{"lock:" + name, "lock-queue:" + name, "lock-state:" + name}
}

// keyless are the commands here whose first argument is no key: any node may answer them.
var keyless = map[string]bool{"ACL": true, "CLIENT": true, "CONFIG": true, "FUNCTION": true, "INFO": true, "KEYS": true, "TIME": true}

// Redis runs any command, in a cluster on the node of its key.
func Redis(client rueidis.Client, args ...string) rueidis.RedisResult {
	key := 1
	if strings.HasPrefix(args[0], "FCALL") && len(args) > 3 && args[2] != "0" {
		key = 3
	}
	command := client.B().Arbitrary(args...).Build()
	if !keyless[args[0]] && key < len(args) {
		command = client.B().Arbitrary(args[:key]...).Keys(args[key]).Args(args[key+1:]...).Build()
	}
	return client.Do(context.Background(), command)
}

// FCall runs a function of the library; FCALL_RO for those that only read.
func FCall(client rueidis.Client, function string, keys []string, args ...string) rueidis.RedisResult {
	command := "FCALL"
	if function == "lock_inspect" || function == "lock_version" {
		command = "FCALL_RO"
	}
	return Redis(client, append(append([]string{command, function, strconv.Itoa(len(keys))}, keys...), args...)...)
}

// CommandCalls is how often each command was run since CONFIG RESETSTAT, those that functions ran
// included.
func CommandCalls(client rueidis.Client) map[string]int {
	GinkgoHelper()
	text, err := Redis(client, "INFO", "commandstats").ToString()
	Expect(err).NotTo(HaveOccurred())
	calls := map[string]int{}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "cmdstat_"); ok {
			name, stats, _ := strings.Cut(rest, ":calls=")
			count, _, _ := strings.Cut(stats, ",")
			calls[name], _ = strconv.Atoi(count)
		}
	}
	return calls
}
