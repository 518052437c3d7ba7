package main

import (
	"context"
	"os"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"
)

func newTop(s *server) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show all locks, live",
		Long: "Show all locks, live, on a terminal; elsewhere print what list prints. Move with the arrow keys, enter\n" +
			"shows the queue of a lock, r takes the lock away from its holder, after a question.\n\n" +
			"With --json it prints one line for each refresh, as list --json does.",
		Example: "  redislock top\n  redislock top --filter mail --sort held",
		Args:    cobra.NoArgs,
	}
	l := newLister(s, cmd)
	interval := cmd.Flags().Duration("interval", 2*time.Second, "between two refreshes")
	cmd.RunE = work(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		if *interval < 100*time.Millisecond {
			return usage("--interval %v: it must be at least 100ms", *interval)
		}
		terminal := term.IsTerminal(os.Stdout.Fd())
		if !l.json && !terminal {
			return l.once(ctx, cmd.OutOrStdout())
		}
		c, shown, err := l.open("redislock-top")
		if err != nil {
			return err
		}
		defer c.client.Close()
		if l.json {
			return l.stream(ctx, cmd.OutOrStdout(), c, *interval)
		}
		_, err = tea.NewProgram(newModel(ctx, c, l.order, shown, *interval), tea.WithContext(ctx)).Run()
		if ctx.Err() != nil {
			return nil // ended by a signal
		}
		return err
	})
	return cmd
}
