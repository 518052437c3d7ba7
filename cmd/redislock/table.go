package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
)

// columns are the columns of a lock. Each has its own order: the largest time or count first, and the lease
// that ends next first.
var columns = []struct {
	title, sort string
	least       int // characters, on a narrow screen
	compare     func(a, b *Lock) int
}{
	{"NAME", "name", 4, func(a, b *Lock) int { return cmp.Compare(a.Name, b.Name) }},
	{"MODE", "mode", 6, func(a, b *Lock) int { return cmp.Compare(b.Count, a.Count) }},
	{"OWNER", "owner", 8, func(a, b *Lock) int { return cmp.Compare(a.Owner, b.Owner) }},
	{"HELD", "held", 6, func(a, b *Lock) int { return cmp.Compare(b.Held, a.Held) }},
	{"LEASE", "lease", 6, func(a, b *Lock) int { return cmp.Compare(uint64(a.Left), uint64(b.Left)) }}, // -1 and -2 last
	{"WAITING", "waiting", 7, func(a, b *Lock) int { return cmp.Compare(b.Waiting, a.Waiting) }},
	{"LONGEST", "longest", 7, func(a, b *Lock) int { return cmp.Compare(b.Longest, a.Longest) }},
	{"FENCE", "fence", 5, func(a, b *Lock) int { return cmp.Compare(b.Fence, a.Fence) }},
}

// rightIn tells how to align any table: text to the left, numbers and times to the right.
func rightIn(titles []string, column int) bool {
	switch titles[column] {
	case "NAME", "MODE", "OWNER", "NODE", "CHECK", "STATE", "FOUND":
		return false
	}
	return true
}

func right(column int) bool { return rightIn(titles(), column) }

func titles() []string {
	all := make([]string, len(columns))
	for i := range columns {
		all[i] = columns[i].title
	}
	return all
}

func sorts() []string {
	all := make([]string, len(columns))
	for i := range columns {
		all[i] = columns[i].sort
	}
	return all
}

func columnOf(sort string) int { return slices.Index(sorts(), sort) }

// cells shows the token or only the owner, which can be unknown.
func cells(l *Lock, token bool) []string {
	holder, held, left := "-", "-", "-"
	if l.Token != "" {
		holder, held, left = holderOf(l, token), span(l.Held), "never"
		if l.Held < 0 {
			held = "?"
		}
		if l.Left >= 0 {
			left = span(l.Left)
		}
	}
	longest := "-"
	if l.Waiting > 0 {
		longest = span(l.Longest)
	}
	if l.Error != "" {
		holder = "! " + quote(l.Error)
	}
	return []string{quote(l.Name), cmp.Or(l.Mode, "-"), holder, held, left, strconv.FormatInt(l.Waiting, 10), longest, strconv.FormatInt(l.Fence, 10)}
}

// holderOf names one holder, and how many more there are.
func holderOf(l *Lock, token bool) string {
	who := ownerOrToken(l.Owner, l.Token, token)
	if l.Count > 1 {
		who += fmt.Sprintf(" +%d", l.Count-1)
	}
	return who
}

func ownerOrToken(owner, token string, wantsToken bool) string {
	switch {
	case wantsToken:
		return quote(token)
	case owner == "":
		return "?"
	}
	return quote(owner)
}

// order says which locks to list, and how.
type order struct {
	column  int
	reverse bool
	filter  string
	tokens  bool // tokens are shown, and searched
}

func (o order) apply(locks []Lock) []Lock {
	wanted := strings.ToLower(o.filter)
	kept := make([]Lock, 0, len(locks))
	for _, l := range locks {
		if strings.Contains(strings.ToLower(l.Name), wanted) || strings.Contains(strings.ToLower(o.searched(&l)), wanted) {
			kept = append(kept, l)
		}
	}
	slices.SortFunc(kept, func(a, b Lock) int {
		by := columns[o.column].compare(&a, &b)
		if o.reverse {
			by = -by
		}
		return cmp.Or(by, cmp.Compare(a.Name, b.Name), cmp.Compare(a.tagged, b.tagged))
	})
	return kept
}

func (o order) searched(l *Lock) string {
	if o.tokens {
		return l.Token
	}
	return l.Owner
}

// line joins cells with one space between them.
func line(cells []string, widths []int, right func(column int) bool) string {
	var b strings.Builder
	for i, cell := range cells {
		if i > 0 {
			b.WriteByte(' ')
		}
		cell = ansi.Truncate(cell, widths[i], "…")
		gap := strings.Repeat(" ", widths[i]-ansi.StringWidth(cell))
		if right(i) {
			b.WriteString(gap + cell)
		} else {
			b.WriteString(cell + gap)
		}
	}
	return b.String()
}

// span formats milliseconds in six characters at most.
func span(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", ms)
	case d < time.Minute:
		return fmt.Sprintf("%d.%ds", ms/1000, ms/100%10)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", ms/60_000, ms/1000%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", ms/3_600_000, ms/60_000%60)
	case d < 100*24*time.Hour:
		return fmt.Sprintf("%dd%02dh", ms/86_400_000, ms/3_600_000%24)
	}
	return fmt.Sprintf("%dd", ms/86_400_000)
}

func thousands[N int | int64](n N) string {
	text := strconv.FormatInt(int64(n), 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
