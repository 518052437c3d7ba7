// Command redislock runs commands under a distributed lock in Redis, and shows, checks and repairs
// the locks of a server. See docs/cli.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/seed-ee05a192/redislock"
)

// The exit codes, from sysexits.h. run also returns those of its command.
const (
	exitFailed      = 1  // verify: a check failed
	exitUsage       = 64 // a wrong call
	exitUnavailable = 69 // Redis does not answer, or refuses
	exitBusy        = 75 // somebody else holds the lock
	exitLost        = 76 // the lock was lost, or may have been
	exitCannotRun   = 126
	exitNotFound    = 127
	exitSignal      = 128 // and the signal's number
)

// failure is an error with its exit code.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func usage(format string, args ...any) error {
	return &failure{exitUsage, fmt.Errorf(format, args...)}
}

func main() {
	args := os.Args
	if fd, ok := keeperOf(args); ok { // run has started this process
		keeperFD, args = fd, args[1:]
	}
	os.Exit(execute(args[1:]))
}

func execute(args []string) int {
	root := newRoot()
	root.SetArgs(args)
	ctx, stop := context.Background(), func() {}
	if len(args) > 0 && args[0] != "run" { // run handles signals itself
		ctx, stop = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	}
	defer stop()
	command, err := root.ExecuteContextC(ctx)
	var f *failure
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &f): // cobra's own
		f = &failure{exitUsage, err}
	}
	if f.err != nil {
		fmt.Fprintln(os.Stderr, "redislock:", strings.TrimPrefix(explain(f.err), "redislock: "))
	}
	if f.code == exitUsage {
		fmt.Fprintf(os.Stderr, "See '%s --help'.\n", command.CommandPath())
	}
	return f.code
}

func newRoot() *cobra.Command {
	s := &server{}
	root := &cobra.Command{
		Use:   "redislock",
		Short: "A distributed lock in Redis: run commands under it, see who holds it, repair it",
		Long: "A distributed lock in Redis 7 or Valkey: first come, first served, handed over at once.\n\n" +
			"NAME is written as apps write it, without the prefix of the keys.\n\n" +
			"Exit codes: 0 done; 1 a check failed; 64 a wrong call; 69 Redis is unavailable; 75 the lock is busy;\n" +
			"76 the lock was lost. Those of run: see 'redislock run --help'.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	s.flags(root.PersistentFlags())
	root.AddCommand(newRun(s), newList(s), newTop(s), newInspect(s), newReset(s), newLoad(s), newVerify(s), newACL(s), newMetrics(s))
	version := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program and of the function library in it",
		Args:  cobra.NoArgs,
	}
	asJSON := jsonFlag(version)
	version.RunE = func(cmd *cobra.Command, _ []string) error {
		return printVersion(cmd, *asJSON)
	}
	root.AddCommand(version)
	return root
}

func jsonFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("json", false, "print JSON")
}

func printVersion(cmd *cobra.Command, asJSON bool) error {
	v := struct {
		Program string `json:"program"`
		Library string `json:"library"`
	}{buildVersion(), redislock.Version}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), v)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "redislock %s, function library %s\n", v.Program, v.Library)
	return err
}
