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
