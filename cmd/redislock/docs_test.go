package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"go.yaml.in/yaml/v3"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/spec"
)

// blocks are those of a language in docs/cli.md.
func blocks(language string) (all []string) {
	text, err := os.ReadFile("../../docs/cli.md")
	Expect(err).NotTo(HaveOccurred())
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```\n").FindAllStringSubmatch(string(text), -1) {
		all = append(all, m[1])
	}
	return all
}

// commands are the values of these keys anywhere in a YAML document, and of env.
func commands(node any, key string, found func(any)) {
	switch n := node.(type) {
	case map[string]any:
		for k, v := range n {
			if k == key {
				found(v)
			}
			commands(v, key, found)
		}
	case []any:
		for _, v := range n {
			commands(v, key, found)
		}
	}
}

var _ = Describe("docs/cli.md", func() {
	var shell func(script string) (string, error)
	var ran string // by the stubs, a line each

	BeforeEach(func() {
		server := spec.OwnServer()
		Expect(server.Do("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all").Error()).NotTo(HaveOccurred())
		Expect(redislock.Load(context.Background(), spec.Connect(server.Addr()))).To(Succeed())
		dir := GinkgoT().TempDir()
		ran = filepath.Join(dir, "ran")
		Expect(os.Symlink(program(), filepath.Join(dir, "redislock"))).To(Succeed())
		for _, stub := range []string{"backup", "extract", "load", "write", "report", "migrate", "consume", "deploy", "thumbnail"} {
			text := "#!/bin/sh\necho \"${0##*/} $*\" >> " + ran + "\n"
			Expect(os.WriteFile(filepath.Join(dir, stub), []byte(text), 0o700)).To(Succeed()) //nolint:gosec // it is to be executable
		}
		password := filepath.Join(dir, "password")
		Expect(os.WriteFile(password, []byte("secret\n"), 0o600)).To(Succeed())
		here := strings.NewReplacer("/run/secrets/redis", password, "127.0.0.1:6379", server.Addr(), "./migrate", "migrate")
		shell = func(script string) (string, error) {
			cmd := exec.Command("sh", "-e", "-c", here.Replace(script))
			cmd.Dir = "../.."
			cmd.Env = environ("REDIS_URL=redis://"+server.Addr(), "PATH="+dir+":"+os.Getenv("PATH"), "GITHUB_REPOSITORY=us/shop")
			out, err := cmd.CombinedOutput()
			return string(out), err
		}
	})

	It("has shell lines that work", func() {
		lines := 0
		for _, block := range blocks("sh") {
			if strings.Contains(block, "make top") {
				continue // TestSentinel runs them
			}
			if strings.Contains(block, "status=") { // a script, not lines
				out, err := shell(block)
				Expect(err).NotTo(HaveOccurred(), "%s: %s", block, out)
				Expect(out).To(Equal("done\n"))
				continue
			}
			for line := range strings.Lines(block) {
				out, err := shell(line)
				if strings.Contains(line, "verify") { // this server keeps nothing on disk: warnings
					Expect(out).To(ContainSubstring(`"state":"warn"`))
				}
				Expect(err).NotTo(HaveOccurred(), "%s: %s", line, out)
				lines++
			}
		}
		Expect(lines).To(BeNumerically(">", 20))
	})

	It("has a crontab line that runs the job once, and is silent where the lock is busy", func() {
		Expect(blocks("crontab")).To(HaveLen(1))
		job := regexp.MustCompile(`(?m)^\S+ \S+ \S+ \S+ \S+ (redislock .*)$`).FindStringSubmatch(blocks("crontab")[0])
		Expect(job).To(HaveLen(2))
		for range 2 { // the second machine
			out, err := shell(job[1])
			Expect(err).NotTo(HaveOccurred(), out)
			Expect(out).To(BeEmpty())
		}
		Expect(os.ReadFile(ran)).To(BeEquivalentTo("backup --all\n"))
	})

	It("has a unit whose ExecStart works", func() {
		Expect(blocks("ini")).To(HaveLen(1))
		start := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindStringSubmatch(blocks("ini")[0])
		Expect(start).To(HaveLen(2))
		out, err := shell(strings.ReplaceAll(start[1], "%H", "host"))
		Expect(err).NotTo(HaveOccurred(), out)
		Expect(os.ReadFile(ran)).To(BeEquivalentTo("consume \n"))
	})

	It("has manifests and a workflow whose commands work", func() {
		for _, block := range blocks("yaml") {
			var doc map[string]any
			Expect(yaml.Unmarshal([]byte(block), &doc)).To(Succeed())
			commands(doc, "command", func(v any) {
				var words []string
				for _, word := range v.([]any) {
					words = append(words, word.(string))
				}
				out, err := shell(strings.Join(words, " "))
				Expect(err).NotTo(HaveOccurred(), out)
			})
			commands(doc, "run", func(v any) {
				out, err := shell(v.(string))
				Expect(err).NotTo(HaveOccurred(), out)
			})
		}
		Expect(os.ReadFile(ran)).To(BeEquivalentTo("report --daily\nmigrate up\ndeploy production\n"))
	})

	It("names each flag of each command, and each metric", func() {
		text, err := os.ReadFile("../../docs/cli.md")
		Expect(err).NotTo(HaveOccurred())
		for _, cmd := range newRoot().Commands() {
			Expect(string(text)).To(ContainSubstring("`"+cmd.Name()), cmd.Name())
			if cmd.Name() == "run" {
				for _, flag := range []string{"try", "wait", "lease", "max-hold", "at-least", "holders", "shared", "owner", "grace", "quiet"} {
					Expect(cmd.Flag(flag)).NotTo(BeNil(), flag)
					Expect(string(text)).To(ContainSubstring("`--"+flag), flag)
				}
			}
			Expect(cmd.HasExample() || cmd.Name() == "version").To(BeTrue(), cmd.Name())
		}
	})
})
