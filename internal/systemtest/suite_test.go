// Package systemtest has the specs of whole systems: servers that die or are replaced, networks,
// clocks, processes, privileges, operations, TLS, eviction, and what the documents say.
package systemtest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// top is the folder of the module.
const top = "../../"

// roles are what a child process of this test binary can be, see spawn.
var roles = map[string]func(){}

func TestMain(m *testing.M) {
	if role := os.Getenv("REDISLOCK_ROLE"); role != "" {
		roles[role]()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestSystem(t *testing.T) { Run(t, "systems") }

// child is a process of its own that plays one of the roles.
type child struct {
	*exec.Cmd
	In  io.WriteCloser
	Out *bufio.Scanner
}

// spawn starts a child with the given environment (NAME=value); it is killed after the spec.
func spawn(role string, env ...string) *child {
	GinkgoHelper()
	return launch(os.Args[0], append(env, "REDISLOCK_ROLE="+role)...)
}

// launch is spawn of any program.
func launch(program string, env ...string) *child {
	GinkgoHelper()
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), env...)
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

// routeVar is where a child process finds how to connect.
const routeVar = "REDISLOCK_ROUTE"

func routeEnv(addr string) []string {
	text, err := json.Marshal(RouteOf(addr))
	Expect(err).NotTo(HaveOccurred())
	return []string{"ADDR=" + addr, routeVar + "=" + string(text)}
}

// childOption is ClientOption in a child that got routeEnv.
func childOption() rueidis.ClientOption {
	addr := os.Getenv("ADDR")
	var r Route
	must(json.Unmarshal([]byte(os.Getenv(routeVar)), &r))
	return r.ClientOption(addr)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// stop returns when no thread of the child runs any more: the signal alone does not wait for that.
func stop(c *child) {
	GinkgoHelper()
	Expect(c.Process.Signal(syscall.SIGSTOP)).To(Succeed())
	Eventually(func(g Gomega) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", c.Process.Pid))
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(threads).NotTo(BeEmpty())
		for _, thread := range threads {
			stat, err := os.ReadFile(thread)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(string(stat)).To(ContainSubstring(") T "))
		}
	}).Should(Succeed())
}
