package interop_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

// runners run the fenced blocks of a language: where, and how. The block is the input. Those of "console" and "bash" are for a shell.
var runners = map[string]struct {
	dir     string
	command []string
}{
	"sh":     {".", []string{"sh", "-e"}},
	"python": {"clients/python", []string{"python3", "-B", "-"}},
	"js":     {"clients/node", []string{"node", "--input-type=module", "-"}},
}

var (
	// headingOrBlock is a heading, or a fenced block: its language, and its text.
	headingOrBlock = regexp.MustCompile("(?ms)^#+ ([^\n]*)$|^```(\\w*)\n(.*?)^```$")
	// userOf is redis-cli's user of SECURITY.md below a heading. The default is the administrator.
	userOf = regexp.MustCompile(`\((lock-\w+)\)$`)
	// transcript is a line "$ command", which a backslash continues, and what it prints.
	transcript = regexp.MustCompile(`(?m)^\$ ((?:.*\\\n)*.*)\n((?:[^$\n].*\n|\n)*)`)
	number     = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|\d*\.?\d{3,}`)
)

// withoutNumbers has no time of day, and no number of three digits or more: leases and fences.
func withoutNumbers(text string) string { return number.ReplaceAllString(text, "N") }

// A shell is one bash that runs the commands of a document one after the other, in a folder of its own that
// has lua in it: what one command defines, or writes to a file, is there for the next.
type shell struct {
	commands io.Writer
	output   *bufio.Reader
}

func startShell(ctx context.Context, env []string) *shell {
	GinkgoHelper()
	dir := GinkgoT().TempDir()
	Expect(os.Symlink(filepath.Join(root(), "lua"), filepath.Join(dir, "lua"))).To(Succeed())
	// Not from its stdin: a command that reads that would swallow those that follow.
	commands, to, err := os.Pipe()
	Expect(err).NotTo(HaveOccurred())
	from, output, err := os.Pipe()
	Expect(err).NotTo(HaveOccurred())
	cmd := command(ctx, ".", append(env, "LC_ALL=C"), "bash", "/dev/fd/3")
	cmd.Dir, cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = dir, []*os.File{commands}, output, output
	Expect(cmd.Start()).To(Succeed())
	Expect(commands.Close()).To(Succeed())
	Expect(output.Close()).To(Succeed())
	DeferCleanup(func() {
		_ = cmd.Cancel() // with all that it started
		_ = cmd.Wait()
		_ = to.Close()
		_ = from.Close()
	})
	return &shell{commands: to, output: bufio.NewReader(from)}
}

// run returns what a command prints. A command that fails fails the spec.
func (s *shell) run(command string) string {
	GinkgoHelper()
	const end = "-- end of the command: "
	_, err := fmt.Fprintf(s.commands, "%s\necho '%s'$?\n", command, end)
	Expect(err).NotTo(HaveOccurred())
	output := ""
	for {
		line, err := s.output.ReadString('\n')
		before, status, ended := strings.Cut(line, end)
		output += before
		Expect(err).NotTo(HaveOccurred(), "%s\n%s", command, output)
		if ended {
			Expect(status).To(Equal("0\n"), "%s\n%s", command, output)
			return output
		}
	}
}

var _ = DescribeTable("Every block in the documents runs as it stands, and prints what it shows:",
	func(ctx SpecContext, file string, minimum int) {
		text, err := os.ReadFile(filepath.Join(root(), file))
		Expect(err).NotTo(HaveOccurred())

		// A redis-cli that talks to a server of this spec's own: the blocks follow on each other.
		server := startServer()
		cli, err := exec.LookPath("redis-cli")
		Expect(err).NotTo(HaveOccurred())
		bin := GinkgoT().TempDir()
		script := "#!/bin/sh\nexec " + cli + " -p " + strconv.Itoa(server.Port()) +
			` ${CLI_USER:+--user "$CLI_USER" --pass "${CLI_USER#lock-}-password" --no-auth-warning} "$@"` + "\n"
		Expect(os.WriteFile(filepath.Join(bin, "redis-cli"), []byte(script), 0o700)).To(Succeed())
		env := []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "REDIS_URL=redis://" + server.Addr()}
		env = append(env, pythonEnv...)

		run := func(language, input string) string {
			GinkgoHelper()
			runner, known := runners[language]
			Expect(known).To(BeTrue(), "%s: nothing runs blocks of %q", file, language)
			name := runner.command[0]
			if name == "python3" {
				name = python()
			}
			cmd := command(ctx, runner.dir, env, name, runner.command[1:]...)
			cmd.Stdin = strings.NewReader(input)
			output, err := cmd.CombinedOutput()
			Expect(err).NotTo(HaveOccurred(), "%s\n%s", input, output)
			return string(output)
		}
		security, err := os.ReadFile(filepath.Join(root(), "SECURITY.md"))
		Expect(err).NotTo(HaveOccurred())
		run("sh", regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindStringSubmatch(string(security))[1]) // the users

		if strings.Contains(string(text), "$NODE") { // any node of a cluster, and a server that is to join it
			cluster, err := redistest.StartCluster(3, 1, 5*time.Second)
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(cluster.Stop)
			joining := startServer("--cluster-enabled", "yes")
			env = append(env, "NODE="+cluster.Addrs()[0], "NEW="+joining.Addr())
		}
		console, user, blocks := startShell(ctx, env), "", 0
		for _, part := range headingOrBlock.FindAllStringSubmatch(string(text), -1) {
			heading, language, code := part[1], part[2], part[3]
			if heading != "" {
				user = ""
				if found := userOf.FindStringSubmatch(heading); found != nil {
					user = found[1]
				}
				continue
			}
			blocks++
			console.run("export CLI_USER=" + user)
			switch language {
			case "console":
			case "bash": // to be pasted: functions
				Expect(console.run(code)).To(BeEmpty(), code)
				continue
			default:
				Expect(run(language, code)).NotTo(BeEmpty(), code)
				continue
			}
			steps := transcript.FindAllStringSubmatch(code, -1)
			Expect(steps).NotTo(BeEmpty(), code)
			whole := ""
			for _, step := range steps {
				whole += step[0]
				Expect(withoutNumbers(console.run(step[1]))).To(Equal(withoutNumbers(step[2])), step[1])
			}
			Expect(whole).To(Equal(code), "a transcript begins with $")
		}
		Expect(blocks).To(BeNumerically(">=", minimum))
	},
	Entry("lua/README.md", SpecTimeout(2*time.Minute), "lua/README.md", 8),
	Entry("lua/OPERATIONS.md", SpecTimeout(5*time.Minute), "lua/OPERATIONS.md", 20),
)
