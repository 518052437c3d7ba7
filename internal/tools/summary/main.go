// Command summary adds up a test run: ginkgo's JSON report and the output of go test -v, whichever
// of the two exist. It prints "N passed, N failed". STATUS is 0 if the run went well; else at least
// one failure is counted, for what neither of the two shows (not built, crashed, timed out, a race).
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"

	"github.com/onsi/ginkgo/v2/types"
)

var verdict = regexp.MustCompile(`(?m)^--- (PASS|FAIL): `)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: summary GINKGO.json GOTEST.txt STATUS")
		os.Exit(2)
	}
	var passed, failed, skipped int

	var reports []types.Report
	if err := json.Unmarshal(read(os.Args[1], "[]"), &reports); err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		failed++
	}
	for _, report := range reports {
		for _, spec := range report.SpecReports {
			switch {
			case spec.State.Is(types.SpecStateFailureStates):
				failed++ // a set-up that failed counts as well
			case !spec.LeafNodeType.Is(types.NodeTypeIt):
			case spec.State == types.SpecStatePassed:
				passed++
			default:
				skipped++
			}
		}
	}

	for _, m := range verdict.FindAllSubmatch(read(os.Args[2], ""), -1) {
		if string(m[1]) == "PASS" {
			passed++
		} else {
			failed++
		}
	}

	if failed == 0 && os.Args[3] != "0" {
		failed = 1
	}
	if skipped > 0 {
		fmt.Printf("%d skipped\n", skipped)
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
}

func read(file, missing string) []byte {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return []byte(missing)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(2)
	}
	return text
}
