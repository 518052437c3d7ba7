package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"
)

// lister is the common part of list and top.
type lister struct {
	*server
	scans, reads int
	sort         string
	json         bool
	order        order
}

func newLister(s *server, cmd *cobra.Command) *lister {
	l := &lister{server: s}
	flags := cmd.Flags()
	flags.IntVar(&l.scans, "scans", 100, "SCANs a second and primary, at most; each looks at 500 keys")
	flags.IntVar(&l.reads, "reads", 1000, "locks read a second and primary, at most")
	flags.StringVar(&l.order.filter, "filter", "", "only locks whose name or owner contains this")
	flags.StringVar(&l.sort, "sort", "waiting", strings.Join(sorts(), ", "))
	flags.BoolVar(&l.order.tokens, "tokens", false, "show whole tokens: who has one can release the lock")
	flags.BoolVar(&l.json, "json", false, "print JSON")
	return l
}

func (l *lister) open(name string) (*collector, string, error) {
	if l.order.column = columnOf(l.sort); l.order.column < 0 {
		return nil, "", usage("--sort %q: none of %s", l.sort, strings.Join(sorts(), ", "))
	}
	if l.scans < 1 || l.reads < 1 {
		return nil, "", usage("--scans and --reads must be at least 1")
	}
	client, shown, err := l.connect(name)
	if err != nil {
		return nil, "", err
	}
	c := newCollector(client, l.prefix, l.scans, l.reads)
	c.tokens = l.order.tokens
	return c, shown, nil
}

func newList(s *server) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Print all locks that somebody holds or waits for",
		Long: "Print all locks of a server, a cluster or what Sentinels watch, that somebody holds or waits for.\n\n" +
			"It looks at all keys with SCAN, 50,000 a second of each primary unless --scans says otherwise.",
		Example: "  redislock list\n  redislock list --json --sort held | jq '.locks[0]'",
		Args:    cobra.NoArgs,
	}
	l := newLister(s, cmd)
	cmd.RunE = work(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		return l.once(ctx, cmd.OutOrStdout())
	})
	return cmd
}

// once reads everything, and prints it.
func (l *lister) once(ctx context.Context, w io.Writer) error {
	c, _, err := l.open("redislock-list")
	if err != nil {
		return err
	}
	defer c.client.Close()
	s, err := c.complete(ctx, time.Second, func(looked int) {
		fmt.Fprintf(os.Stderr, "redislock: %s keys looked at\n", thousands(looked))
	})
	if err != nil {
		return err
	}
	if l.json {
		err = l.writeJSON(w, s)
	} else {
		err = l.writeTable(w, s, widthOf(w))
	}
	if err == nil && len(s.Errors) > 0 {
		err = errors.New(strings.Join(s.Errors, "; "))
	}
	return err
}

func (l *lister) stream(ctx context.Context, w io.Writer, c *collector, interval time.Duration) error {
	for {
		s := c.refresh(ctx, interval)
		if ctx.Err() != nil {
			return nil
		}
		if err := l.writeJSON(w, s); err != nil {
			return err
		}
		if !pause(ctx, interval) {
			return nil
		}
	}
}

// writeJSON writes one line.
func (l *lister) writeJSON(w io.Writer, s Snapshot) error {
	s.Locks = l.order.apply(s.Locks)
	for i := range s.Locks {
		lock := &s.Locks[i]
		if !l.order.tokens {
			lock.Token = ""
		}
		for _, field := range []*string{&lock.Name, &lock.Owner, &lock.Token} {
			*field = jsonText(*field)
		}
	}
	return printJSON(w, s)
}

// jsonText returns the bytes unchanged, or quoted as in Go if JSON cannot hold them.
func jsonText(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strconv.Quote(s)
}

// widthOf returns the width of the terminal; 0: no terminal, cut nothing.
func widthOf(w io.Writer) int {
	file, ok := w.(*os.File)
	if !ok || !term.IsTerminal(file.Fd()) {
		return 0
	}
	width, _, err := term.GetSize(file.Fd())
	if err != nil {
		return 0
	}
	return width
}

func (l *lister) writeTable(w io.Writer, s Snapshot, width int) error {
	rows := [][]string{titles()}
	for _, lock := range l.order.apply(s.Locks) {
		rows = append(rows, cells(&lock, l.order.tokens))
	}
	return printTable(w, rows, fit(rows, width))
}

// printTable aligns text to the left. On a terminal, titles are bold and failed checks are red.
func printTable(w io.Writer, rows [][]string, widths []int) error {
	coloured := widthOf(w) > 0 && os.Getenv("NO_COLOR") == ""
	state := slices.Index(rows[0], "STATE")
	for i, row := range rows {
		text := strings.TrimRight(line(row, widths, func(i int) bool { return rightIn(rows[0], i) }), " ")
		switch {
		case coloured && i == 0:
			text = bold.Render(text)
		case coloured && state >= 0 && row[state] == stateFail:
			text = bad.Render(text)
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return err
		}
	}
	return nil
}

// needed returns the width of each column.
func needed(rows [][]string) []int {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], ansi.StringWidth(cell))
		}
	}
	return widths
}

// fit gives each column the width that its cells need. If the sum is too wide, it shortens the owner, then the
// name. 0: no limit.
func fit(rows [][]string, width int) []int {
	widths := needed(rows)
	all := len(columns) - 1
	for _, w := range widths {
		all += w
	}
	for _, i := range []int{columnOf("owner"), columnOf("fence"), columnOf("owner"), columnOf("name")} {
		if width == 0 || all <= width {
			break
		}
		least := min(widths[i], columns[i].least)
		cut := min(all-width, widths[i]-least)
		widths[i] -= cut
		all -= cut
	}
	return widths
}

// complete refreshes at the usual rate until it has seen all keys and read all locks, or something fails.
func (c *collector) complete(ctx context.Context, interval time.Duration, going func(looked int)) (Snapshot, error) {
	for {
		s := c.refresh(ctx, interval)
		if s.Complete || len(s.Errors) > 0 {
			return s, ctx.Err()
		}
		going(s.Looked)
		if !pause(ctx, interval) {
			return s, errors.New("ended by a signal before all keys were looked at")
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
