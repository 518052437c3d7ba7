// Command documents checks the Markdown files that git knows: prose has at most 100 columns, README.md
// has at most 200 lines, each link to a file or a heading leads there, and measured figures have the
// command that measures them. It makes no call to the network.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"
)

const (
	columns     = 100
	readmeLines = 200
)

var (
	fence = regexp.MustCompile("^\\s*```")
	// What cannot be broken: the row of a table, and one long word.
	unbreakable = regexp.MustCompile(`^(\||\s*\S+$)`)
	code        = regexp.MustCompile("`[^`]*`")
	link        = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	linkText    = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
	// A measured figure has a decimal point or microseconds: 0.75 s, 12 µs, 24 million.
	figure      = regexp.MustCompile(`\d+ µs|\d+\.\d+ (ms|s|KB|MB|GB)\b|\d+ million\b`)
	command     = regexp.MustCompile("(?m)(`|^\\$ |^)(make |go test |go run |[A-Z_]+=\\S+ |bench/)")
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

func main() {
	if found := check(os.Args[1:]); found > 0 {
		fmt.Fprintf(os.Stderr, "%d faults in the documents\n", found)
		os.Exit(1)
	}
}

// check looks at these files, or at all.
func check(files []string) (found int) {
	if len(files) == 0 {
		output, err := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard",
			"*.md", ":!bench/results").Output()
		if err != nil {
			fmt.Fprintln(os.Stderr, "git ls-files:", err)
			return 1
		}
		files = strings.Fields(string(output))
	}
	for _, file := range files {
		lines, err := prose(file)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			found++
			continue
		}
		if n := len(lines) - 1; file == "README.md" && n > readmeLines {
			fmt.Fprintf(os.Stderr, "%s: %d lines, more than %d\n", file, n, readmeLines)
			found++
		}
		for _, fault := range unmeasured(file, lines) {
			fmt.Fprintf(os.Stderr, "%s: %s\n", file, fault)
			found++
		}
		for i, line := range lines {
			for _, fault := range faults(file, line) {
				fmt.Fprintf(os.Stderr, "%s:%d: %s\n", file, i+1, fault)
				found++
			}
		}
	}
	return found
}

// prose are the lines of a file, those of code blocks empty.
func prose(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	lines, inside := strings.Split(string(text), "\n"), false
	for i, line := range lines {
		border := fence.MatchString(line)
		if border || inside {
			lines[i] = ""
		}
		inside = inside != border
	}
	return lines, nil
}

// unmeasured are the sections with measured figures and no command, neither there nor before the first one.
func unmeasured(file string, prose []string) (all []string) {
	text, err := os.ReadFile(file)
	if err != nil || file == "CHANGELOG.md" { // history
		return nil
	}
	title, has, here := "the beginning", "", false
	first := false // the beginning has a command
	end := func() {
		if has != "" && !here && !first {
			all = append(all, fmt.Sprintf("no command for %q in %s", has, title))
		}
		first = first || title == "the beginning" && here
		has, here = "", false
	}
	for i, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(prose[i], "## ") {
			end()
			title = line
		}
		if found := figure.FindString(prose[i]); found != "" {
			has = found
		}
		here = here || command.MatchString(line)
	}
	end()
	return all
}

func faults(file, line string) (all []string) {
	if n := utf8.RuneCountInString(line); n > columns && !unbreakable.MatchString(line) {
		all = append(all, fmt.Sprintf("%d columns, more than %d", n, columns))
	}
	for _, found := range link.FindAllStringSubmatch(code.ReplaceAllString(line, ""), -1) {
		target, anchor, _ := strings.Cut(found[1], "#")
		if strings.Contains(target, "://") {
			continue
		}
		to := file
		if target != "" {
			to = filepath.Join(filepath.Dir(file), target)
		}
		if _, err := os.Stat(to); err != nil {
			all = append(all, "no such file: "+found[1])
		} else if anchor != "" && !strings.HasPrefix(anchor, "L") && !hasHeading(to, anchor) {
			all = append(all, "no such heading: "+found[1])
		}
	}
	return all
}

// hasHeading looks for the anchor that GitHub makes of a heading.
func hasHeading(file, anchor string) bool {
	lines, err := prose(file)
	if err != nil {
		return false
	}
	for _, line := range lines {
		title := strings.TrimLeft(line, "#")
		if title == line || !strings.HasPrefix(title, " ") {
			continue
		}
		title = linkText.ReplaceAllString(strings.TrimSpace(title), "$1")
		title = notInAnchor.ReplaceAllString(strings.ToLower(title), "")
		if strings.ReplaceAll(title, " ", "-") == anchor {
			return true
		}
	}
	return false
}
