package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFaults(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.md")
	text := "# A title, with `code` and [a link](b.md)\n\n```\n# no heading\n```\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("ä", columns-1)
	for line, want := range map[string]string{
		long + " ":                           "",
		long + " b":                          "101 columns, more than 100",
		"| " + long + " |":                   "",
		long + long:                          "",
		"[x](a.md)":                          "",
		"[x](nothing.md)":                    "no such file: nothing.md",
		"[x](https://example.org/a.md)":      "",
		"`[x](nothing.md)`":                  "",
		"[x](#a-title-with-code-and-a-link)": "",
		"[x](a.md#no-heading)":               "no such heading: a.md#no-heading",
		"[x](#a-title)":                      "no such heading: #a-title",
	} {
		if got := strings.Join(faults(file, line), "; "); got != want {
			t.Errorf("%s: %q, not %q", line, got, want)
		}
	}
}

func TestUnmeasured(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.md")
	for text, want := range map[string]string{
		"Takes 0.75 s.":                                     `no command for "0.75 s" in the beginning`,
		"`make bench` says 0.75 s.":                         "",
		"`make bench`\n\n## A\n\n12 µs\n":                   "",
		"# T\n\n## A\n\n`make bench`\n\n## B\n\n12 µs":      `no command for "12 µs" in ## B`,
		"## A\n\n```\nmake bench\n```\n\n24 million states": "",
		"## A\n\nwithin 5 s, every 30 s, version 1.2":       "",
		"## A\n\n```\n0.75 s\n```\n":                        "",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		lines, err := prose(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(unmeasured(file, lines), "; "); got != want {
			t.Errorf("%q: %q, not %q", text, got, want)
		}
	}
}
