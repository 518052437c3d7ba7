// Command top shows all redislock locks of a server or cluster, live: who holds them, since when,
// who waits. On a terminal it is a screen that refreshes; elsewhere it prints a table or JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/term"
	"github.com/redis/rueidis"
)

// topologyEvery is how old the news of who the primaries of a cluster are may be.
const topologyEvery = 2 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "top:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("top", flag.ContinueOnError)
	server := flags.String("url", os.Getenv("REDIS_URL"), "`redis://` or rediss://USER:PASSWORD@HOST:PORT/DB, of a cluster any node;\n"+
		"Sentinel: redis://HOST:26379?master_set=NAME (default $REDIS_URL, then redis://127.0.0.1:6379)")
	prefix := flags.String("prefix", "lock", "what the locks' keys begin with")
	interval := flags.Duration("interval", 2*time.Second, "between two refreshes")
	scans := flags.Int("scans", 100, "SCANs a second and primary, at most; each looks at 500 keys")
	reads := flags.Int("reads", 1000, "locks read a second and primary, at most")
	filter := flags.String("filter", "", "only locks whose name or holder contains this")
	sorting := flags.String("sort", "waiting", strings.Join(sorts(), ", "))
	once := flags.Bool("once", false, "print a table and end, also on a terminal")
	asJSON := flags.Bool("json", false, "print one JSON document for each refresh; with -once one that is complete")
	if err := flags.Parse(args); err != nil {
		return err
	}
	column := columnOf(*sorting)
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unknown argument %q", flags.Arg(0))
	case column < 0:
		return fmt.Errorf("-sort %q: none of %s", *sorting, strings.Join(sorts(), ", "))
	case *interval < 100*time.Millisecond:
		return fmt.Errorf("-interval %v: it must be at least 100ms", *interval)
	case *scans < 1 || *reads < 1:
		return errors.New("-scans and -reads must be at least 1")
	case *prefix == "" || strings.ContainsAny(*prefix, "{}"):
		return fmt.Errorf("-prefix %q: it must not be empty or have braces", *prefix)
	}
	if *server == "" {
		*server = "redis://127.0.0.1:6379"
	}
	client, shown, err := connect(*server)
	if err != nil {
		return err
	}
	defer client.Close()

	c := newCollector(client, *prefix, *scans, *reads)
	list := order{column: column, filter: *filter}
	switch {
	case *asJSON && !*once:
		return stream(ctx, c, list, *interval)
	case *asJSON, *once, !term.IsTerminal(os.Stdout.Fd()):
		s, err := complete(ctx, c, *interval)
		if err != nil {
			return err
		}
		if *asJSON {
			err = writeJSON(os.Stdout, s, list)
		} else {
			err = writeTable(os.Stdout, s, list)
		}
		if err == nil && len(s.Errors) > 0 {
			err = errors.New(strings.Join(s.Errors, "\n"))
		}
		return err
	}
	_, err = tea.NewProgram(newModel(ctx, c, list, shown, *interval), tea.WithContext(ctx)).Run()
	if ctx.Err() != nil {
		return nil // ended by a signal
	}
	return err
}

// connect returns the client, and the address without its password.
func connect(server string) (rueidis.Client, string, error) {
	u, err := url.Parse(server)
	if err != nil {
		var wrong *url.Error // its text has the password
		if errors.As(err, &wrong) {
			err = wrong.Err
		}
		return nil, "", fmt.Errorf("the URL of the server: %w", err)
	}
	opts, err := rueidis.ParseURL(server)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", u.Redacted(), err)
	}
	// One connection to a node is enough, and a dead server is noticed soon.
	opts.DisableCache = true
	opts.PipelineMultiplex = -1
	opts.ClientName = "redislock-top"
	opts.ReadBufferEachConn, opts.WriteBufferEachConn = 64<<10, 64<<10
	opts.Dialer = net.Dialer{Timeout: 2 * time.Second, KeepAlive: time.Second}
	opts.ConnWriteTimeout = 2 * time.Second
	// rueidis asks again who the primaries are when a call is redirected or fails. SCAN never is: the
	// locks of a new primary would be missing, and nothing would say so.
	opts.ClusterOption.ShardsRefreshInterval = topologyEvery
	client, err := rueidis.NewClient(opts)
	if err != nil {
		return nil, "", fmt.Errorf("cannot reach %s: %w", u.Redacted(), err)
	}
	return client, u.Redacted(), nil
}

// complete refreshes until all keys were looked at and all locks were read, at the usual rate, or
// something fails.
func complete(ctx context.Context, c *collector, interval time.Duration) (Snapshot, error) {
	for {
		s := c.refresh(ctx, interval)
		if s.Complete || len(s.Errors) > 0 {
			return s, ctx.Err()
		}
		fmt.Fprintf(os.Stderr, "top: %s keys looked at\n", thousands(s.Looked))
		if !pause(ctx, interval) {
			return s, errors.New("ended by a signal before all keys were looked at")
		}
	}
}

func stream(ctx context.Context, c *collector, list order, interval time.Duration) error {
	for {
		s := c.refresh(ctx, interval)
		if ctx.Err() != nil {
			return nil
		}
		if err := writeJSON(os.Stdout, s, list); err != nil {
			return err
		}
		if !pause(ctx, interval) {
			return nil
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

// writeJSON writes one line. Strings are the bytes as they are, or quoted as in Go where JSON cannot have them.
func writeJSON(w io.Writer, s Snapshot, list order) error {
	s.Locks = list.apply(s.Locks)
	for i := range s.Locks {
		for _, field := range []*string{&s.Locks[i].Name, &s.Locks[i].Holder} {
			if !utf8.ValidString(*field) {
				*field = strconv.Quote(*field)
			}
		}
	}
	return json.NewEncoder(w).Encode(s)
}

func writeTable(w io.Writer, s Snapshot, list order) error {
	rows := [][]string{titles()}
	for _, lock := range list.apply(s.Locks) {
		rows = append(rows, cells(&lock))
	}
	widths := make([]int, len(columns))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], ansi.StringWidth(cell))
		}
	}
	for _, row := range rows {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line(row, widths, right), " ")); err != nil {
			return err
		}
	}
	return nil
}
