package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gexec"

	"github.com/seed-ee05a192/redislock/internal/redistest"
	"github.com/seed-ee05a192/redislock/internal/spec"
)

// asCounter has the test binary count signals, see countSignals.
const asCounter = "REDISLOCK_TEST_COUNTER"

func TestMain(m *testing.M) {
	if os.Getenv(asCounter) != "" {
		countSignals()
		return
	}
	SetDefaultEventuallyTimeout(spec.Soon)
	SetDefaultEventuallyPollingInterval(20 * time.Millisecond)
	program() // now, as no test's time limit is made for it
	code := m.Run()
	_ = os.RemoveAll(filepath.Dir(program()))
	os.Exit(code)
}

func TestSuite(t *testing.T) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // so no child ignores it, as under nohup
	spec.Run(t, "redislock")
}

// program is the file of this command, static as users get it.
var program = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "redislock-")
	if err != nil {
		panic(err)
	}
	file := filepath.Join(dir, "redislock")
	cmd := exec.Command("go", "build", "-o", file, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("go build: %v\n%s", err, out))
	}
	return file
})

// urlOf is what users write for what is at this address.
func urlOf(addr string) string {
	if sentinels := spec.RouteOf(addr).Sentinels; len(sentinels) > 0 {
		return "redis://" + sentinels[0] + "?master_set=" + redistest.PrimarySet
	}
	return "redis://" + addr
}

// environ is ours without what would lead to another Redis, and more.
func environ(more ...string) []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "REDIS_") {
			env = append(env, e)
		}
	}
	return append(env, more...)
}

// command is the program, for a server.
func command(url string, args ...string) *exec.Cmd {
	cmd := exec.Command(program(), args...)
	cmd.Env = environ("REDIS_URL=" + url)
	return cmd
}

// run starts the program. It has ended, with everything it started, when the spec has.
func run(url string, args ...string) *gexec.Session {
	GinkgoHelper()
	return begin(command(url, args...))
}

func begin(cmd *exec.Cmd) *gexec.Session {
	GinkgoHelper()
	s, err := gexec.Start(cmd, GinkgoWriter, GinkgoWriter)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { s.Kill().Wait(spec.Soon) })
	return s
}

func stdout(s *gexec.Session) string { return string(s.Out.Contents()) }
func stderr(s *gexec.Session) string { return string(s.Err.Contents()) }

// ends is the exit code of a call that ends by itself.
func ends(s *gexec.Session) int {
	GinkgoHelper()
	Eventually(s).Should(gexec.Exit())
	return s.ExitCode()
}

// lines of a file, which need not exist.
func lines(file string) []string {
	text, _ := os.ReadFile(file)
	return strings.Fields(string(text))
}

// noteFamily is a shell script that ignores signals, as its child does and a grandchild that has left for a
// session of its own. It writes the ids of all three into $1.
const noteFamily = `trap '' TERM HUP INT
setsid sh -c 'echo $$ >> "$0"; exec sleep 1000' "$1" &
sh -c 'echo $$ >> "$0"; exec sleep 1000' "$1" &
echo $$ >> "$1"
wait`

// family runs that script under a lock, and returns when all three run.
func family(url, pids string, args ...string) *gexec.Session {
	GinkgoHelper()
	s := run(url, append(append([]string{"run"}, args...), "--", "sh", "-c", noteFamily, "sh", pids)...)
	Eventually(lines).WithArguments(pids).Should(HaveLen(3))
	return s
}

// nextHolder waits for the lock, and then says which of these processes still live.
func nextHolder(url, name, pids string) *gexec.Session {
	GinkgoHelper()
	s := run(url, "run", name, "--", "sh", "-c",
		`for p in $(cat "$1"); do
  ! read -r _ _ state _ 2>/dev/null < /proc/$p/stat || [ "$state" = Z ] || echo "$p lives"
done; echo looked`, "sh", pids)
	return s
}

// childrenOf a process.
func childrenOf(pid int) (children []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		_, rest, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			children = append(children, child)
		}
	}
	return children
}

// keeperFor is the process that keeps the lock.
func keeperFor(s *gexec.Session) int {
	GinkgoHelper()
	var children []int
	Eventually(func() []int {
		children = childrenOf(s.Command.Process.Pid)
		return children
	}).Should(HaveLen(1))
	return children[0]
}

// countSignals prints each signal that comes, starts itself once more, and ends with its standard input.
func countSignals() {
	signals := make(chan os.Signal, 100)
	for _, s := range passedOn {
		signal.Notify(signals, s)
	}
	if os.Getenv(asCounter) == "parent" {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), asCounter+"=child")
		child.Stdin, child.Stdout = os.Stdin, os.Stdout
		if err := child.Start(); err != nil {
			panic(err)
		}
		defer func() { _ = child.Wait() }()
	}
	fmt.Println(os.Getenv(asCounter), "ready")
	ended := make(chan struct{})
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadString(0)
		close(ended)
	}()
	for {
		select {
		case s := <-signals:
			fmt.Println(os.Getenv(asCounter), int(s.(syscall.Signal)))
		case <-ended:
			return
		}
	}
}
