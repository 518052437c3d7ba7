package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/redis/rueidis"
	"github.com/spf13/cobra"

	"github.com/seed-ee05a192/redislock"
)

// runOptions are the flags and arguments of run.
type runOptions struct {
	*server
	name    string
	command []string

	try, quiet           bool
	wait, lease, maxHold time.Duration // a negative wait: no limit
	atLeast, grace       time.Duration
	holders              int
	shared               bool
	owner                string
}

const runLong = `Run COMMAND while holding the lock NAME. Others that want the lock wait, first come, first served.

COMMAND runs without a shell, in a process group of its own, with LOCK_NAME, LOCK_FENCE and
LOCK_TOKEN in its environment. Storage that refuses a LOCK_FENCE lower than the last is safe even
against a machine that stood still.

The lock is renewed for as long as anything of the group runs, and given back after that. HUP, INT,
QUIT, TERM, USR1 and USR2 are passed on to the group. A second TERM, or --grace after the first, kills
it. If the lock is lost, or may be, the group gets TERM, and KILL before anybody else can get the lock.
If redislock itself is killed, COMMAND and all that it started are killed, too.

Exit codes: that of COMMAND, or 128 and the number of the signal that ended it; 64 a wrong call;
69 Redis is unavailable; 75 the lock is busy; 76 the lock was lost; 126 COMMAND cannot be run;
127 there is no COMMAND.`

const runExample = `  redislock run migrate -- ./migrate up
  redislock run --try nightly -- /usr/local/bin/backup --all
  redislock run --wait 30s --max-hold 1h report -- sh -c 'extract | load'`

func newRun(s *server) *cobra.Command {
	o := &runOptions{server: s}
	cmd := &cobra.Command{
		Use:     "run [flags] NAME -- COMMAND [ARGUMENT...]",
		Short:   "Run a command while holding a lock",
		Long:    runLong,
		Example: runExample,
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.try, "try", false, "do not wait: exit with 75 if somebody holds the lock or waits for it")
	flags.DurationVar(&o.wait, "wait", -1, "wait for so long at most, then exit with 75 (default: no limit)")
	flags.DurationVar(&o.lease, "lease", 10*time.Second, "how long the lock outlives a machine that died; renewed every third of it")
	flags.DurationVar(&o.maxHold, "max-hold", 0, "end the command after this, as if the lock was lost (default: no limit)")
	flags.StringVar(&o.owner, "owner", "", "who holds the lock, for list, top and inspect (default HOST:PID)")
	flags.DurationVar(&o.grace, "grace", 0, "kill the group so long after it was sent TERM (default: never)")
	flags.DurationVar(&o.atLeast, "at-least", 0, "keep the lock so long from the start, also if the command is done before:\n"+
		"once per period, whatever the clocks of the machines say")
	flags.IntVar(&o.holders, "holders", 1, "so many may hold the lock together, this one included")
	flags.BoolVar(&o.shared, "shared", false, "hold the lock together with all others that say --shared: readers")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "do not say who holds a busy lock")
	cmd.Flag("wait").DefValue, cmd.Flag("max-hold").DefValue, cmd.Flag("grace").DefValue = "0", "0", "0" // the help texts say it
	cmd.Flag("at-least").DefValue, cmd.Flag("holders").DefValue = "0", "0"
	cmd.MarkFlagsMutuallyExclusive("try", "wait")
	cmd.MarkFlagsMutuallyExclusive("holders", "shared")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.complete(cmd, args); err != nil {
			return err
		}
		if status := runCommand(o); status != 0 {
			return &failure{code: status}
		}
		return nil
	}
	return cmd
}

// logger is for the Locker.
var logger = slog.Default()

// complete checks the arguments, without Redis.
func (o *runOptions) complete(cmd *cobra.Command, args []string) error {
	dash := cmd.ArgsLenAtDash()
	if dash == 0 && len(args) > 1 && args[1] == "--" { // -- NAME -- COMMAND: the name begins with -
		dash, args = 1, append(args[:1:1], args[2:]...)
	}
	switch {
	case dash != 1:
		return usage("run needs one NAME, then --, then the command: redislock run orders -- ./work")
	case len(args) < 2 || args[1] == "":
		return usage("run needs a command after --: redislock run %s -- ./work", args[0])
	case cmd.Flags().Changed("wait") && o.wait < 0:
		return usage("--wait %v: it must not be negative", o.wait)
	case cmd.Flags().Changed("max-hold") && o.maxHold <= 0:
		return usage("--max-hold %v: it must be more than 0", o.maxHold)
	case o.atLeast < 0:
		return usage("--at-least %v: it must not be negative", o.atLeast)
	case o.maxHold > 0 && o.atLeast > o.maxHold:
		return usage("--at-least %v: it must not be longer than --max-hold %v", o.atLeast, o.maxHold)
	case o.holders < 1:
		return usage("--holders %d: it must be at least 1", o.holders)
	case o.grace < 0:
		return usage("--grace %v: it must not be negative", o.grace)
	}
	o.name, o.command = args[0], args[1:]
	if err := checkName(o.name); err != nil {
		return err
	}
	_, _, err := o.options("")
	return err
}

// checkName refuses names as the library does, so a bad name is a wrong call even if Redis is down.
func checkName(name string) error {
	switch {
	case name == "":
		return usage("the name of a lock must not be empty")
	case strings.HasPrefix(name, "}"):
		return usage("the name %q must not begin with '}'", name)
	}
	return nil
}

// acquire takes the lock. The Locker and its client live as long as this process.
func (o *runOptions) acquire(ctx context.Context, owner string) (*redislock.Lock, error) {
	client, err := o.reach(ctx)
	if err != nil {
		return nil, err
	}
	locker, err := redislock.New(client, redislock.Options{Prefix: o.prefix, Owner: owner, Logger: logger})
	if err != nil {
		return nil, &failure{exitUsage, err}
	}
	opts := []redislock.Option{redislock.WithLease(o.lease)}
	if o.maxHold > 0 {
		opts = append(opts, redislock.WithMaxHold(o.maxHold))
	}
	if o.atLeast > 0 {
		opts = append(opts, redislock.WithMinHold(o.atLeast))
	}
	if o.holders != 1 {
		opts = append(opts, redislock.WithHolders(o.holders))
	}
	if o.shared {
		opts = append(opts, redislock.WithShared())
	}
	if o.wait >= 0 {
		opts = append(opts, redislock.WithWait(o.wait))
	}
	if o.try {
		return locker.TryAcquire(ctx, o.name, opts...)
	}
	return locker.Acquire(ctx, o.name, opts...)
}

// reach connects. It retries for --wait, if that is set.
func (o *runOptions) reach(ctx context.Context) (rueidis.Client, error) {
	for end := time.Now().Add(o.wait); ; {
		client, _, err := o.connect("redislock-run")
		if err == nil || code(err) == exitUsage || time.Now().After(end) {
			o.wait = max(o.wait, -1)
			if o.wait >= 0 {
				o.wait = max(0, time.Until(end))
			}
			return client, err
		}
		select {
		case <-time.After(min(time.Second, time.Until(end))):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// busy says who holds the lock.
func (o *runOptions) busy() string {
	text := quote(o.name) + " is busy"
	client, _, err := o.connect("redislock-run")
	if err != nil {
		return text
	}
	defer client.Close()
	lock, _, err := newCollector(client, o.prefix, 1, 1).read(context.Background(), taggedOf(o.name))
	if err != nil || lock.Token == "" {
		return text
	}
	shown := cells(&lock, false)
	return fmt.Sprintf("%s: held by %s for %s, lease left %s, %d waiting", text, shown[2], shown[3], shown[4], lock.Waiting)
}
