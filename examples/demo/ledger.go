package main

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
)

//go:embed testdata/ledger.txt
var ledgerText string

// entry is one line of the ledger.
type entry struct {
	account string
	amount  cents
	memo    string
}

func (e entry) String() string { return fmt.Sprintf("%s %v, %s", e.account, e.amount, e.memo) }

type cents int64

func (c cents) String() string {
	sign, n := "", c
	if c < 0 {
		sign, n = "-", -c
	}
	return fmt.Sprintf("%s%d.%02d", sign, n/100, n%100)
}

// parseLedger reads lines of "account amount memo".
func parseLedger(text string) ([]entry, error) {
	var ledger []entry
	for line := range strings.Lines(text) {
		account, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		amount, memo, _ := strings.Cut(rest, " ")
		whole, fraction, _ := strings.Cut(amount, ".")
		n, err := strconv.ParseInt(whole+fraction, 10, 64)
		if err != nil || len(fraction) != 2 {
			return nil, fmt.Errorf("line %d of the ledger: %q is no amount like 12.34", len(ledger)+1, amount)
		}
		ledger = append(ledger, entry{account, cents(n), memo})
	}
	return ledger, nil
}

func sums(ledger []entry) map[string]cents {
	balances := map[string]cents{}
	for _, e := range ledger {
		balances[e.account] += e.amount
	}
	return balances
}
