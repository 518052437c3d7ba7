package main

import (
	"testing"

	. "github.com/onsi/gomega"
)

// Job control, as a shell in a terminal does it.
func TestTerminal(t *testing.T) {
	s, _ := serve(t)
	g := NewWithT(t)
	url := "redis://" + s.Addr()
	shell := openWith(t, "env", "REDIS_URL="+url, "PS1=prompt> ", "LOCK="+program(), "bash", "--norc", "-i")
	types := func(line string) {
		t.Helper()
		shell.press("-l", line)
		shell.press("Enter")
	}
	foreground := func() {
		t.Helper()
		types("fg")
		shell.shows(`fg\n[^\n]*run orders`) // from here on, the terminal is not in the shell's own mode
	}
	busy := func() int {
		_, _, code := runOnce(url, "run", "--try", "--quiet", "orders", "--", "true")
		return code
	}
	shell.shows(`prompt>`)

	// The command has the terminal.
	types("$LOCK run orders -- cat")
	g.Eventually(busy).Should(Equal(exitBusy))
	types("one")
	shell.shows(`\none\none\n`)
	shell.press("C-z")
	shell.shows(`Stopped .*run orders`, `prompt>`)
	g.Expect(busy()).To(Equal(exitBusy))
	types("echo the shell goes on")
	shell.shows(`\nthe shell goes on\n`)
	foreground()
	types("two")
	shell.shows(`\ntwo\ntwo\n`)
	shell.press("C-c")
	shell.shows(`\^C\s*prompt>`)
	types("echo code=$?; clear")
	types("echo code=$?")
	g.Expect(busy()).To(BeZero())

	// In the background it is stopped when it wants to read, and goes on in the foreground.
	types("clear; $LOCK run orders -- cat &")
	shell.shows(`prompt>`)
	g.Eventually(busy).Should(Equal(exitBusy))
	types("")
	shell.shows(`Stopped .*run orders`)
	foreground()
	types("three")
	shell.shows(`three\nthree\n`)
	shell.press("C-d")
	types("echo code=$?")
	shell.shows(`\ncode=0\n`)

	// In a pipeline the others have it, until the command wants to read.
	types("clear; $LOCK run orders -- sh -c 'read x; echo got $x; sleep 1000' | cat")
	g.Eventually(busy).Should(Equal(exitBusy))
	types("four")
	shell.shows(`four\ngot four\n`)
	shell.press("C-c")
	shell.shows(`\^C\s*prompt>`)
	g.Expect(busy()).To(BeZero())

	// In a script, which stops as a whole.
	types("clear; sh -c '$LOCK run orders -- cat; echo code=$?; read x; echo read $x'")
	g.Eventually(busy).Should(Equal(exitBusy))
	shell.press("C-z")
	shell.shows(`Stopped .*echo code`, `prompt>`)
	foreground()
	types("five")
	shell.shows(`five\nfive\n`)
	shell.press("C-d")
	shell.shows(`\ncode=0\n`)
	types("the terminal is the script's again")
	shell.shows(`\nread the terminal is the script's again\n`)

	// Where no shell watches over jobs, nothing is left stopped.
	types("clear; exec $LOCK run orders -- cat")
	g.Eventually(busy).Should(Equal(exitBusy))
	types("six")
	shell.shows(`six\nsix\n`)
	shell.press("C-z")
	types("seven")
	shell.shows(`seven\nseven\n`)
	shell.press("C-c")
	g.Eventually(shell.ended).Should(BeTrue())
}

// On a terminal, titles and failures stand out, and names have what room there is.
func TestColours(t *testing.T) {
	s, client := serve(t, "--maxmemory-policy", "volatile-lru")
	g := NewWithT(t)
	queue(t, client, "{a-name-of-26-characters---}", "ip-10-0-12-34.eu-west-1:12345:token", "w")
	shell := openWith(t, "env", "REDIS_URL=redis://"+s.Addr(), "PS1=prompt> ", "LOCK="+program(), "bash", "--norc", "-i")
	coloured := func() string {
		out, _ := shell.tmux("capture-pane", "-p", "-e")
		return out
	}
	shell.press("-l", "clear; $LOCK list; $LOCK verify; NO_COLOR=1 $LOCK list --json | head -c 8")
	shell.press("Enter")
	shell.shows(`\na-name-of-26-characters--- alone ip-10-.*… `, `eviction +FAIL`, `\{"time"`)
	g.Expect(coloured()).To(SatisfyAll(MatchRegexp(`\x1b\[1mNAME`), MatchRegexp(`\x1b\[[0-9;]*31m[^\n]*eviction +FAIL`)))
	shell.press("-l", "clear; NO_COLOR=1 $LOCK verify")
	shell.press("Enter")
	shell.shows(`eviction +FAIL`, `prompt>`)
	g.Expect(coloured()).NotTo(ContainSubstring("31m"))
}
