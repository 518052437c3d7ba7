package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"github.com/onsi/gomega/gexec"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/spec"
)

var _ = Describe("run", func() {
	var (
		name, url, pids string
		locker          *redislock.Locker
	)
	BeforeEach(func() {
		name, url = spec.NewName(), urlOf(spec.Server.Addr())
		pids = filepath.Join(GinkgoT().TempDir(), "pids")
		locker = spec.NewLocker(spec.Server.Addr())
	})
	waiting := func() (int, error) { return spec.WaitingFor(locker, name)() }

	Describe("lets nothing of the command outlive the lock:", func() {
		// expectDead is for a next holder that was queued before.
		expectDead := func(next *gexec.Session) {
			GinkgoHelper()
			Expect(ends(next)).To(BeZero())
			Expect(stdout(next)).To(Equal("looked\n"))
		}

		It("redislock is killed", func() {
			holder := family(url, pids, name)
			next := nextHolder(url, name, pids)
			Eventually(waiting).Should(Equal(1))
			holder.Kill()
			expectDead(next)
		})

		It("the process that keeps the lock is killed", func() {
			holder := family(url, pids, name, "--lease", "3s")
			next := nextHolder(url, name, pids)
			Eventually(waiting).Should(Equal(1))
			Expect(syscall.Kill(keeperFor(holder), syscall.SIGKILL)).To(Succeed())
			Expect(ends(holder)).To(Equal(exitLost))
			expectDead(next)
		})

		It("the process that keeps the lock is stopped", func() {
			holder := family(url, pids, name, "--lease", "10s")
			next := nextHolder(url, name, pids)
			Eventually(waiting).Should(Equal(1))
			Expect(syscall.Kill(keeperFor(holder), syscall.SIGSTOP)).To(Succeed())
			Expect(ends(holder)).To(Equal(exitLost))
			expectDead(next)
		})

		It("Redis is silent", func() {
			server := spec.OwnServer()
			proxy := spec.NewProxy(server.Addr())
			holder := family("redis://"+proxy.Addr(), pids, name, "--lease", "5s")
			next := nextHolder("redis://"+server.Addr(), name, pids)
			Eventually(spec.WaitingFor(spec.NewLocker(server.Addr()), name)).Should(Equal(1))
			proxy.BlackHole(true)
			Expect(ends(holder)).To(Equal(exitLost))
			Expect(stderr(holder)).To(ContainSubstring("lost, or may be"))
			expectDead(next)
		})

		It("--max-hold is over", func() {
			holder := family(url, pids, name, "--max-hold", "5s")
			next := nextHolder(url, name, pids)
			Eventually(waiting).Should(Equal(1))
			Expect(ends(holder)).To(Equal(exitLost))
			expectDead(next)
		})
	})

	It("ends a command whose lock was taken away, and has told it before", func() {
		cmd := command(url, "run", name, "--", "sh", "-c", "trap 'echo told; exit 0' TERM; echo on; read x")
		stdin, err := cmd.StdinPipe() // it blocks there, and need not start anything to be told
		Expect(err).NotTo(HaveOccurred())
		defer stdin.Close()
		holder := begin(cmd)
		Eventually(holder.Out).Should(gbytes.Say("on"))
		Expect(locker.Reset(context.Background(), name)).To(BeTrue())
		Expect(ends(holder)).To(Equal(exitLost))
		Expect(stdout(holder)).To(Equal("on\ntold\n"))
	})

	It("keeps the lock while it is stopped itself", func() {
		holder := run(url, "run", "--lease", "2s", name, "--", "sh", "-c", "echo on; sleep 1000")
		Eventually(holder.Out).Should(gbytes.Say("on"))
		client, key := spec.Connect(spec.Server.Addr()), spec.KeysOf(name)[0]
		Expect(holder.Command.Process.Signal(syscall.SIGSTOP)).To(Succeed())
		for range 3 { // renewed: what is left grows
			before := spec.PTTL(client, key)
			Eventually(func() int64 {
				left := spec.PTTL(client, key)
				if left < before {
					before = left
				}
				return left - before
			}).Should(BeNumerically(">", 100))
		}
		Expect(holder.Command.Process.Signal(syscall.SIGCONT)).To(Succeed())
		holder.Terminate()
		Expect(ends(holder)).To(Equal(exitSignal + int(syscall.SIGTERM)))
	})

	It("passes on each signal once, to the whole group", func() {
		cmd := command(url, "run", name, "--", os.Args[0])
		cmd.Env = append(cmd.Env, asCounter+"=parent")
		stdin, err := cmd.StdinPipe()
		Expect(err).NotTo(HaveOccurred())
		s := begin(cmd)
		Eventually(func() string { return stdout(s) }).Should(SatisfyAll(ContainSubstring("parent ready"), ContainSubstring("child ready")))
		want := []string{"parent ready", "child ready"}
		for _, sig := range passedOn {
			Expect(cmd.Process.Signal(sig)).To(Succeed())
			want = append(want, fmt.Sprintf("parent %d", sig), fmt.Sprintf("child %d", sig))
			Eventually(func() []string { return strings.Split(strings.TrimSpace(stdout(s)), "\n") }).Should(ConsistOf(want))
		}
		Expect(stdin.Close()).To(Succeed())
		Expect(ends(s)).To(BeZero())
		Expect(strings.Split(strings.TrimSpace(stdout(s)), "\n")).To(ConsistOf(want))
	})

	Describe("told to end,", func() {
		const stubborn = `trap 'echo told' TERM; echo on; until [ -e "$1" ]; do sleep 0.05; done; exit 5`
		var s *gexec.Session
		var file string
		stubbornly := func(args ...string) {
			GinkgoHelper()
			file = filepath.Join(GinkgoT().TempDir(), "file")
			s = run(url, append(append([]string{"run"}, args...), name, "--", "sh", "-c", stubborn, "sh", file)...)
			Eventually(s.Out).Should(gbytes.Say("on"))
			s.Terminate()
			Eventually(s.Out).Should(gbytes.Say("told"))
		}

		It("keeps the lock until the command has ended", func() {
			stubbornly()
			Expect(ends(run(url, "run", "--try", name, "--", "true"))).To(Equal(exitBusy))
			Expect(os.WriteFile(file, nil, 0o600)).To(Succeed())
			Expect(ends(s)).To(Equal(5))
			Expect(ends(run(url, "run", "--try", name, "--", "true"))).To(BeZero())
		})

		It("kills the command at the second TERM", func() {
			stubbornly()
			s.Terminate()
			Expect(ends(s)).To(Equal(exitSignal + int(syscall.SIGKILL)))
		})

		It("kills the command when --grace is over", func() {
			stubbornly("--grace", "100ms")
			Expect(ends(s)).To(Equal(exitSignal + int(syscall.SIGKILL)))
		})
	})

	It("leaves the queue when it is told to end, or killed, while it waits", func() {
		lock := spec.MustAcquire(context.Background(), locker, name)
		s := run(url, "run", name, "--", "echo", "never")
		Eventually(waiting).Should(Equal(1))
		s.Interrupt()
		Expect(ends(s)).To(Equal(exitSignal + int(syscall.SIGINT)))
		Eventually(waiting).Should(BeZero())
		s = run(url, "run", name, "--", "echo", "never")
		Eventually(waiting).Should(Equal(1))
		s.Kill()
		Eventually(waiting).Should(BeZero())
		Expect(lock.Release(context.Background())).To(Succeed())
		Expect(stdout(s)).To(BeEmpty())
	})

	It("gives the lock back only when the whole group has ended", func() {
		file := filepath.Join(GinkgoT().TempDir(), "file")
		s := run(url, "run", name, "--", "sh", "-c", `(until [ -e "$1" ]; do sleep 0.05; done) & echo $! on`, "sh", file)
		Eventually(s.Out).Should(gbytes.Say("on"))
		var leader string
		_, err := fmt.Sscan(stdout(s), &leader)
		Expect(err).NotTo(HaveOccurred())
		// The shell has ended, and is no zombie: its child has been adopted.
		keeper := keeperFor(s)
		Eventually(func() []string {
			var names []string
			for _, pid := range childrenOf(keeper) {
				names = append(names, fmt.Sprint(pid))
			}
			return names
		}).Should(Equal([]string{leader}))
		Expect(ends(run(url, "run", "--try", name, "--", "true"))).To(Equal(exitBusy))
		Expect(os.WriteFile(file, nil, 0o600)).To(Succeed())
		Expect(ends(s)).To(BeZero())
		Expect(ends(run(url, "run", "--try", name, "--", "true"))).To(BeZero())
	})

	DescribeTable("exits with", func(code int, words string, args ...string) {
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "NAME", name)
		}
		s := run(url, append([]string{"run"}, args...)...)
		Expect(ends(s)).To(Equal(code))
		Expect(stdout(s)).To(BeEmpty())
		if words == "" {
			Expect(stderr(s)).To(BeEmpty())
		} else {
			Expect(stderr(s)).To(SatisfyAll(HavePrefix("redislock: "), MatchRegexp(words)))
			Expect(strings.Count(strings.TrimSpace(stderr(s)), "\n")).To(BeNumerically("<=", 1))
		}
		// Whatever happened, the lock is free.
		Expect(ends(run(url, "run", "--try", name, "--", "true"))).To(BeZero())
	},
		Entry("0", 0, "", "NAME", "--", "true"),
		Entry("the command's", 7, "", "NAME", "--", "sh", "-c", "exit 7"),
		Entry("128 and the signal", 128+9, "", "NAME", "--", "sh", "-c", "kill -9 $$"),
		Entry("64: no command", exitUsage, "run needs", "NAME"),
		Entry("64: no --", exitUsage, "run needs", "NAME", "true"),
		Entry("64: two names", exitUsage, "run needs", "NAME", "other", "--", "true"),
		Entry("64: the empty name", exitUsage, "empty", "", "--", "true"),
		Entry("64: an unknown flag", exitUsage, "unknown flag", "--no-such", "NAME", "--", "true"),
		Entry("64: --try and --wait", exitUsage, "try", "--try", "--wait", "1s", "NAME", "--", "true"),
		Entry("64: a password in --url", exitUsage, "ps.*REDIS_PASSWORD.*--password-file", "--url", "redis://u:secret@127.0.0.1", "NAME", "--", "true"),
		Entry("64: --at-least is longer than --max-hold", exitUsage, "--at-least", "--at-least", "2s", "--max-hold", "1s", "NAME", "--", "true"),
		Entry("64: --holders and --shared", exitUsage, "holders", "--holders", "2", "--shared", "NAME", "--", "true"),
		Entry("64: no holders", exitUsage, "--holders 0", "--holders", "0", "NAME", "--", "true"),
		Entry("64: a lease that is too long", exitUsage, "lease", "--lease", "9999999h", "NAME", "--", "true"),
		Entry("69: nobody listens", exitUnavailable, "127.0.0.1:1.*refused.*Remedy", "--url", "redis://127.0.0.1:1", "NAME", "--", "true"),
		Entry("69: nobody listens, for the time of the wait", exitUnavailable, "refused", "--wait", "50ms", "--url", "redis://127.0.0.1:1", "NAME", "--", "true"),
		Entry("127: no such command", exitNotFound, "no-such-command", "NAME", "--", "no-such-command"),
		Entry("127: no such file", exitNotFound, "no/such", "NAME", "--", "./no/such"),
		Entry("126: not executable", exitCannotRun, "permission", "NAME", "--", "./go.mod"),
	)

	It("gives the lock back if the command cannot be started after all", func() {
		file := filepath.Join(GinkgoT().TempDir(), "text")
		Expect(os.WriteFile(file, []byte("no program"), 0o700)).To(Succeed()) //nolint:gosec // it is to be executable
		s := run(url, "run", name, "--", file)
		Expect(ends(s)).To(Equal(exitCannotRun))
		Expect(stderr(s)).To(ContainSubstring("exec format error"))
		Expect(ends(run(url, "run", "--try", name, "--", "true"))).To(BeZero())
	})

	DescribeTable("says who holds a busy lock:", func(args ...string) {
		token := "worker-7:secret"
		spec.MustAcquire(context.Background(), locker, name, redislock.WithToken(token))
		s := run(url, append(append([]string{"run"}, args...), name, "--", "true")...)
		Expect(ends(s)).To(Equal(exitBusy))
		Expect(stdout(s)).To(BeEmpty())
		Expect(stderr(s)).To(MatchRegexp(`^redislock: ` + name + ` is busy: held by worker-7 for [0-9.]+m?s, lease left [0-9.]+m?s, 0 waiting\n$`))
		s = run(url, append(append([]string{"run", "--quiet"}, args...), name, "--", "true")...)
		Expect(ends(s)).To(Equal(exitBusy))
		Expect(stderr(s)).To(BeEmpty())
	},
		Entry("--try", "--try"),
		Entry("--wait", "--wait", "50ms"),
	)

	It("gives the command its streams, the lock's name, fence and token", func() {
		cmd := command(url, "run", "--owner", "deploy", name, "--", "sh", "-c", `cat; echo "$LOCK_NAME $LOCK_FENCE $LOCK_TOKEN" >&2`)
		stdin, err := cmd.StdinPipe()
		Expect(err).NotTo(HaveOccurred())
		s := begin(cmd)
		_, err = io.WriteString(stdin, "some text\nwithout end")
		Expect(err).NotTo(HaveOccurred())
		Eventually(s.Out).Should(gbytes.Say("without end"))
		state := spec.StateOf(locker, name)
		Expect(stdin.Close()).To(Succeed())
		Expect(ends(s)).To(BeZero())
		Expect(stdout(s)).To(Equal("some text\nwithout end"))
		Expect(stderr(s)).To(Equal(fmt.Sprintf("%s %d %s\n", name, state.Fence, state.Holder)))
		Expect(state.Holder).To(HavePrefix("deploy:"))
	})

	It("gives the command the files that its caller had open, and no other", func() {
		file, err := os.Create(filepath.Join(GinkgoT().TempDir(), "file"))
		Expect(err).NotTo(HaveOccurred())
		defer file.Close()
		script := []string{"sh", "-c", "echo through >&3; ls /proc/self/fd"}
		direct := exec.Command(script[0], script[1:]...)
		through := command(url, append([]string{"run", name, "--"}, script...)...)
		var listed []string
		for _, cmd := range []*exec.Cmd{direct, through} {
			cmd.ExtraFiles = []*os.File{file}
			s := begin(cmd)
			Expect(ends(s)).To(BeZero())
			listed = append(listed, stdout(s))
		}
		Expect(listed[1]).To(Equal(listed[0]))
		Expect(os.ReadFile(file.Name())).To(BeEquivalentTo("through\nthrough\n"))
	})

	It("leaves signals ignored that its caller has ignored", func() {
		s := begin(command("", "run", "--url", url, name, "--", "sh", "-c", "kill -HUP $$; echo on"))
		Expect(ends(s)).To(Equal(exitSignal + int(syscall.SIGHUP)))
		cmd := command(url)
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `trap '' HUP; exec "$0" run "$1" -- sh -c 'kill -HUP $$; echo on'`, program(), name}
		s = begin(cmd)
		Expect(ends(s)).To(BeZero())
		Expect(stdout(s)).To(Equal("on\n"))
	})

	It("holds the lock together with others, if it is asked to", func() {
		hold := []string{"--", "sh", "-c", "echo on; exec sleep 1000"}
		code := func(args ...string) int {
			GinkgoHelper()
			return ends(run(url, append(append([]string{"run", "--try", "--quiet"}, args...), name, "--", "true")...))
		}
		for i, how := range [][]string{{"--holders", "2"}, {"--shared"}} {
			var holders []*gexec.Session
			for range 2 {
				s := run(url, append(append(append([]string{"run"}, how...), name), hold...)...)
				Eventually(s.Out).Should(gbytes.Say("on"))
				holders = append(holders, s)
			}
			Expect(code()).To(Equal(exitBusy))
			Expect(code("--holders", "2")).To(Equal(exitBusy))
			Expect(code("--holders", "3")).To(BeZero())
			Expect(code("--shared")).To(BeZero())
			for _, s := range holders {
				s.Terminate()
				Expect(ends(s)).To(Equal(exitSignal+int(syscall.SIGTERM)), "%d", i)
			}
			Expect(code()).To(BeZero())
		}
	})

	It("keeps the lock --at-least so long, and not longer", func() {
		Expect(ends(run(url, "run", "--at-least", "2s", name, "--", "true"))).To(BeZero())
		Expect(ends(run(url, "run", "--try", "--quiet", name, "--", "true"))).To(Equal(exitBusy))
		Eventually(func() int {
			return ends(run(url, "run", "--try", "--quiet", name, "--", "true"))
		}).Should(BeZero())
	})

	It("runs 60 at once in turn, on an empty server", spec.Longest, func() {
		dir := GinkgoT().TempDir()
		own := "redis://" + spec.OwnServer().Addr()
		var all []*gexec.Session
		for range 60 {
			all = append(all, run(own, "run", "migrate", "--", "sh", "-c",
				`mkdir "$1/busy" && echo done >> "$1/log" && rmdir "$1/busy"`, "sh", dir))
		}
		for _, s := range all {
			Eventually(s).WithTimeout(3 * spec.Soon).Should(gexec.Exit(0))
			Expect(stderr(s)).To(BeEmpty())
		}
		Expect(lines(filepath.Join(dir, "log"))).To(HaveLen(60))
	})

	It("shows no password and no token to ps", func() {
		const password = "correct-horse"
		server := spec.OwnServer("--requirepass", password)
		file := filepath.Join(GinkgoT().TempDir(), "password")
		Expect(os.WriteFile(file, []byte(password+"\n"), 0o600)).To(Succeed())
		for _, how := range [][]string{
			{"REDIS_URL=redis://" + server.Addr(), "REDIS_PASSWORD=" + password},
			{"REDIS_URL=redis://:" + password + "@" + server.Addr()},
			{"REDIS_URL=redis://default@" + server.Addr(), "--password-file", file},
		} {
			cmd := command("")
			cmd.Env = environ()
			for i, h := range how {
				if strings.HasPrefix(h, "REDIS_") {
					cmd.Env = append(cmd.Env, h)
				} else {
					cmd.Args = append(cmd.Args, how[i:]...)
					break
				}
			}
			cmd.Args = append(cmd.Args, "run", name, "--", "sh", "-c", "echo $LOCK_TOKEN; sleep 1000")
			s := begin(cmd)
			Eventually(s.Out).Should(gbytes.Say("\n"))
			all, err := filepath.Glob("/proc/[0-9]*/cmdline")
			Expect(err).NotTo(HaveOccurred())
			ours := 0
			for _, file := range all {
				text, _ := os.ReadFile(file)
				if strings.Contains(string(text), name) && strings.Contains(string(text), "redislock") {
					ours++
					Expect(string(text)).NotTo(ContainSubstring(password))
					Expect(string(text)).NotTo(ContainSubstring(strings.TrimSpace(stdout(s))))
				}
			}
			Expect(ours).To(Equal(2))
			s.Terminate()
			Expect(ends(s)).To(Equal(exitSignal + int(syscall.SIGTERM)))
		}
		s := run("redis://"+server.Addr(), "run", name, "--", "true")
		Expect(ends(s)).To(Equal(exitUnavailable))
		Expect(stderr(s)).To(MatchRegexp("NOAUTH.*Remedy: the password in REDIS_PASSWORD"))
	})
})
