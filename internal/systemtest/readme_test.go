package systemtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// codeBlocks are the fenced blocks of a document in one language ("" for none).
func codeBlocks(file, language string) (blocks []string) {
	GinkgoHelper()
	text, err := os.ReadFile(top + file)
	Expect(err).NotTo(HaveOccurred())
	for _, block := range regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		if block[1] == language {
			blocks = append(blocks, block[2])
		}
	}
	Expect(blocks).NotTo(BeEmpty())
	return blocks
}

var _ = Describe("README.md", func() {
	It("and docs/recipes.md have only Go code that tests compile and run", func() {
		for file, test := range map[string]string{"docs/recipes.md": "recipes_test.go", "README.md": "example_test.go"} {
			tests, err := os.ReadFile(top + test)
			Expect(err).NotTo(HaveOccurred())
			for _, block := range codeBlocks(file, "go") {
				Expect(string(tests)).To(ContainSubstring(block))
			}
		}
	})

	It("has a log as the example writes it, but for what differs each time", func() {
		examples, err := os.ReadFile(top + "example_test.go")
		Expect(err).NotTo(HaveOccurred())
		for _, line := range strings.SplitAfter(codeBlocks("README.md", "text")[0], "\n") {
			line = regexp.MustCompile(` lock\.(fence|waited|held)=\S+`).ReplaceAllString(line, "")
			Expect(string(examples)).To(ContainSubstring(line))
		}
	})

	It("has only targets of make that there are, as the other documents", func(ctx SpecContext) {
		called := regexp.MustCompile("(?m)(?:^|`)(?:[A-Z_]+=\\S+ )*make ([a-z-]+)")
		targets := []string{}
		for _, file := range []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "lua/README.md", "lua/OPERATIONS.md", "bench/README.md", "examples/top/README.md"} {
			text, err := os.ReadFile(top + file)
			Expect(err).NotTo(HaveOccurred())
			for _, found := range called.FindAllStringSubmatch(string(text), -1) {
				targets = append(targets, found[1])
			}
		}
		Expect(targets).To(ContainElements("demo", "top", "check", "test", "load", "chaos", "bench"))
		slices.Sort(targets)
		targets = slices.Compact(targets)
		output, err := exec.CommandContext(ctx, "make", append([]string{"-n", "-C", top}, targets...)...).CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), string(output))
		Expect(string(output)).NotTo(ContainSubstring("Nothing to be done"), "declared as phony, without a rule")
	})

	It("has redis-cli lines that work as they stand", func(ctx SpecContext) {
		Expect(redislock.Load(ctx, Connect(Server.Addr()))).To(Succeed())
		outputs := map[string]string{}
		for _, block := range codeBlocks("README.md", "sh") {
			for _, line := range regexp.MustCompile(`(?m)^redis-cli .*$`).FindAllString(block, -1) {
				outputs[line] = cli(ctx, Server, line)
			}
		}
		Expect(outputs).To(HaveLen(3))
		for line, output := range outputs {
			Expect(output).To(MatchRegexp(`^(1\n|holder\nmy-token\n)`), line)
		}
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
