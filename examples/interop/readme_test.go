package interop_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// runners run the fenced blocks of a language: where, and how. The block is the input.
var runners = map[string]struct {
	dir     string
	command []string
}{
	"console": {".", []string{"bash", "-e"}},
	"sh":      {".", []string{"sh", "-e"}},
	"python":  {"examples/python", []string{"python3", "-B", "-"}},
	"js":      {"examples/node", []string{"node", "--input-type=module", "-"}},
}

var (
	fencedBlock = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")
	// transcript is a line "$ command" and what it prints.
	transcript = regexp.MustCompile(`(?m)^\$ (.*)\n((?:[^$\n].*\n|\n)*)`)
	number     = regexp.MustCompile(`\d{3,}`)
)

// withoutNumbers has no number of three digits or more: times and fences.
func withoutNumbers(text string) string { return number.ReplaceAllString(text, "N") }

var _ = DescribeTable("Every block in the documents runs as it stands, and prints what it shows:",
	func(ctx SpecContext, file string, minimum int) {
		text, err := os.ReadFile(filepath.Join(root(), file))
		Expect(err).NotTo(HaveOccurred())
		blocks := fencedBlock.FindAllStringSubmatch(string(text), -1)
		Expect(len(blocks)).To(BeNumerically(">=", minimum))

		// A redis-cli that talks to a server of this spec's own: the blocks follow on each other.
		server := startServer()
		cli, err := exec.LookPath("redis-cli")
		Expect(err).NotTo(HaveOccurred())
		bin := GinkgoT().TempDir()
		script := "#!/bin/sh\nexec " + cli + " -p " + strings.TrimPrefix(server.Addr(), "127.0.0.1:") + " \"$@\"\n"
		Expect(os.WriteFile(filepath.Join(bin, "redis-cli"), []byte(script), 0o700)).To(Succeed())
		env := []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "REDIS_URL=redis://" + server.Addr()}

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
		for _, block := range blocks {
			language, code := block[1], block[2]
			if language != "console" {
				Expect(run(language, code)).NotTo(BeEmpty(), code)
				continue
			}
			steps := transcript.FindAllStringSubmatch(code, -1)
			Expect(steps).NotTo(BeEmpty(), code)
			whole := ""
			for _, step := range steps {
				whole += step[0]
				Expect(withoutNumbers(run(language, step[1]))).To(Equal(withoutNumbers(step[2])), step[1])
			}
			Expect(whole).To(Equal(code), "a transcript begins with $")
		}
	},
	Entry("lua/README.md", SpecTimeout(2*time.Minute), "lua/README.md", 8),
)
