package redislock_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
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

// soon bounds what has to happen by itself. It is generous: nothing is proved by being fast.
const soon = 20 * time.Second

// roles are what a child process of this test binary can be, see spawn.
var roles = map[string]func(){}

func TestMain(m *testing.M) {
	if role := os.Getenv("REDISLOCK_ROLE"); role != "" {
		roles[role]()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestRedislock(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(soon)
	SetDefaultEventuallyPollingInterval(5 * time.Millisecond)
	RunSpecs(t, "redislock")
}

// Every spec leaves no goroutine behind. Registered first, so it is checked last.
var _ = BeforeEach(func() {
	before := gleak.Goroutines()
	DeferCleanup(func() {
		Eventually(gleak.Goroutines).ShouldNot(gleak.HaveLeaked(before,
			gleak.IgnoringTopFunction("github.com/seed-ee05a192/redislock/internal/redistest.forkThread"))) // never ends
	})
})

// ownServer starts a standalone Redis for one spec.
func ownServer(args ...string) *redistest.Server {
	GinkgoHelper()
	s, err := redistest.Start(args...)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(s.Stop)
	return s
}

// connect makes a client that is closed after the spec, of whatever is at this address.
func connect(addr string, change ...func(*rueidis.ClientOption)) rueidis.Client {
	GinkgoHelper()
	option := clientOption(addr)
	for _, c := range change {
		c(&option)
	}
	client, err := rueidis.NewClient(option)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(client.Close)
	return client
}

// newLocker makes a Locker with a client of its own, closed after the spec.
func newLocker(addr string, options ...redislock.Options) *redislock.Locker {
	GinkgoHelper()
	var o redislock.Options
	if len(options) > 0 {
		o = options[0]
	}
	locker, err := redislock.New(connect(addr), o)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(locker.Close)
	return locker
}

var names atomic.Int64

// newName is a name that no other spec uses.
func newName() string {
	return fmt.Sprintf("spec-%d-%d", GinkgoParallelProcess(), names.Add(1))
}

// keysOf are lock, queue and state of a name, as the contract has them.
func keysOf(name string) []string {
	_, rest, _ := strings.Cut(name, "{")
	if tag, _, ok := strings.Cut(rest, "}"); !ok || tag == "" {
		name = "{" + name + "}"
	}
	return []string{"lock:" + name, "lock-queue:" + name, "lock-state:" + name}
}

// keyless are the commands here whose first argument is no key: any node may answer them.
var keyless = map[string]bool{"ACL": true, "CLIENT": true, "CONFIG": true, "FUNCTION": true, "INFO": true, "KEYS": true, "TIME": true}

// redis runs any command, in a cluster on the node of its key.
func redis(client rueidis.Client, args ...string) rueidis.RedisResult {
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

// fcall runs a function of the library; FCALL_RO for those that only read.
func fcall(client rueidis.Client, function string, keys []string, args ...string) rueidis.RedisResult {
	command := "FCALL"
	if function == "lock_inspect" || function == "lock_version" {
		command = "FCALL_RO"
	}
	return redis(client, append(append([]string{command, function, strconv.Itoa(len(keys))}, keys...), args...)...)
}

// commandCalls is how often each command was run since CONFIG RESETSTAT, those that functions ran
// included.
func commandCalls(client rueidis.Client) map[string]int {
	GinkgoHelper()
	text, err := redis(client, "INFO", "commandstats").ToString()
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

// child is a process of its own that plays one of the roles.
type child struct {
	*exec.Cmd
	In  io.WriteCloser
	Out *bufio.Scanner
}

// spawn starts a child with the given environment (NAME=value); it is killed after the spec.
func spawn(role string, env ...string) *child {
	GinkgoHelper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "REDISLOCK_ROLE="+role), env...)
	cmd.Stderr = GinkgoWriter
	in, err := cmd.StdinPipe()
	Expect(err).NotTo(HaveOccurred())
	out, err := cmd.StdoutPipe()
	Expect(err).NotTo(HaveOccurred())
	Expect(cmd.Start()).To(Succeed())
	DeferCleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &child{cmd, in, bufio.NewScanner(out)}
}

// Line is the next line that the child prints.
func (c *child) Line() string {
	GinkgoHelper()
	Expect(c.Out.Scan()).To(BeTrue(), "the child ended before it printed a line")
	return c.Out.Text()
}
