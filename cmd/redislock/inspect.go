package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/seed-ee05a192/redislock"
)

func newInspect(s *server) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "inspect NAME",
		Short:   "Show who holds a lock, and who waits for it",
		Long:    "Show who holds a lock, and the first 1,000 who wait for it, in order.",
		Example: "  redislock inspect orders\n  redislock inspect --json orders | jq .waiting",
		Args:    oneName,
	}
	asJSON := jsonFlag(cmd)
	tokens := cmd.Flags().Bool("tokens", false, "show whole tokens: who has one can release the lock")
	cmd.RunE = work(func(ctx context.Context, cmd *cobra.Command, args []string) error {
		client, _, err := s.connect("redislock-inspect")
		if err != nil {
			return err
		}
		defer client.Close()
		lock, waiters, err := newCollector(client, s.prefix, 1, 1).read(ctx, taggedOf(args[0]))
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), inspected(lock, waiters, *tokens))
		}
		return printLock(cmd.OutOrStdout(), &lock, waiters, *tokens)
	})
	return cmd
}

// oneName is the argument of a command for one lock.
func oneName(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usage("%d names of locks, not one", len(args))
	}
	return checkName(args[0])
}

// details is a lock with its holders and waiters.
type details struct {
	Lock
	Holders []Holder `json:"holders"`
	Waiters []Waiter `json:"waiters"`
}

func inspected(lock Lock, waiters []Waiter, tokens bool) details {
	shown := func(token *string) {
		*token = jsonText(*token)
		if !tokens {
			*token = ""
		}
	}
	d := details{lock, append([]Holder{}, lock.holders...), append([]Waiter{}, waiters...)}
	for i := range d.Holders {
		shown(&d.Holders[i].Token)
		d.Holders[i].Owner = jsonText(d.Holders[i].Owner)
	}
	for i := range d.Waiters {
		shown(&d.Waiters[i].Token)
		d.Waiters[i].Owner = jsonText(d.Waiters[i].Owner)
	}
	shown(&d.Token)
	d.Name, d.Owner = jsonText(d.Name), jsonText(d.Owner)
	return d
}

func printLock(w io.Writer, l *Lock, waiters []Waiter, tokens bool) error {
	shown := map[string]string{}
	for i, cell := range cells(l, tokens) {
		shown[columns[i].sort] = cell
	}
	about := "nobody holds it"
	if l.Token != "" {
		about = fmt.Sprintf("held by %s for %s, lease left %s", shown["owner"], shown["held"], shown["lease"])
	}
	fmt.Fprintf(w, "%s: %s; fence %s, %d waiting\n", shown["name"], about, shown["fence"], l.Waiting)
	var rows [][]string
	if l.Mode == modeShared {
		rows = [][]string{{"HOLDER", "OWNER", "LEASE"}}
		for i, h := range l.holders {
			rows = append(rows, []string{strconv.Itoa(i + 1), ownerOrToken(h.Owner, h.Token, tokens), lease(h.Left)})
		}
		if err := printTable(w, rows, needed(rows)); err != nil {
			return err
		}
	}
	if len(waiters) == 0 {
		return nil
	}
	rows = [][]string{{"PLACE", "OWNER", "WAITED", "LAPSES IN", "LEASE", "TOGETHER"}}
	for i, wt := range waiters {
		rows = append(rows, []string{strconv.Itoa(i + 1), ownerOrToken(wt.Owner, wt.Token, tokens), span(wt.Waited), span(wt.LapsesIn),
			asked(wt.Lease), together(wt.Holders)})
	}
	return printTable(w, rows, needed(rows))
}

// lease is the rest of a lease, asked is its full length.
func lease(left int64) string {
	if left < 0 {
		return "never"
	}
	return span(left)
}

func asked(ms int64) string {
	if ms == 0 {
		return "never"
	}
	return span(ms)
}

// together says how many may hold the lock with a waiter.
func together(holders int64) string {
	switch holders {
	case 0:
		return "any"
	case 1:
		return "alone"
	}
	return strconv.FormatInt(holders, 10)
}

func newReset(s *server) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reset NAME | reset --all --yes",
		Short: "Take a lock away from its holder",
		Long: "Take a lock away from all who hold it, and hand it to the first who waits.\n\n" +
			"The former holder may still be at work: it learns it at its next renewal, and until then only storage\n" +
			"that checks fencing tokens keeps its writes out. Stop that process first if you can.",
		Example: "  redislock reset orders\n  redislock reset --all --yes",
	}
	asJSON := jsonFlag(cmd)
	all := cmd.Flags().Bool("all", false, "all locks of the prefix that somebody holds")
	yes := cmd.Flags().Bool("yes", false, "they may be at work, and you know it")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		switch {
		case !*all:
			return oneName(cmd, args)
		case len(args) > 0:
			return usage("a NAME, or --all, not both")
		case !*yes:
			return usage("--all takes every lock away from whoever holds it. If that is what you want, add --yes")
		}
		return nil
	}
	cmd.RunE = work(func(ctx context.Context, cmd *cobra.Command, args []string) error {
		locker, end, err := s.locker()
		if err != nil {
			return err
		}
		defer end()
		out := cmd.OutOrStdout()
		if *all {
			n, err := locker.ResetAll(ctx)
			if *asJSON {
				err = first(printJSON(out, map[string]int{"reset": n}), err)
			} else {
				fmt.Fprintf(out, "%d locks were taken away from their holders\n", n)
			}
			return err
		}
		taken, err := locker.Reset(ctx, args[0])
		switch {
		case err != nil:
			return err
		case *asJSON:
			n := 0
			if taken {
				n = 1
			}
			return printJSON(out, map[string]int{"reset": n})
		case taken:
			fmt.Fprintf(out, "%s was taken away from its holder\n", quote(args[0]))
		default:
			fmt.Fprintf(out, "nobody held %s\n", quote(args[0]))
		}
		return nil
	})
	return cmd
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// locker returns a Locker that loads nothing.
func (s *server) locker() (*redislock.Locker, func(), error) {
	client, _, err := s.connect("redislock")
	if err != nil {
		return nil, nil, err
	}
	locker, err := redislock.New(client, redislock.Options{Prefix: s.prefix, LoadMode: redislock.LoadNever})
	if err != nil {
		client.Close()
		return nil, nil, &failure{exitUsage, err}
	}
	return locker, func() { locker.Close(); client.Close() }, nil
}
