//go:build every

package model

import (
	"flag"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/seed-ee05a192/redislock"
)

var every = flag.Int("every", 250, "runs for each change of lock.lua")

// changes are small: each of the left made into its right, wherever it is.
var changes = [][2]string{
	{" < ", " <= "}, {" <= ", " < "}, {" > ", " >= "}, {" >= ", " > "}, {" == ", " ~= "}, {" ~= ", " == "},
	{" + ", " - "}, {" - ", " + "}, {" and ", " or "}, {" or ", " and "}, {"not ", ""}, {"min(", "max("}, {"max(", "min("},
	{" 0", " 1"}, {" 1", " 0"}, {" 1", " 2"}, {"000 ", "001 "}, {", 'GT'", ""}, {", 'NX'", ""}, {"lease", "wait"}, {"wait", "lease"},
	{"c.now", "c.micros"}, {"c.token", "''"}, {"true", "false"}, {"false", "true"}, {"nil", "0"}, {"'LPOP'", "'RPOP'"}, {"'RPOP'", "'LPOP'"},
	{"'RPUSH'", "'LPUSH'"}, {"'last'", "'fence'"}, {"'since'", "'last'"}, {", -1,", ", 0,"}, {"c.first", "c.mine"}, {"added", "alone"},
	{"alone", "added"}, {"'PEXPIRE'", "'PERSIST'"}, {" / 3", " / 2"},
}

// TestEveryChange looks for changes of lock.lua that no test here notices. It prints them: either they change
// nothing that can be seen, or a test is missing.
func TestEveryChange(t *testing.T) {
	srv := begin(t)
	text := redislock.Source()
	logic := strings.Index(text, "local VERSION")
	end := strings.Index(text, "-- Registration")
	tried, unnoticed := 0, 0
	try := func(from, to int, instead string) {
		changed := text[:from] + instead + text[to:]
		if srv.load(changed) != nil {
			return
		}
		tried++
		runs := []func(*rapid.T){callsRun(srv)}
		for _, steps := range rareSteps {
			runs = append(runs, rareRun(srv, steps.run))
		}
		for i, run := range runs {
			times := *every
			if i > 0 {
				times = 1
			}
			if found, _ := hunt(t, srv, times, run); found != "" {
				return
			}
		}
		unnoticed++
		line := strings.LastIndexByte(text[:from], '\n') + 1
		t.Logf("unnoticed, line %d: %s\n      now: %s", strings.Count(text[:from], "\n")+1,
			text[line:line+strings.IndexByte(text[line:], '\n')], changed[line:line+strings.IndexByte(changed[line:], '\n')])
	}
	for from := logic; from < end; {
		to := from + strings.IndexByte(text[from:], '\n') + 1
		code, _, _ := strings.Cut(text[from:to], "--")
		if strings.TrimSpace(code) != "" {
			try(from, to, "")
			for _, change := range changes {
				for at := 0; ; at++ {
					i := strings.Index(code[at:], change[0])
					if i < 0 {
						break
					}
					at += i
					try(from+at, from+at+len(change[0]), change[1])
				}
			}
		}
		from = to
	}
	t.Logf("%d of %d changes unnoticed", unnoticed, tried)
}
