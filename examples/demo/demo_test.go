package main

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"github.com/onsi/gomega/gexec"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

const (
	quick = 20 * time.Second // what the demo promises
	soon  = 20 * time.Second
)

func TestDemo(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(soon)
	SetDefaultEventuallyPollingInterval(5 * time.Millisecond)
	RunSpecs(t, "demo")
}

var program string

var _ = SynchronizedBeforeSuite(func() []byte {
	path, err := gexec.Build("github.com/seed-ee05a192/redislock/examples/demo")
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(gexec.CleanupBuildArtifacts)
	return []byte(path)
}, func(path []byte) { program = string(path) })

// demo is a run of the program in a process group and a folder for temporary files of its own.
type demo struct {
	*gexec.Session
	tmp string
}

func start(env ...string) demo {
	GinkgoHelper()
	tmp := GinkgoT().TempDir()
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "REDIS_URL=", breakVariable+"=")
	cmd.Env = append(cmd.Env, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	session, err := gexec.Start(cmd, GinkgoWriter, GinkgoWriter)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		session.Wait(soon)
	})
	return demo{session, tmp}
}

// expectNothingLeft checks for processes and files of a demo that has ended.
func (d demo) expectNothingLeft() {
	GinkgoHelper()
	Expect(syscall.Kill(-d.Command.Process.Pid, 0)).To(MatchError(syscall.ESRCH), "a process is left")
	Expect(os.ReadDir(d.tmp)).To(BeEmpty())
}

// verdict is the part of the output that sums up.
func (d demo) verdict() string {
	_, verdict, _ := strings.Cut(string(d.Out.Contents()), "\nVerdict\n")
	return verdict
}

var _ = Describe("make demo", func() {
	It("ends well by itself, and leaves nothing", func() {
		d := start()
		Eventually(d, quick).Should(gexec.Exit(0))
		d.expectNothingLeft()
		Expect(d.Err.Contents()).To(BeEmpty())
		verdict := d.verdict()
		for _, name := range []string{
			"nothing lost", "one at a time", "order kept", "late write refused",
			holderKilled, waiterKilled, holderStopped, "nothing left",
		} {
			Expect(verdict).To(ContainSubstring("✓ " + name))
		}
		Expect(verdict).To(ContainSubstring("All is well"))
		output := string(d.Out.Contents())
		Expect(output).NotTo(ContainSubstring("\x1b"))
		Expect(strings.Count(output, "\n")).To(BeNumerically("<=", 64))
	})

	DescribeTable("fails if something is wrong", func(broken, wrong string) {
		d := start(breakVariable + "=" + broken)
		Eventually(d, quick).Should(gexec.Exit(1))
		d.expectNothingLeft()
		Expect(d.verdict()).To(ContainSubstring("✗ " + wrong))
		Expect(d.verdict()).To(ContainSubstring("THE VERDICT IS BAD"))
	},
		Entry("a write without the lock", breakLock, "nothing lost"),
		Entry("a file without a guard", breakGuard, "late write refused"),
		Entry("somebody jumps the queue", breakOrder, "order kept"),
	)

	It("tidies up after Ctrl-C", func() {
		d := start()
		Eventually(d.Out).Should(gbytes.Say("waits 3"))
		Expect(syscall.Kill(-d.Command.Process.Pid, syscall.SIGINT)).To(Succeed())
		Eventually(d, quick).Should(gexec.Exit(1))
		Expect(d.Err).To(gbytes.Say("demo: interrupt"))
		d.expectNothingLeft()
	})

	It("takes its children along when it is killed, also a stopped one", func() {
		d := start()
		Eventually(d.Out).Should(gbytes.Say("on 127.0.0.1:"))
		Eventually(d.Out, quick).Should(gbytes.Say("SIGSTOP"))
		d.Kill()
		// All children but Redis share its stderr: the session ends when the last one is gone.
		Eventually(d).Should(gexec.Exit())
		_, rest, _ := strings.Cut(string(d.Out.Contents()), "a private one on ")
		address, _, _ := strings.Cut(rest, " ")
		Eventually(func() error {
			client, err := connect("redis://" + address)
			if err == nil {
				client.Close()
			}
			return err
		}).Should(MatchError(syscall.ECONNREFUSED))
	})

	It("leaves nothing at REDIS_URL", func(ctx context.Context) {
		server, err := redistest.Start()
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(server.Stop)
		client, err := connect("redis://" + server.Addr())
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(client.Close)
		Expect(client.Do(ctx, client.B().Set().Key("mine").Value("1").Build()).Error()).To(Succeed())

		d := start("REDIS_URL=redis://" + server.Addr())
		Eventually(d, quick).Should(gexec.Exit(0))
		d.expectNothingLeft()
		Expect(string(d.Out.Contents())).To(ContainSubstring("at REDIS_URL (" + redistest.Version() + ")"))
		Expect(client.Do(ctx, client.B().Keys().Pattern("*").Build()).AsStrSlice()).To(Equal([]string{"mine"}))
		Expect(client.Do(ctx, client.B().FunctionList().Build()).ToArray()).To(BeEmpty())
	})

	It("says which Redis is not there", func() {
		d := start("REDIS_URL=redis://user:secret@127.0.0.1:1")
		Eventually(d).Should(gexec.Exit(1))
		Expect(string(d.Err.Contents())).To(And(
			HavePrefix("demo: "), ContainSubstring("127.0.0.1:1"), Not(ContainSubstring("secret"))))
		d.expectNothingLeft()
	})
})

var _ = Describe("overtaken", func() {
	arrivals := map[string]int{"a": 1, "b": 2, "c": 3}
	held := func(tokens ...string) []event {
		var grants []event
		for i, token := range tokens {
			grants = append(grants, event{Worker: token, Token: token, Fence: int64(i + 1)})
		}
		return grants
	}

	DescribeTable("finds who held too early", func(grants []event, seen int, wrong ...string) {
		n, found := overtaken(arrivals, grants)
		Expect(n).To(Equal(seen))
		Expect(found).To(ConsistOf(wrong))
	},
		Entry("in order", held("a", "b", "c"), 3),
		Entry("one died while it waited", held("a", "c"), 2),
		Entry("one was not seen waiting", held("a", "x", "b"), 2),
		Entry("one is too early", held("b", "a", "c"), 3, "b held before a, who came earlier"),
		Entry("the last one is first", held("c", "a", "b"), 3,
			"c held before a, who came earlier", "c held before b, who came earlier"),
		Entry("a fence goes back", append(held("a", "b"), event{Worker: "c", Token: "c", Fence: 1}), 3,
			"c got fence 1 after 2"),
	)
})
