// Package interop_test has processes in four languages share a lock, and runs the tests of the examples
// and what lua/README.md and lua/OPERATIONS.md show.
package interop_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
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
const soon = 30 * time.Second

func TestMain(m *testing.M) {
	switch os.Getenv("WORKER") {
	case "":
		os.Exit(m.Run())
	case "several":
		takeSeveral()
	default:
		work()
	}
}

func TestInterop(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(soon)
	SetDefaultEventuallyPollingInterval(10 * time.Millisecond)
	RunSpecs(t, "interop")
}

// Every spec leaves no goroutine behind. Registered first, so it is checked last.
var _ = BeforeEach(func() {
	before := gleak.Goroutines()
	DeferCleanup(func() {
		Eventually(gleak.Goroutines).ShouldNot(gleak.HaveLeaked(before,
			gleak.IgnoringTopFunction("github.com/seed-ee05a192/redislock/internal/redistest.forkThread"))) // never ends
	})
})

// root is the folder of the module.
var root = sync.OnceValue(func() string {
	dir, err := filepath.Abs("../..")
	Expect(err).NotTo(HaveOccurred())
	return dir
})

// python is one that has redis-py and pytest: Debian's packages are for its own python3 alone.
var python = sync.OnceValue(func() string {
	for _, name := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(name, "-c", "import redis, pytest, pytest_asyncio, setuptools, wheel").Run() == nil {
			return name
		}
	}
	Fail("no python3 with redis-py and pytest: `make test` installs them")
	return ""
})

func startServer(args ...string) *redistest.Server {
	GinkgoHelper()
	s, err := redistest.Start(args...)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(s.Stop)
	return s
}

// command is a process of a group of its own, with the environment (NAME=value). The group is killed
// when ctx ends.
func command(ctx context.Context, dir string, env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = filepath.Join(root(), dir), append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// A worker is a process that waits for the lock NAME and says "held FENCE". For each line "write" that
// it is sent, it writes to the register and says "wrote 1", or "wrote 0" if it was refused. At the end of
// its input it releases and says "released", or "lost".
type worker struct {
	kind string
	cmd  *exec.Cmd
	in   io.WriteCloser
	over chan struct{} // closed when it has said all

	mu   sync.Mutex
	said []string
}

// kinds of workers: how to run each. Its folder has the file that a user copies.
var kinds = map[string]func() (dir string, env []string, command []string){
	"go":            goWorker("go"),
	"python":        pythonWorker("worker.py"),
	"asyncio":       pythonWorker("worker_async.py"),
	"redis RESP2":   node("worker.mjs", "CLIENT=redis", "RESP=2"),
	"redis RESP3":   node("worker.mjs", "CLIENT=redis", "RESP=3"),
	"ioredis RESP2": node("worker.mjs", "CLIENT=ioredis", "RESP=2"),
	"ioredis RESP3": node("worker.mjs", "CLIENT=ioredis", "RESP=3"),
	"shell": func() (string, []string, []string) {
		return "clients/shell", nil, []string{"sh", "../../examples/interop/testdata/worker.sh"}
	},
}

// others are kinds of workers that do something else.
var others = map[string]func() (dir string, env []string, command []string){
	"go several":     goWorker("several"),
	"python several": pythonWorker("several.py"),
	"node several":   node("several.mjs"),
}

func goWorker(role string) func() (string, []string, []string) {
	return func() (string, []string, []string) { return ".", []string{"WORKER=" + role}, []string{os.Args[0]} }
}

func pythonWorker(file string) func() (string, []string, []string) {
	return func() (string, []string, []string) {
		return "clients/python", pythonEnv, []string{python(), "../../examples/interop/testdata/" + file}
	}
}

// pythonEnv has Python find the package in its folder, and write nothing there.
var pythonEnv = []string{"PYTHONPATH=src", "PYTHONDONTWRITEBYTECODE=1"}

func node(file string, env ...string) func() (string, []string, []string) {
	return func() (string, []string, []string) {
		source, err := os.ReadFile("testdata/" + file)
		Expect(err).NotTo(HaveOccurred())
		// As text, so that its imports are those of this folder.
		return "clients/node", env, []string{"node", "--input-type=module", "--eval", string(source)}
	}
}

// fleet is the workers of one lock.
type fleet struct {
	env    []string // how they find it
	client rueidis.Client
	locker *redislock.Locker
	name   string
	count  int
}

// newFleet is for a server at this address, which may be one of a cluster.
func newFleet(ctx context.Context, addr string, env ...string) *fleet {
	GinkgoHelper()
	f := &fleet{env: append(env, "ADDR="+addr), name: "orders"}
	var err error
	f.client, err = rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(f.client.Close)
	Expect(redislock.Load(ctx, f.client)).To(Succeed())
	register, err := os.ReadFile("testdata/register.lua")
	Expect(err).NotTo(HaveOccurred())
	for _, node := range f.client.Nodes() {
		if role, err := node.Do(ctx, node.B().Role().Build()).ToArray(); err == nil {
			if name, _ := role[0].ToString(); name != "master" {
				continue
			}
		}
		load := node.B().FunctionLoad().FunctionCode(string(register)).Build()
		Expect(node.Do(ctx, load).Error()).To(Succeed())
	}
	f.locker, err = redislock.New(f.client, redislock.Options{})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(f.locker.Close)
	return f
}

// lease in seconds: nobody loses the lock because the machine is slow.
const lease = 60

// start has a worker of this kind wait for the lock. It is called WHO in the register: its kind and number.
func (f *fleet) start(kind string) *worker {
	GinkgoHelper()
	f.count++
	run, ok := kinds[kind]
	if !ok {
		run = others[kind]
	}
	dir, env, args := run()
	w := &worker{kind: fmt.Sprintf("%s #%d", kind, f.count), over: make(chan struct{})}
	env = append(env, "NAME="+f.name, "REGISTER=register", "WHO="+w.kind, "LEASE="+strconv.Itoa(lease))
	w.cmd = command(context.Background(), dir, append(env, f.env...), args[0], args[1:]...)
	w.cmd.Stderr = GinkgoWriter
	var err error
	w.in, err = w.cmd.StdinPipe()
	Expect(err).NotTo(HaveOccurred())
	out, err := w.cmd.StdoutPipe()
	Expect(err).NotTo(HaveOccurred())
	Expect(w.cmd.Start()).To(Succeed())
	go func() {
		defer close(w.over)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			w.mu.Lock()
			w.said = append(w.said, lines.Text())
			w.mu.Unlock()
		}
	}()
	DeferCleanup(func() {
		w.signal(syscall.SIGKILL)
		<-w.over
		_ = w.cmd.Wait()
	})
	return w
}

// queue is start, and returns when it is in the queue.
func (f *fleet) queue(ctx context.Context, kind string) *worker {
	GinkgoHelper()
	before := f.state(ctx).Waiting
	w := f.start(kind)
	Eventually(func() int { return f.state(ctx).Waiting }).Should(Equal(before+1), kind)
	return w
}

func (f *fleet) state(ctx context.Context) redislock.State {
	GinkgoHelper()
	state, err := f.locker.Inspect(ctx, f.name)
	Expect(err).NotTo(HaveOccurred())
	return state
}

// expire ends the lease now, which would take a minute: as the server does it then.
func (f *fleet) expire(ctx context.Context) {
	GinkgoHelper()
	key := "lock:{" + f.name + "}"
	Expect(f.client.Do(ctx, f.client.B().Pexpire().Key(key).Milliseconds(1).Build()).AsInt64()).To(BeEquivalentTo(1))
}

// serverTime is the server's clock in microseconds.
func (f *fleet) serverTime(ctx context.Context) int64 {
	GinkgoHelper()
	now, err := f.client.Do(ctx, f.client.B().Time().Build()).AsIntSlice()
	Expect(err).NotTo(HaveOccurred())
	return now[0]*1_000_000 + now[1]
}

// writers are those whose writes the register took, in order, and their fences.
func (f *fleet) writers(ctx context.Context) (who []string, fences []int64) {
	GinkgoHelper()
	entries, err := f.client.Do(ctx, f.client.B().Lrange().Key("register").Start(0).Stop(-1).Build()).AsStrSlice()
	Expect(err).NotTo(HaveOccurred())
	for _, entry := range entries {
		fence, name, _ := strings.Cut(entry, " ")
		n, err := strconv.ParseInt(fence, 10, 64)
		Expect(err).NotTo(HaveOccurred())
		who, fences = append(who, name), append(fences, n)
	}
	return who, fences
}

// turn tells the worker what to do when it holds the lock: write once and release.
func (w *worker) turn() {
	GinkgoHelper()
	w.tell("write")
	Expect(w.in.Close()).To(Succeed())
}

func (w *worker) tell(line string) {
	GinkgoHelper()
	_, err := io.WriteString(w.in, line+"\n")
	Expect(err).NotTo(HaveOccurred())
}

// lines are all that it has said.
func (w *worker) lines() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string{}, w.said...)
}

// signal is for the process and all that it started.
func (w *worker) signal(s syscall.Signal) { _ = syscall.Kill(-w.cmd.Process.Pid, s) }

// work is the worker in Go.
func work() {
	fail := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{os.Getenv("ADDR")}, DisableCache: true})
	fail(err)
	defer client.Close()
	seconds, err := strconv.Atoi(os.Getenv("LEASE"))
	fail(err)
	locker, err := redislock.New(client, redislock.Options{Lease: time.Duration(seconds) * time.Second})
	fail(err)
	defer locker.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var opts []redislock.Option
	if text := os.Getenv("MIN_HOLD"); text != "" { // with a WAIT of 0
		seconds, err := strconv.Atoi(text)
		fail(err)
		opts = append(opts, redislock.WithMinHold(time.Duration(seconds)*time.Second), redislock.WithWait(0))
	}
	lock, err := locker.Acquire(ctx, os.Getenv("NAME"), opts...)
	if errors.Is(err, redislock.ErrNotAcquired) {
		fmt.Println("busy")
		return
	}
	fail(err)
	fence := strconv.FormatInt(lock.Fence(), 10)
	fmt.Println("held", fence)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch lines.Text() {
		case "close":
			locker.Close()
			fmt.Println("closed")
		case "cancel":
			cancel() // of Release's ctx
			fmt.Println("cancelled")
		case "write":
			took, err := client.Do(ctx, client.B().Fcall().Function("register_write").Numkeys(1).
				Key(os.Getenv("REGISTER")).Arg(fence, os.Getenv("WHO")).Build()).AsInt64()
			fail(err)
			fmt.Println("wrote", took)
		}
	}
	switch err := lock.Release(ctx); {
	case errors.Is(err, redislock.ErrNotHeld):
		fmt.Println("lost")
	default:
		fail(err)
		fmt.Println("released")
	}
}
