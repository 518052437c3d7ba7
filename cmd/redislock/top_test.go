package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

const soon = 20 * time.Second

// A screen of 80x24 in tmux, with the program in it.
type screen struct {
	t      *testing.T
	g      *WithT
	socket string
}

func open(t *testing.T, url string, args ...string) *screen {
	return openWith(t, append([]string{"env", "REDIS_URL=" + url, program(), "top", "--tokens", "--interval", "200ms"}, args...)...)
}

func openWith(t *testing.T, command ...string) *screen {
	dir, err := os.MkdirTemp("", "top-") // a socket's path must be short
	g := NewWithT(t)
	g.Expect(err).NotTo(HaveOccurred())
	s := &screen{t, g, filepath.Join(dir, "tmux")}
	t.Cleanup(func() {
		_, _ = s.tmux("kill-server")
		_ = os.RemoveAll(dir)
	})
	_, err = s.tmux(append([]string{"new-session", "-d", "-x", "80", "-y", "24"}, command...)...)
	g.Expect(err).NotTo(HaveOccurred())
	return s
}

func (s *screen) tmux(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	cmd := exec.CommandContext(ctx, "tmux", append([]string{"-u", "-f", "/dev/null", "-S", s.socket}, args...)...)
	cmd.Env = append(os.Environ(), "TERM=xterm-256color", "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("tmux %s: %w: %s", args[0], err, out)
	}
	return string(out), err
}

func (s *screen) text() string {
	out, _ := s.tmux("capture-pane", "-p")
	return out
}

func (s *screen) press(keys ...string) {
	s.t.Helper()
	_, err := s.tmux(append([]string{"send-keys"}, keys...)...)
	s.g.Expect(err).NotTo(HaveOccurred())
}

// shows waits for these to be there, in this order.
func (s *screen) shows(patterns ...string) {
	s.t.Helper()
	s.g.Eventually(s.text).Should(MatchRegexp(`(?s)` + strings.Join(patterns, `.*`)))
}

// names are those of the list, in order.
func (s *screen) names() (names []string) {
	lines := strings.Split(s.text(), "\n")
	for _, line := range lines[min(3, len(lines)):] {
		if fields := strings.Fields(strings.TrimPrefix(line, ">")); len(fields) > 5 && fields[0] != "↑↓" {
			names = append(names, fields[0])
		}
	}
	return names
}

func (s *screen) ended() bool {
	_, err := s.tmux("has-session")
	return err != nil
}

// output runs the program without a terminal.
func output(url string, args ...string) (out, problems string, code int) {
	return runOnce(url, append([]string{"list", "--tokens"}, args...)...)
}

func runOnce(url string, args ...string) (out, problems string, code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*soon)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(), args...)
	cmd.Env = environ("REDIS_URL=" + url)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run()
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// server has the library, and a client.
func serve(t *testing.T, args ...string) (*redistest.Server, rueidis.Client) {
	g := NewWithT(t)
	s, err := redistest.Start(args...)
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = s.Stop() })
	return s, load(t, "redis://"+s.Addr())
}

func load(t *testing.T, url string) rueidis.Client {
	g := NewWithT(t)
	client, err := rueidis.NewClient(optionsFor(t, url))
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(client.Close)
	g.Expect(redislock.Load(t.Context(), client)).To(Succeed())
	return client
}

func optionsFor(t *testing.T, url string) rueidis.ClientOption {
	o, _, err := (&server{url: url, prefix: "lock"}).options("test")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	return o
}

// queue puts tokens into the queue of a lock; the first one gets it.
func queue(t *testing.T, client rueidis.Client, tagged string, tokens ...string) {
	t.Helper()
	var commands rueidis.Commands
	for _, token := range tokens {
		commands = append(commands, client.B().Fcall().Function("lock_acquire").Numkeys(4).
			Key("lock:"+tagged, "lock-queue:"+tagged, "lock-state:"+tagged, "lock-signal:"+tagged+":me").
			Arg(token, "600000", "600000").Build())
	}
	for _, result := range client.DoMulti(t.Context(), commands...) {
		NewWithT(t).Expect(result.Error()).NotTo(HaveOccurred())
	}
}

func collect(client rueidis.Client) *collector {
	return newCollector(client, "lock", 100, 1000)
}

func find(s Snapshot, name string) *Lock {
	for i := range s.Locks {
		if s.Locks[i].Name == name {
			return &s.Locks[i]
		}
	}
	return nil
}

// calls is how often the server ran a command.
func calls(t *testing.T, s *redistest.Server, command string) int {
	info, err := s.Do("INFO", "commandstats").ToString()
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	found := regexp.MustCompile(`cmdstat_` + command + `:calls=(\d+)`).FindStringSubmatch(info)
	if found == nil {
		return 0
	}
	n, _ := strconv.Atoi(found[1])
	return n
}

func TestListAndQueue(t *testing.T) {
	s, client := serve(t)
	queue(t, client, "{orders}", "anna", "bert", "cleo")
	queue(t, client, "order:{42}", "dora")
	g := NewWithT(t)
	lock, _, err := collect(client).read(t.Context(), "{orders}")
	g.Expect(err).NotTo(HaveOccurred())
	fence := strconv.FormatInt(lock.Fence, 10)

	top := open(t, "redis://"+s.Addr())
	top.shows(`2 locks, 2 waiting`,
		`> orders +alone +anna +[0-9.]+m?s +9m\d\ds +2 +[0-9.]+m?s `+fence+`\n`,
		`  order:\{42\} +alone +dora +[0-9.]+m?s +9m\d\ds +0 +- \d{16}\n`, `q quit`)
	top.press("Enter")
	top.shows(`orders  fence `+fence+`, 2 waiting\nheld by anna for [0-9.]+m?s, lease left 9m\d\ds\n`,
		`> +1 bert .*\n +2 cleo `)
	// It follows what goes on.
	queue(t, client, "{orders}", "emil")
	top.shows(`orders .* 3 waiting`, `> +1 bert`, `2 cleo`, `3 emil`)
	top.press("Escape")
	top.shows(`2 locks, 3 waiting`)
	top.press("Down", "Enter")
	top.shows(`order:\{42\} .* 0 waiting\nheld by dora`)

	_, err = top.tmux("resize-window", "-x", "60", "-y", "8")
	g.Expect(err).NotTo(HaveOccurred())
	top.press("Escape")
	top.shows(`2 locks`, ` orders +alone +anna`, `> order:`, `r reset …`)
	for _, line := range strings.Split(top.text(), "\n") {
		g.Expect(ansi.StringWidth(line)).To(BeNumerically("<=", 60))
	}
	top.press("q")
	g.Eventually(top.ended).Should(BeTrue())
}

func TestFilterAndSort(t *testing.T) {
	s, client := serve(t)
	queue(t, client, "{a-mail}", "anna")
	queue(t, client, "{b-cash}", "anna", "w1", "w2")
	queue(t, client, "{c-MAIL}", "bert", "w3")
	g := NewWithT(t)

	top := open(t, "redis://"+s.Addr())
	g.Eventually(top.names).Should(Equal([]string{"b-cash", "c-MAIL", "a-mail"})) // by waiting
	top.press("/")
	top.press("-l", "mail")
	g.Eventually(top.names).Should(Equal([]string{"c-MAIL", "a-mail"}))
	top.press("Enter")
	top.shows(`2 with mail`)
	top.press("Escape")
	g.Eventually(top.names).Should(HaveLen(3))
	top.press("/")
	top.press("-l", "bert") // a holder
	g.Eventually(top.names).Should(Equal([]string{"c-MAIL"}))
	top.press("Escape")
	g.Eventually(top.names).Should(HaveLen(3))

	top.shows(`> c-MAIL`)    // the one that was chosen stays it
	top.press("s", "s", "s") // longest, fence, name
	top.shows(`by name`, `a-mail`, `b-cash`, `> c-MAIL`)
	top.press("S")
	top.shows(`by name reversed`, `> c-MAIL`, `b-cash`, `a-mail`)
}

func TestSortsByEachColumn(t *testing.T) {
	locks := []Lock{
		{Name: "a", Count: 2, Token: "z:1", Owner: "z", Held: 10, Left: -1, Waiting: 1, Longest: 3, Fence: 2},
		{Name: "b", Count: 3, Token: "y:1", Owner: "y", Held: 30, Left: 500, Waiting: 3, Longest: 1, Fence: 3},
		{Name: "c", Held: -1, Left: -2, Waiting: 2, Longest: 2, Fence: 1},
	}
	for sort, want := range map[string]string{"name": "abc", "owner": "cba", "mode": "bac", "held": "bac", "lease": "bca",
		"waiting": "bca", "longest": "acb", "fence": "bac"} {
		got := ""
		for _, l := range (order{column: columnOf(sort)}).apply(locks) {
			got += l.Name
		}
		NewWithT(t).Expect(got).To(Equal(want), sort)
	}
	NewWithT(t).Expect(sorts()).To(HaveLen(8))
}

func TestResetHandsOn(t *testing.T) {
	s, client := serve(t)
	g := NewWithT(t)
	locker, err := redislock.New(client, redislock.Options{})
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(locker.Close)
	stuck, err := locker.Acquire(t.Context(), "orders", redislock.WithToken("stuck"))
	g.Expect(err).NotTo(HaveOccurred())
	next := make(chan *redislock.Lock, 1)
	go func() {
		lock, _ := locker.Acquire(t.Context(), "orders", redislock.WithToken("next"))
		next <- lock
	}()

	top := open(t, "redis://"+s.Addr())
	top.shows(`> orders +alone +stuck .* 1 `)
	top.press("r")
	top.shows(`Take orders away from stuck\? It may be at work. y/N`)
	top.press("n")
	top.shows(`not reset\n`)
	top.press("r", "Enter")
	top.shows(`not reset\n`)
	g.Expect(stuck.Context().Err()).NotTo(HaveOccurred())
	g.Expect(next).NotTo(Receive())

	top.press("r", "y")
	var lock *redislock.Lock
	g.Eventually(next).Should(Receive(&lock))
	g.Expect(lock.Token()).To(Equal("next"))
	g.Expect(lock.Fence()).To(BeNumerically(">", stuck.Fence()))
	top.shows(`> orders +alone +next .* 0 `, `orders was taken away from stuck`)
	g.Eventually(stuck.Context().Done()).Should(BeClosed())

	// In the queue's view too; a lock that nobody holds is not reset.
	top.press("Enter")
	top.shows(`held by next`)
	top.press("r", "y")
	top.shows(`nobody holds it`, `orders was taken away from next`)
	top.press("r")
	top.shows(`nobody holds orders`)
}

// Between the question and the yes the lock can go to somebody else, who must keep it.
func TestResetTakesItFromNobodyElse(t *testing.T) {
	s, client := serve(t)
	g := NewWithT(t)
	queue(t, client, "{orders}", "shown", "other")
	top := open(t, "redis://"+s.Addr())
	top.shows(`> orders +alone +shown`)
	top.press("r")
	top.shows(`Take orders away from shown\?`)
	g.Expect(client.Do(t.Context(), client.B().Fcall().Function("lock_release").Numkeys(3).
		Key("lock:{orders}", "lock-queue:{orders}", "lock-state:{orders}").Arg("shown").Build()).AsInt64()).To(BeEquivalentTo(1))
	queue(t, client, "{orders}", "other") // claims it
	top.press("y")
	top.shows(`> orders +alone +other`, `orders was not held by shown any more: nothing was reset`)
}

// user makes one of those of SECURITY.md, with the rights that README.md adds for a cluster, and more.
func user(t *testing.T, servers []*redistest.Server, name string, more ...string) {
	g := NewWithT(t)
	readme, err := os.ReadFile("../../docs/cli.md")
	g.Expect(err).NotTo(HaveOccurred())
	security, err := os.ReadFile("../../SECURITY.md")
	g.Expect(err).NotTo(HaveOccurred())
	rule := regexp.MustCompile(`ACL SETUSER ` + name + ` (?:.*\\\n)*.*`).FindString(string(security))
	g.Expect(rule).NotTo(BeEmpty())
	rule = strings.NewReplacer("\\\n", "", "'", "").Replace(rule)
	if len(servers) > 1 {
		needs := regexp.MustCompile("In a cluster it needs `([^`]+)`").FindStringSubmatch(string(readme))
		g.Expect(needs).NotTo(BeEmpty())
		more = append(more, strings.Fields(needs[1])...)
	}
	for _, s := range servers {
		g.Expect(s.Do(append(strings.Fields(rule), more...)...).Error()).NotTo(HaveOccurred())
	}
}

func TestReadOnlyUser(t *testing.T) {
	s, client := serve(t)
	g := NewWithT(t)
	user(t, []*redistest.Server{s}, "lock-observer")
	queue(t, client, "{orders}", "anna", "bert")

	url := "redis://lock-observer:observer-password@" + s.Addr()
	out, problems, code := output(url)
	g.Expect([]any{problems, code}).To(Equal([]any{"", 0}))
	g.Expect(out).To(MatchRegexp(`orders +alone +anna .* 1 `))

	top := open(t, url)
	top.shows(`redis://lock-observer:xxxxx@`, `> orders +alone +anna`)
	top.press("Enter")
	top.shows(`> +1 bert`)
	top.press("r", "y")
	top.shows(`held by anna`, `not reset: NOPERM .*fcall`)

	user(t, []*redistest.Server{s}, "lock-app", "+scan") // who may
	top = open(t, "redis://lock-app:app-password@"+s.Addr())
	top.shows(`> orders +alone +anna`)
	top.press("r", "y")
	top.shows(`> orders +alone +bert`, `orders was taken away from anna`)
}

func TestCluster(t *testing.T) {
	g := NewWithT(t)
	cluster, err := redistest.StartCluster(3, 1, 5*time.Second)
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = cluster.Stop() })
	url := "redis://" + cluster.Addrs()[0]
	client := load(t, url)
	on := map[*redistest.Server]string{} // a lock of each primary
	var names []string
	for i := 0; len(on) < 3; i++ {
		name := fmt.Sprintf("lock%d", i)
		if owner := cluster.Owner("{" + name + "}"); on[owner] == "" {
			on[owner] = name
			names = append(names, name)
			queue(t, client, "{"+name+"}", "anna", "bert")
		}
	}
	top := open(t, url, "--sort", "name")
	g.Eventually(top.names).Should(ConsistOf(names))
	top.press("Enter")
	top.shows(`1 waiting\nheld by anna`, `1 bert`)

	user(t, cluster.Servers, "lock-observer")
	out, problems, code := output("redis://lock-observer:observer-password@" + cluster.Addrs()[0])
	g.Expect([]any{problems, code}).To(Equal([]any{"", 0}))
	g.Expect(out).To(SatisfyAll(ContainSubstring(names[0]), ContainSubstring(names[1]), ContainSubstring(names[2])))

	// Replicas have the same keys: nobody looks there, and no lock is listed twice.
	g.Eventually(client.Nodes).Should(HaveLen(6)) // it knows them
	c := collect(client)
	looks := func() (all int) {
		for _, s := range cluster.Servers {
			if !slices.Contains(cluster.Primaries(), s) {
				all += calls(t, s, "scan") + calls(t, s, "fcall_ro")
			}
		}
		return all
	}
	before := looks()
	snap := c.refresh(t.Context(), time.Second)
	g.Expect(snap.Complete).To(BeTrue())
	g.Expect(snap.Errors).To(BeEmpty())
	g.Expect(snap.Locks).To(HaveLen(3))
	g.Expect(looks()).To(Equal(before))

	// A primary that is silent takes nothing away from the view of the others, and is named.
	dead := cluster.Owner("{" + names[0] + "}")
	g.Expect(dead.Pause()).To(Succeed())
	t.Cleanup(func() { _ = dead.Resume() })
	snap = c.refresh(t.Context(), time.Second)
	g.Expect(snap.Errors).To(ContainElement(HavePrefix(dead.Addr() + ": ")))
	g.Expect(find(snap, names[0]).Error).NotTo(BeEmpty())
	g.Expect(find(snap, names[0]).Token).To(Equal("anna")) // as it was known last
	g.Expect(find(snap, names[1]).Error).To(BeEmpty())
	g.Expect(find(snap, names[2]).Error).To(BeEmpty())
	// Its replica takes over, and everything is there again.
	g.Eventually(func() Snapshot { return c.refresh(t.Context(), time.Second) }).WithTimeout(2 * soon).Should(SatisfyAll(
		HaveField("Complete", true), HaveField("Errors", BeEmpty()), HaveField("Locks", HaveLen(3))))
}

func TestSentinel(t *testing.T) {
	g := NewWithT(t)
	sentinel, err := redistest.StartSentinel(1, 1, 2*time.Second)
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = sentinel.Stop() })
	url := "redis://" + sentinel.Addrs()[0] + "?master_set=" + redistest.PrimarySet
	queue(t, load(t, url), "{orders}", "anna", "bert")
	out, problems, code := output(url)
	g.Expect([]any{problems, code}).To(Equal([]any{"", 0}))
	g.Expect(out).To(MatchRegexp(`orders +alone +anna .* 1 `))

	// The lines that start it in README.md, with these servers. Their output is no terminal.
	s, client := serve(t)
	user(t, []*redistest.Server{s}, "lock-observer")
	queue(t, client, "{orders}", "anna", "bert")
	readme, err := os.ReadFile("../../docs/cli.md")
	g.Expect(err).NotTo(HaveOccurred())
	lines := regexp.MustCompile(`(?m)^.*make top.*`).FindAllString(string(readme), -1)
	g.Expect(lines).To(HaveLen(3))
	here := strings.NewReplacer("HOST:26379", sentinel.Addrs()[0], "NAME", redistest.PrimarySet, "HOST:6379", s.Addr(), "USER:PASSWORD", "lock-observer:observer-password")
	for _, line := range lines {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", here.Replace(line))
		cmd.Dir, cmd.Env = "../..", append(os.Environ(), "REDIS_URL=redis://"+s.Addr())
		out, err := cmd.CombinedOutput()
		g.Expect(err).NotTo(HaveOccurred(), "%s: %s", line, out)
		g.Expect(string(out)).To(MatchRegexp(`orders +alone +\? .* 1 `), line)
	}
}

// The bound that README.md states, on a server with a million other keys.
func TestMillionKeys(t *testing.T) {
	s, client := serve(t, "--enable-debug-command", "yes")
	g := NewWithT(t)
	// redis-cli has no time limit.
	out, err := exec.CommandContext(t.Context(), "redis-cli", "-e", "-p", strconv.Itoa(s.Port()), "DEBUG", "POPULATE", "1000000", "other", "3").CombinedOutput()
	g.Expect(err).NotTo(HaveOccurred(), string(out))
	const locks = 25
	for i := range locks {
		queue(t, client, fmt.Sprintf("{lock%d}", i), "anna", "bert")
	}
	g.Expect(s.Do("CONFIG", "RESETSTAT").Error()).NotTo(HaveOccurred())

	c := collect(client)
	c.limit = time.Minute // it is counted here, not timed
	var snap Snapshot
	rounds, scans, reads := 0, 0, 0
	for !snap.Complete {
		snap = c.refresh(t.Context(), 2*time.Second)
		rounds++
		scanned, read := calls(t, s, "scan")-scans, calls(t, s, "fcall_ro")-reads
		scans, reads = scans+scanned, reads+read
		g.Expect(snap.Errors).To(BeEmpty())
		g.Expect(scanned).To(BeNumerically("<=", 200))
		g.Expect(read).To(BeNumerically("<=", locks))
		g.Expect(rounds).To(BeNumerically("<", 20))
	}
	g.Expect(snap.Locks).To(HaveLen(locks))
	g.Expect(rounds).To(BeNumerically(">=", 10)) // it is spread
	g.Expect(scans).To(BeNumerically("<=", 2200))
	for _, command := range []string{"keys", "fcall", "set", "del"} {
		g.Expect(calls(t, s, command)).To(BeZero(), command)
	}
	t.Logf("1,000,000 other keys, %d locks: the first pass took %d refreshes, %d SCANs (200 a refresh at most), %d FCALL_ROs",
		locks, rounds, scans, reads)
	info, _ := s.Do("INFO", "commandstats").ToString()
	t.Log(regexp.MustCompile(`cmdstat_(scan|fcall_ro):\S+`).FindAllString(info, -1))
}

// More locks than may be read in one refresh are read in turn.
func TestManyLocks(t *testing.T) {
	s, client := serve(t)
	g := NewWithT(t)
	for i := range 300 {
		queue(t, client, fmt.Sprintf("{lock%d}", i), "anna")
	}
	c := collect(client)
	c.reads = 100
	read := map[string]int{}
	for i := range 3 {
		before := calls(t, s, "fcall_ro")
		snap := c.refresh(t.Context(), time.Second)
		g.Expect(calls(t, s, "fcall_ro") - before).To(Equal(100))
		g.Expect(snap.Locks).To(HaveLen(100 * (i + 1)))
		g.Expect(snap.Complete).To(Equal(i == 2))
	}
	// From now on the one that was read first is the first again.
	c.refresh(t.Context(), time.Second)
	for _, n := range c.nodes {
		for _, e := range n.known {
			read[strconv.Itoa(e.round)]++
		}
	}
	g.Expect(read).To(Equal(map[string]int{"2": 100, "3": 100, "4": 100}))
	// What is printed once is whole.
	out, problems, code := output("redis://"+s.Addr(), "--reads", "100")
	g.Expect(code).To(BeZero())
	g.Expect(strings.Count(out, "\n")).To(Equal(301))
	g.Expect(strings.Count(problems, "redislock: 1,000 keys looked at\n")).To(Equal(2)) // it took three refreshes
}

// A long queue counts for what it costs.
func TestLongQueues(t *testing.T) {
	s, client := serve(t)
	g := NewWithT(t)
	tokens := []string{"holder"}
	for i := range 1100 {
		tokens = append(tokens, fmt.Sprintf("w%d", i))
	}
	for i := range 3 {
		queue(t, client, fmt.Sprintf("{lock%d}", i), tokens...)
	}
	c := collect(client)
	c.reads = 100 // as many as a queue of 1,000 costs, almost
	c.refresh(t.Context(), time.Second)
	for range 3 {
		before := calls(t, s, "fcall_ro")
		snap := c.refresh(t.Context(), time.Second)
		g.Expect(calls(t, s, "fcall_ro") - before).To(Equal(1))
		g.Expect(snap.Locks).To(HaveLen(3))
		g.Expect(snap.Locks[0].Waiting).To(BeEquivalentTo(1100))
	}
	for _, n := range c.nodes {
		for _, e := range n.known {
			g.Expect(e.round).To(BeNumerically(">", 1)) // each had its turn
		}
	}
	top := open(t, "redis://"+s.Addr())
	top.shows(`> lock0 +alone +holder .* 1100 `)
	top.press("Enter")
	top.shows(`lock0 .* 1100 waiting, the first 1,000 are shown`, `> +1 w0`)
	top.press("End")
	top.shows(`  +999 w998`, `> +1000 w999 `)
}

// What is shown as a name is one by which the Go package finds the lock.
func TestNames(t *testing.T) {
	_, client := serve(t)
	g := NewWithT(t)
	locker, err := redislock.New(client, redislock.Options{})
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(locker.Close)
	want := map[string]string{"orders": "orders", "order:{42}": "order:{42}", "{tagged}": "tagged", "a}b": "{a}b}", "a{b": "{a{b}", "{a}{b}": "{a}{b}",
		"{}x{y": "{{}x{y}", "with space": "with space", "bytes\xff\x00": "bytes\xff\x00", "日本語": "日本語", "a:b-queue:c": "a:b-queue:c"}
	for name := range want {
		_, err := locker.TryAcquire(t.Context(), name, redislock.WithToken("holds "+name))
		g.Expect(err).NotTo(HaveOccurred(), name)
	}
	snap := collect(client).refresh(t.Context(), time.Second)
	got := map[string]string{}
	for _, lock := range snap.Locks {
		state, err := locker.Inspect(t.Context(), lock.Name)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(state.Holder).To(Equal(lock.Token))
		g.Expect(state.Fence).To(Equal(lock.Fence))
		got[strings.TrimPrefix(lock.Token, "holds ")] = lock.Name
	}
	g.Expect(got).To(Equal(want))
}

// Keys that are no locks, a prefix with the signs of a pattern, and a lock that nobody uses any more.
func TestOtherKeys(t *testing.T) {
	s, client := serve(t)
	g := NewWithT(t)
	for _, key := range []string{"lock:plain", "lock:{}x", "lock:", "xlock:{a}", "lock-state:{b}", "locks:{c}"} {
		g.Expect(s.Do("SET", key, "1").Error()).NotTo(HaveOccurred())
	}
	g.Expect(s.Do("SET", "l[k]*:{ours}", "anna").Error()).NotTo(HaveOccurred())
	g.Expect(s.Do("SET", "lock:{k}", "bert").Error()).NotTo(HaveOccurred())
	c := collect(client)
	c.prefix = "l[k]*"
	g.Expect(c.refresh(t.Context(), time.Second).Locks).To(ConsistOf(HaveField("Name", "ours")))

	c = collect(client)
	g.Expect(c.refresh(t.Context(), time.Second).Locks).To(ConsistOf(SatisfyAll(
		HaveField("Name", "k"), HaveField("Held", BeEquivalentTo(-1)), HaveField("Left", BeEquivalentTo(-1)))))
	g.Expect(s.Do("DEL", "lock:{k}").Error()).NotTo(HaveOccurred())
	g.Expect(c.refresh(t.Context(), time.Second).Locks).To(BeEmpty())
	c.refresh(t.Context(), time.Second)
	for _, n := range c.nodes {
		g.Expect(n.known).To(BeEmpty()) // a whole pass did not meet it, after it was found free
	}
	// What is no lock says so, in its row, and the others are shown.
	g.Expect(s.Do("HSET", "lock:{profile}", "a", "b").Error()).NotTo(HaveOccurred())
	queue(t, client, "{orders}", "anna")
	snap := c.refresh(t.Context(), time.Second)
	g.Expect(find(snap, "profile").Error).To(HavePrefix("WRONGTYPE"))
	g.Expect(find(snap, "orders").Token).To(Equal("anna"))
}

func TestPlainAndJSON(t *testing.T) {
	s, client := serve(t)
	g := NewWithT(t)
	queue(t, client, "{orders}", "anna", "bert")
	queue(t, client, "{mail}", "tok\xff\x1b[31m")
	queue(t, client, "{日本語}", "cleo")
	url := "redis://" + s.Addr()

	out, problems, code := output(url, "--sort", "name")
	g.Expect([]any{problems, code}).To(Equal([]any{"", 0}))
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	g.Expect(lines).To(HaveLen(4))
	for i, start := range []string{`NAME +MODE +OWNER +HELD +LEASE WAITING LONGEST +FENCE`, `mail +alone +"tok\\xff\\x1b\[31m" `, `orders +alone +anna `, `日本語 +alone +cleo `} {
		g.Expect(lines[i]).To(MatchRegexp("^" + start))
		g.Expect(ansi.StringWidth(lines[i])).To(Equal(ansi.StringWidth(lines[0])))
	}
	out, _, _ = output(url, "--filter", "ord")
	g.Expect(strings.Split(out, "\n")).To(HaveLen(3))

	out, problems, code = output(url, "--json", "--sort", "name")
	g.Expect([]any{problems, code}).To(Equal([]any{"", 0}))
	var doc struct {
		Complete bool
		Locks    []map[string]any
	}
	g.Expect(json.Unmarshal([]byte(out), &doc)).To(Succeed())
	g.Expect(doc.Complete).To(BeTrue())
	g.Expect(doc.Locks).To(HaveLen(3))
	g.Expect(doc.Locks[0]).To(HaveKeyWithValue("token", `"tok\xff\x1b[31m"`))
	g.Expect(doc.Locks[1]).To(SatisfyAll(HaveKeyWithValue("name", "orders"), HaveKeyWithValue("token", "anna"),
		HaveKeyWithValue("waiting", 1.0), HaveKeyWithValue("fence", BeNumerically(">", 1e15)),
		HaveKeyWithValue("lease_left_ms", BeNumerically(">", 500_000.0)),
		HaveKeyWithValue("held_ms", BeNumerically(">=", 0.0)), HaveKeyWithValue("longest_wait_ms", BeNumerically(">=", 0.0))))
	g.Expect(doc.Locks[2]).To(HaveKeyWithValue("name", "日本語"))
}

// One document for each refresh, until it is told to end.
func TestJSONStream(t *testing.T) {
	s, client := serve(t)
	g := NewWithT(t)
	cmd := exec.CommandContext(t.Context(), program(), "top", "--tokens", "--json", "--interval", "100ms")
	cmd.Env = environ("REDIS_URL=redis://" + s.Addr())
	out, err := cmd.StdoutPipe()
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(cmd.Start()).To(Succeed())
	documents := json.NewDecoder(out)
	var snap Snapshot
	g.Expect(documents.Decode(&snap)).To(Succeed())
	g.Expect(snap.Locks).To(BeEmpty())
	queue(t, client, "{orders}", "anna")
	for len(snap.Locks) == 0 {
		g.Expect(documents.Decode(&snap)).To(Succeed())
	}
	g.Expect(find(snap, "orders").Token).To(Equal("anna"))
	g.Expect(cmd.Process.Signal(syscall.SIGINT)).To(Succeed())
	for documents.Decode(&snap) == nil { // until it has closed its output
	}
	g.Expect(cmd.Wait()).To(Succeed())
}

func TestTrouble(t *testing.T) {
	g := NewWithT(t)
	s, err := redistest.Start()
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(func() { _ = s.Stop() })
	url := "redis://:secret@" + s.Addr()
	for _, wrong := range []struct {
		url     string
		code    int
		problem string
		args    []string
	}{
		{"redis://user:secret@127.0.0.1:1", exitUnavailable, `redis://user:xxxxx@127.0.0.1:1: .*connection refused.*Remedy`, nil},
		{"redis://user:secret@127.0.0.1:x", exitUsage, `REDIS_URL: .*port`, nil},
		{"http://user:secret@127.0.0.1", exitUsage, `REDIS_URL: .*scheme`, nil},
		{"", exitUsage, `--sort "x": none of name, mode, owner, `, []string{"--sort", "x"}},
		{"", exitUsage, `--scans and --reads`, []string{"--reads", "0"}},
		{"", exitUsage, `--prefix "\{"`, []string{"--prefix", "{"}},
		{"", exitUsage, `unknown command "x"`, []string{"x"}},
	} {
		out, problems, code := output(wrong.url, wrong.args...)
		g.Expect(code).To(Equal(wrong.code), wrong.problem)
		g.Expect(out).To(BeEmpty())
		g.Expect(problems).To(MatchRegexp("^redislock: " + wrong.problem))
		g.Expect(problems).NotTo(ContainSubstring("secret"))
	}

	// Without the library nothing can be read.
	g.Expect(s.Do("SET", "lock:{orders}", "anna").Error()).NotTo(HaveOccurred())
	out, problems, code := output(strings.Replace(url, ":secret@", "", 1))
	g.Expect(code).To(Equal(exitUnavailable))
	g.Expect(out).To(ContainSubstring("orders"))
	g.Expect(problems).To(MatchRegexp("Function not found.*Remedy: redislock load"))

	// A server that goes away while somebody looks, and comes back.
	client := load(t, "redis://"+s.Addr())
	top := open(t, "redis://"+s.Addr())
	top.shows(`> orders +alone +anna`)
	top.press("r", "n")
	g.Expect(s.Kill()).To(Succeed())
	top.shows(`> orders`, `not reset; `+s.Addr()+`: SCAN: `)
	g.Expect(s.Restart()).To(Succeed())
	g.Expect(redislock.Load(t.Context(), client)).To(Succeed())
	queue(t, client, "{mail}", "bert")
	top.shows(`1 locks, 0 waiting`, `> mail +alone +bert`)
	g.Expect(top.text()).NotTo(ContainSubstring("refused"))
}

// The screens in README.md are what the program draws. UPDATE=1 writes them there.
func TestReadmeShowsTheScreen(t *testing.T) {
	g := NewWithT(t)
	m := newModel(t.Context(), &collector{}, order{column: columnOf("waiting")}, "redis://127.0.0.1:6379", 2*time.Second)
	m.Update(tea.WindowSizeMsg{Width: 80, Height: 10})
	orders := Lock{Name: "orders", Mode: modeAlone, Owner: "worker-7", Token: "worker-7:Yk3fQ0", Held: 754_000, Left: 8_100, Waiting: 3, Longest: 741_200, Fence: 1795457905573451, tagged: "{orders}"}
	m.Update(snapshotMsg{Complete: true, Locks: []Lock{
		{Name: "order:{42}", Mode: modeAlone, Owner: "worker-2", Token: "worker-2:p0Zx7a", Held: 310, Left: 9_690, Fence: 1795458659263210, tagged: "order:{42}"},
		{Name: "nightly-report", Mode: modeAlone, Owner: "cron", Token: "cron:8Hs0aW", Held: 12_240_000, Left: -1, Waiting: 1, Longest: 61_000, Fence: 1795446419573002, tagged: "{nightly-report}"},
		orders,
	}})
	list := ansi.Strip(m.View().Content)
	m.Update(tea.KeyPressMsg{Code: tea.KeyEnter})
	m.Update(lockMsg{lock: orders, waiters: []Waiter{

		{"worker-3", "worker-3:W1m9Qe", 741_200, 28_400, 10_000, 1}, {"worker-9", "worker-9:tT52Lb", 90_050, 24_000, 10_000, 1},
		{"deploy", "deploy:0c8Jrk", 4_300, 29_100, 0, 1}}})
	m.Update(tea.KeyPressMsg{Code: 'r', Text: "r"})
	queue := ansi.Strip(m.View().Content)

	trailing := regexp.MustCompile(`(?m) +$`)
	want := "```text\n" + trailing.ReplaceAllString(list, "") + "\n```\n\n`enter`, then `r`:\n\n```text\n" + trailing.ReplaceAllString(queue, "") + "\n```\n"
	readme, err := os.ReadFile("../../docs/cli.md")
	g.Expect(err).NotTo(HaveOccurred())
	if os.Getenv("UPDATE") != "" {
		at := regexp.MustCompile("(?s)```text\n.*?```\n.*?```text\n.*?```\n").FindIndex(readme) // the first two
		readme = slices.Concat(readme[:at[0]], []byte(want), readme[at[1]:])
		g.Expect(os.WriteFile("../../docs/cli.md", readme, 0o644)).To(Succeed())
	}
	g.Expect(string(readme)).To(ContainSubstring(want))
}
