package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"github.com/onsi/gomega/gexec"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/spec"
)

// document is what a call prints with --json.
func document(url string, args ...string) (doc any) {
	GinkgoHelper()
	s := run(url, append(args, "--json")...)
	Expect(ends(s)).To(BeZero(), stderr(s))
	Expect(json.Unmarshal(s.Out.Contents(), &doc)).To(Succeed())
	return doc
}

// fieldsOf are the names in an object.
func fieldsOf(object any) []string {
	GinkgoHelper()
	return slices.Sorted(maps.Keys(object.(map[string]any)))
}

var _ = spec.OnEachTopology("On each topology,", func() {
	var (
		ctx       context.Context
		name, url string
		locker    *redislock.Locker
	)
	BeforeEach(func(c SpecContext) {
		ctx = context.WithoutCancel(c)
		server := spec.OwnRedis()
		name, url = spec.NewName(), urlOf(server.Addr())
		locker = spec.NewLocker(server.Addr())
	})

	It("list, inspect and reset show and repair locks, and no token", func() {
		spec.MustAcquire(ctx, locker, name, redislock.WithToken("worker-7:secret"))
		spec.MustAcquire(ctx, locker, "order:{42}", redislock.WithShared(), redislock.WithToken("reader-1:secret"))
		spec.MustAcquire(ctx, locker, "order:{42}", redislock.WithHolders(5), redislock.WithToken("reader-2:secret"))
		waits, leave := context.WithCancel(ctx)
		defer leave()
		next := spec.Acquiring(waits, locker, name, 1, redislock.WithToken("worker-8:secret"), redislock.WithHolders(3))

		s := run(url, "list")
		Expect(ends(s)).To(BeZero())
		Expect(stdout(s)).To(MatchRegexp(`(?m)^NAME +MODE +OWNER +HELD +LEASE WAITING LONGEST +FENCE\n` +
			name + ` +alone +worker-7 +\S+ +\S+ +1 +\S+ +\d{16}\norder:\{42\} +shared reader-[12] \+1 +\S+ +\S+ +0 +- \d{16}\n$`))
		s2 := run(url, "inspect", name)
		Expect(ends(s2)).To(BeZero())
		Expect(stdout(s2)).To(MatchRegexp(`^` + name + `: held by worker-7 for \S+, lease left \S+; fence \d{16}, 1 waiting\n` +
			`PLACE OWNER +WAITED LAPSES IN LEASE TOGETHER\n +1 worker-8 +\S+ +\S+ +10.0s +3\n$`))
		s3 := run(url, "inspect", "order:{42}")
		Expect(ends(s3)).To(BeZero())
		Expect(stdout(s3)).To(MatchRegexp(`HOLDER OWNER +LEASE\n +1 reader-\d +\S+\n +2 reader-\d +\S+\n$`))
		for _, s := range []*gexec.Session{s, s2, s3, run(url, "list", "--json"), run(url, "inspect", name, "--json"), run(url, "metrics")} {
			Expect(ends(s)).To(BeZero())
			Expect(stdout(s)).NotTo(ContainSubstring("secret"))
		}
		s = run(url, "inspect", "--tokens", name)
		Expect(ends(s)).To(BeZero())
		Expect(stdout(s)).To(SatisfyAll(ContainSubstring("worker-7:secret"), ContainSubstring("worker-8:secret")))

		Expect(document(url, "reset", name)).To(Equal(map[string]any{"reset": 1.0}))
		var lock *redislock.Lock
		Eventually(next).Should(Receive(&lock))
		Expect(document(url, "reset", name)).To(Equal(map[string]any{"reset": 1.0}))
		Expect(document(url, "reset", name)).To(Equal(map[string]any{"reset": 0.0}))
		s = run(url, "reset", "--all")
		Expect(ends(s)).To(Equal(exitUsage))
		Expect(stderr(s)).To(ContainSubstring("--yes"))
		Expect(spec.StateOf(locker, "order:{42}").Held).To(Equal(2))
		Expect(document(url, "reset", "--all", "--yes")).To(Equal(map[string]any{"reset": 1.0}))
		Expect(spec.StateOf(locker, "order:{42}").Held).To(BeZero())
	})

	It("load and verify put the library there, and check it", func() {
		s := run(url, "verify")
		Expect(ends(s)).To(Equal(exitFailed))
		Expect(stdout(s)).To(MatchRegexp(`library +FAIL +.*Function not found`))
		Expect(stdout(s)).To(MatchRegexp(`(?m)^library: redislock load`))

		for _, before := range []string{"", redislock.Version} {
			for _, l := range document(url, "load").([]any) {
				Expect(l).To(SatisfyAll(HaveKeyWithValue("before", before), HaveKeyWithValue("now", redislock.Version)))
			}
		}
		s = run(url, "verify")
		Expect(ends(s)).To(BeZero())
		Expect(stdout(s)).To(MatchRegexp(`library +ok`))
	})

	It("run runs, and runs again", func() {
		for range 2 {
			s := run(url, "run", "--try", name, "--", "sh", "-c", "echo $LOCK_FENCE")
			Expect(ends(s)).To(BeZero(), stderr(s))
			Expect(stdout(s)).To(MatchRegexp(`^\d{16}\n$`))
		}
	})
})

var _ = Describe("The tools", func() {
	var url string
	BeforeEach(func() { url = urlOf(spec.Server.Addr()) })

	It("verify tells another text, an eviction policy, and what a user may not see", func() {
		server := spec.OwnServer()
		url := urlOf(server.Addr())
		client := spec.Connect(server.Addr())
		spec.Put(client, redislock.Source()+"\n-- tampered with\n")
		Expect(server.Do("CONFIG", "SET", "maxmemory-policy", "volatile-lru").Error()).NotTo(HaveOccurred())
		s := run(url, "verify")
		Expect(ends(s)).To(Equal(exitFailed))
		Expect(stdout(s)).To(SatisfyAll(MatchRegexp(`library +FAIL +.*not the text`), MatchRegexp(`eviction +FAIL +volatile-lru`),
			MatchRegexp(`persistence +warn`), MatchRegexp(`replicas +warn +0`), MatchRegexp(`(?m)^eviction: CONFIG SET maxmemory-policy noeviction`)))

		Expect(server.Do("CONFIG", "SET", "maxmemory-policy", "noeviction").Error()).NotTo(HaveOccurred())
		spec.Put(client, redislock.Source())
		Expect(ends(run(url, "verify"))).To(BeZero())
		Expect(server.Do("ACL", "SETUSER", "some", "on", "nopass", "+fcall_ro").Error()).NotTo(HaveOccurred())
		s = run("redis://some@"+server.Addr(), "verify")
		Expect(ends(s)).To(Equal(exitFailed))
		Expect(stdout(s)).To(SatisfyAll(MatchRegexp(`library +warn`), MatchRegexp(`server +FAIL +NOPERM`), ContainSubstring("needs +info")))
	})

	It("acl prints what SECURITY.md says, and it is enough", func() {
		text, err := os.ReadFile("../../SECURITY.md")
		Expect(err).NotTo(HaveOccurred())
		security := strings.NewReplacer("\\\n", "", "'", "").Replace(string(text))
		doc := document("", "acl").(map[string]any)
		Expect(doc).To(HaveLen(3))
		server := spec.OwnServer()
		for user, line := range doc {
			rule := regexp.MustCompile(`redis-cli (ACL SETUSER lock-` + user + ` .*)`).FindStringSubmatch(security)
			Expect(rule).To(HaveLen(2))
			printed := strings.ReplaceAll(line.(string), "'", "")
			Expect(strings.Fields(printed)).To(Equal(strings.Fields(strings.ReplaceAll(rule[1], user+"-password", "PASSWORD"))))
			Expect(server.Do(strings.Fields(printed)...).Error()).NotTo(HaveOccurred())
		}
		as := func(user string, args ...string) *gexec.Session {
			cmd := command("redis://lock-"+user+"@"+server.Addr(), args...)
			cmd.Env = append(cmd.Env, "REDIS_PASSWORD=PASSWORD")
			return begin(cmd)
		}
		s := as("app", "run", "orders", "--", "true")
		Expect(ends(s)).To(Equal(exitUnavailable))
		Expect(stderr(s)).To(MatchRegexp(`the function library is missing on \S+. Remedy: redislock load`))
		Expect(ends(as("loader", "load"))).To(BeZero())
		Expect(ends(as("app", "run", "orders", "--", "true"))).To(BeZero())
		Expect(ends(as("observer", "list"))).To(BeZero())
		Expect(ends(as("observer", "inspect", "orders"))).To(BeZero())
		Expect(ends(as("observer", "metrics"))).To(BeZero())
		s = as("observer", "reset", "orders")
		Expect(ends(s)).To(Equal(exitUnavailable))
		Expect(stderr(s)).To(MatchRegexp("NOPERM.*Remedy: the rights that redislock acl prints"))

		s = run("", "acl", "app", "--prefix", "billing")
		Expect(ends(s)).To(BeZero())
		Expect(stdout(s)).To(HavePrefix("ACL SETUSER billing-app reset on '>PASSWORD' resetchannels '~billing:*' "))
		Expect(ends(run("", "acl", "nobody"))).To(Equal(exitUsage))
	})

	It("print the fields that docs/cli.md has", func() {
		server := spec.OwnServer()
		url := urlOf(server.Addr())
		locker := spec.NewLocker(server.Addr())
		spec.MustAcquire(context.Background(), locker, "orders")
		ctx, leave := context.WithCancel(context.Background())
		defer leave()
		spec.Acquiring(ctx, locker, "orders", 1)
		text, err := os.ReadFile("../../docs/cli.md")
		Expect(err).NotTo(HaveOccurred())
		_, schema, _ := strings.Cut(string(text), "## JSON")
		schema, _, _ = strings.Cut(schema, "## Recipes")
		list := document(url, "list", "--tokens").(map[string]any)
		lock := list["locks"].([]any)[0]
		details := document(url, "inspect", "--tokens", "orders").(map[string]any)
		want := map[string][]string{
			"list":    {"complete", "keys_looked_at", "locks", "time"},
			"lock":    {"fence", "held", "held_ms", "lease_left_ms", "longest_wait_ms", "mode", "name", "owner", "token", "waiting"},
			"holder":  {"lease_left_ms", "owner", "token"},
			"waiter":  {"holders", "lapses_in_ms", "lease_ms", "owner", "token", "waited_ms"},
			"verify":  {"check", "found", "node", "state"},
			"load":    {"before", "node", "now"},
			"acl":     {"app", "loader", "observer"},
			"version": {"library", "program"},
		}
		got := map[string][]string{
			"list": fieldsOf(list), "lock": fieldsOf(lock),
			"holder":  fieldsOf(details["holders"].([]any)[0]),
			"waiter":  fieldsOf(details["waiters"].([]any)[0]),
			"verify":  fieldsOf(document(url, "verify").([]any)[0]),
			"load":    fieldsOf(document(url, "load").([]any)[0]),
			"acl":     fieldsOf(document(url, "acl")),
			"version": fieldsOf(document(url, "version")),
		}
		Expect(got).To(Equal(want))
		for kind, fields := range want {
			for _, field := range fields {
				if kind != "acl" {
					Expect(schema).To(ContainSubstring("`"+field+"`"), kind)
				}
			}
		}
	})

	It("metrics are what Prometheus reads, bounded, once and on a port", func() {
		server := spec.OwnServer()
		url := urlOf(server.Addr())
		locker := spec.NewLocker(server.Addr())
		for i := range 5 {
			spec.MustAcquire(context.Background(), locker, fmt.Sprintf("lock %d \"\\\n\xff", i))
		}
		spec.MustAcquire(context.Background(), locker, strings.Repeat("long", 1000), redislock.WithoutExpiry())
		s := run(url, "metrics", "--max-locks", "100")
		Expect(ends(s)).To(BeZero())
		all := stdout(s)
		Expect(all).To(SatisfyAll(ContainSubstring("\nredislock_up 1\n"), ContainSubstring("\nredislock_locks_held 6\n"),
			MatchRegexp(`\nredislock_never_expires\{lock="(long){50}…"\} 1\n`)))
		check := exec.Command("promtool", "check", "metrics")
		check.Stdin = bytes.NewReader(s.Out.Contents())
		out, err := check.CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), string(out))
		Expect(out).To(BeEmpty())

		s = run(url, "metrics", "--max-locks", "2")
		Expect(ends(s)).To(BeZero())
		Expect(strings.Count(stdout(s), "\nredislock_holders{")).To(Equal(2))
		Expect(stdout(s)).To(SatisfyAll(ContainSubstring("\nredislock_locks_omitted 4\n"), ContainSubstring("\nredislock_locks_held 6\n")))

		s = run(url, "metrics", "--listen", "127.0.0.1:0", "--interval", "1s")
		Eventually(s.Err).Should(gbytes.Say("metrics at http://"))
		at := regexp.MustCompile(`http://\S+`).FindString(stderr(s))
		scrape := func() string {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: spec.Soon}
			reply, err := client.Get(at)
			Expect(err).NotTo(HaveOccurred())
			defer reply.Body.Close()
			text, err := io.ReadAll(reply.Body)
			Expect(err).NotTo(HaveOccurred())
			return string(text)
		}
		Expect(scrape()).To(ContainSubstring("\nredislock_locks_held 6\n"))
		spec.MustAcquire(context.Background(), locker, "one more")
		Eventually(scrape).Should(ContainSubstring("\nredislock_locks_held 7\n"))
		Expect(server.Pause()).To(Succeed())
		Eventually(scrape).Should(ContainSubstring("\nredislock_up 0\n"))
		Expect(server.Resume()).To(Succeed())
		Eventually(scrape).Should(ContainSubstring("\nredislock_up 1\n"))
		s.Terminate()
		Expect(ends(s)).To(BeZero())
	})

	It("have alert rules that promtool takes and tests, and a dashboard of metrics that exist", func() {
		for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
			cmd := exec.Command("promtool", args...)
			cmd.Dir = "monitoring"
			out, err := cmd.CombinedOutput()
			Expect(err).NotTo(HaveOccurred(), string(out))
		}
		rules, err := os.ReadFile("monitoring/alerts.yml")
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.Count(string(rules), "- alert: ")).To(Equal(6))
		dashboard, err := os.ReadFile("monitoring/dashboard.json")
		Expect(err).NotTo(HaveOccurred())
		Expect(json.Valid(dashboard)).To(BeTrue())

		server := spec.OwnServer()
		spec.MustAcquire(context.Background(), spec.NewLocker(server.Addr()), "orders")
		s := run(urlOf(server.Addr()), "metrics")
		Expect(ends(s)).To(BeZero())
		docs, err := os.ReadFile("../../docs/cli.md")
		Expect(err).NotTo(HaveOccurred())
		ours := regexp.MustCompile(`(?m)^# TYPE (\S+) gauge$`).FindAllStringSubmatch(stdout(s), -1)
		Expect(ours).To(HaveLen(13))
		for _, m := range ours {
			Expect(string(docs)).To(ContainSubstring("`" + m[1] + "`"))
			Expect(m[1] == "redislock_complete" || strings.Contains(string(dashboard)+string(rules), m[1])).To(BeTrue(), m[1])
		}
		for _, expression := range regexp.MustCompile(`(?m)expr"?: .*$`).FindAllString(string(rules)+string(dashboard), -1) {
			for _, name := range regexp.MustCompile(`redislock_[a-z_]+`).FindAllString(expression, -1) {
				Expect(stdout(s)).To(ContainSubstring("# TYPE " + name + " gauge"))
			}
		}
	})

	It("list shows names at 80 columns", func() {
		long := strings.Repeat("n", 26)
		locks := []Lock{{Name: long, Mode: modeAlone, Count: 1, Owner: "ip-10-0-12-34.eu-west-1:12345", Token: "t", Waiting: 3, Held: 1, Left: 1, Fence: 1795457905573451, Longest: 5}}
		var b bytes.Buffer
		Expect((&lister{}).writeTable(&b, Snapshot{Locks: locks}, 80)).To(Succeed())
		for line := range strings.Lines(b.String()) {
			Expect(len([]rune(strings.TrimRight(line, "\n")))).To(BeNumerically("<=", 80))
		}
		Expect(b.String()).To(ContainSubstring(long + " "))
		b.Reset()
		Expect((&lister{}).writeTable(&b, Snapshot{Locks: locks}, 0)).To(Succeed())
		Expect(b.String()).To(SatisfyAll(ContainSubstring("ip-10-0-12-34.eu-west-1:12345"), ContainSubstring("1795457905573451")))
	})

	DescribeTable("refuse", func(words string, args ...string) {
		s := run(url, args...)
		Expect(ends(s)).To(Equal(exitUsage))
		Expect(stdout(s)).To(BeEmpty())
		Expect(stderr(s)).To(MatchRegexp("^redislock: .*" + words + ".*\nSee 'redislock"))
	},
		Entry("an unknown command", "unknown command", "lst"),
		Entry("no name", "names", "inspect"),
		Entry("two names", "names", "reset", "a", "b"),
		Entry("a name and --all", "not both", "reset", "--all", "--yes", "a"),
		Entry("a prefix with a colon", "colon", "list", "--prefix", "a:b"),
		Entry("a password file that is not there", "no such file", "list", "--password-file", "/no/such"),
		Entry("an address that cannot be served at", "--listen", "metrics", "--listen", "127.0.0.1:x"),
	)
})
