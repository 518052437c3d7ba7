package systemtest

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// address is what the documents call the server.
const address = "127.0.0.1:6379"

// guides are README.md and the pages of docs, by their paths.
func guides() []string {
	GinkgoHelper()
	files, err := filepath.Glob(top + "docs/*.md")
	Expect(err).NotTo(HaveOccurred())
	Expect(files).NotTo(BeEmpty())
	for i, file := range files {
		files[i] = strings.TrimPrefix(file, top)
	}
	return append(files, "README.md")
}

// codeBlocks are the fenced blocks of a document in one language.
func codeBlocks(file, language string) []string {
	GinkgoHelper()
	blocks := allBlocks(file)[language]
	Expect(blocks).NotTo(BeEmpty())
	return blocks
}

// allBlocks are the fenced blocks of a document by their language.
func allBlocks(file string) map[string][]string {
	GinkgoHelper()
	text, err := os.ReadFile(top + file)
	Expect(err).NotTo(HaveOccurred())
	blocks := map[string][]string{}
	for _, block := range regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		blocks[block[1]] = append(blocks[block[1]], block[2])
	}
	return blocks
}

// goFiles are the texts of the files that the tests compile and run.
func goFiles() (all string) {
	GinkgoHelper()
	for _, pattern := range []string{"*_test.go", "examples/*/*.go"} {
		files, err := filepath.Glob(top + pattern)
		Expect(err).NotTo(HaveOccurred())
		for _, file := range files {
			text, err := os.ReadFile(file)
			Expect(err).NotTo(HaveOccurred())
			all += string(text)
		}
	}
	return all
}

var _ = Describe("The documents", func() {
	It("have only Go code that the tests compile and run", func() {
		files, blocks := goFiles(), 0
		for _, guide := range guides() {
			for _, block := range allBlocks(guide)["go"] {
				Expect(files).To(ContainSubstring(block), guide)
				blocks++
			}
		}
		Expect(blocks).To(BeNumerically(">=", 3))
	})

	It("have no blocks in languages that no test looks at", func() {
		for _, guide := range guides() {
			if guide == "docs/cli.md" { // the tests of cmd/redislock run its blocks
				continue
			}
			languages := slices.Collect(maps.Keys(allBlocks(guide)))
			Expect([]string{"go", "sh", "python", "js", "text", "mermaid"}).To(ContainElements(languages), guide)
		}
	})

	It("show the log that LogEvents writes", func() {
		// All but what differs each time.
		examples := goFiles()
		lines := strings.SplitAfter(codeBlocks("docs/observing.md", "text")[0], "\n")
		Expect(len(lines)).To(BeNumerically(">", 2))
		for _, line := range lines {
			line = regexp.MustCompile(` lock\.(fence|waited|held)=\S+`).ReplaceAllString(line, "")
			Expect(examples).To(ContainSubstring(line))
		}
	})

	It("have only targets of make that there are", func(ctx SpecContext) {
		call := "(?:[A-Z_]+=\\S+\\s)*make\\s([a-z-]+)"
		inText, inBlock := regexp.MustCompile("`"+call), regexp.MustCompile("(?m)^"+call)
		output, err := exec.CommandContext(ctx, "git", "-C", top, "ls-files", "*.md").Output()
		Expect(err).NotTo(HaveOccurred())
		targets := []string{}
		for _, file := range strings.Fields(string(output)) {
			text, err := os.ReadFile(top + file)
			Expect(err).NotTo(HaveOccurred())
			calls := inText.FindAllStringSubmatch(string(text), -1)
			for _, blocks := range allBlocks(file) {
				calls = append(calls, inBlock.FindAllStringSubmatch(strings.Join(blocks, ""), -1)...)
			}
			for _, found := range calls {
				targets = append(targets, found[1])
			}
		}
		Expect(targets).To(ContainElements("demo", "check", "test", "chaos", "bench"))
		slices.Sort(targets)
		targets = slices.Compact(targets)
		output, err = exec.CommandContext(ctx, "make", append([]string{"-n", "-C", top}, targets...)...).CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), string(output))
		Expect(string(output)).NotTo(ContainSubstring("Nothing to be done"), "declared as phony, without a rule")
	})
})

var _ = Describe("README.md", func() {
	It("has a whole program, which works", func(ctx SpecContext) {
		program := codeBlocks("README.md", "go")[0]
		Expect(program).To(ContainSubstring(address))
		file := filepath.Join(GinkgoT().TempDir(), "main.go")
		Expect(os.WriteFile(file, []byte(strings.ReplaceAll(program, address, Server.Addr())), 0o600)).To(Succeed())
		run := exec.CommandContext(ctx, "go", "run", file)
		run.Dir = top
		output, err := run.CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), string(output))
		Expect(string(output)).To(MatchRegexp(`^my turn, with fencing token \d{16}\n$`))
	}, SpecTimeout(2*time.Minute))

	It("has code for Python and Node.js that works", func(ctx SpecContext) {
		python := exec.CommandContext(ctx, "/usr/bin/python3", "-B", "-") // Debian's has python3-redis
		python.Dir, python.Env = top, append(os.Environ(), "PYTHONPATH=clients/python/src")
		node := exec.CommandContext(ctx, "node", "--input-type=module", "-")
		node.Dir = top + "clients/node"
		for language, command := range map[string]*exec.Cmd{"python": python, "js": node} {
			blocks := codeBlocks("README.md", language)
			Expect(blocks).To(HaveLen(1))
			Expect(blocks[0]).To(ContainSubstring(address))
			command.Stdin = strings.NewReader(strings.ReplaceAll(blocks[0], address, Server.Addr()))
			output, err := command.CombinedOutput()
			Expect(err).NotTo(HaveOccurred(), "%s: %s", language, output)
			Expect(string(output)).To(MatchRegexp(`^my turn, with fencing token \d{16}\n$`), language)
		}
	}, SpecTimeout(time.Minute))

	It("has a command line that works", func(ctx SpecContext) {
		bin := GinkgoT().TempDir()
		build := exec.CommandContext(ctx, "go", "build", "-o", bin, ".")
		build.Dir = top + "cmd/redislock"
		output, err := build.CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), string(output))

		block := regexp.MustCompile(`(?ms)^export REDIS_URL.*`).FindString(strings.Join(codeBlocks("README.md", "sh"), ""))
		Expect(block).To(ContainSubstring(address))
		shell := exec.CommandContext(ctx, "sh", "-e")
		shell.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		shell.Stdin = strings.NewReader(strings.ReplaceAll(block, address, OwnRedis().Addr()))
		output, err = shell.CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), string(output))
		Expect(string(output)).To(HavePrefix("my turn\n"))
	}, SpecTimeout(2*time.Minute))

	It("has redis-cli lines that work as they stand", func(ctx SpecContext) {
		server := OwnRedis()
		outputs := ""
		for _, block := range codeBlocks("README.md", "sh") {
			for _, line := range regexp.MustCompile(`(?m)^redis-cli .*$`).FindAllString(block, -1) {
				outputs += cli(ctx, server, line)
			}
		}
		Expect(outputs).To(MatchRegexp(`^OK\nlock\nholder\n\nfence\n0\nttl_ms\n-2\n`))
	})
})

// cli runs shell lines, in the folder of the module, in which redis-cli talks to this server.
func cli(ctx context.Context, to interface{ Port() int }, lines string) string {
	GinkgoHelper()
	script := fmt.Sprintf("set -o pipefail; redis-cli() { command redis-cli -e -p %d \"$@\"; }; %s", to.Port(), lines)
	shell := exec.CommandContext(ctx, "bash", "-ec", script)
	shell.Dir = top
	output, err := shell.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), "%s: %s", lines, output)
	return string(output)
}
