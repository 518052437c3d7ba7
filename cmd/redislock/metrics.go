package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
	"github.com/spf13/cobra"

	"github.com/seed-ee05a192/redislock"
)

const maxLabel = 200 // bytes of a lock's name

func newMetrics(s *server) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "metrics",
		Short: "Print or serve metrics for Prometheus",
		Long: "Print metrics in Prometheus's text format, or serve them with --listen at /metrics.\n\n" +
			"Labels are bounded: --max-locks locks have lines of their own, those that are waited for longest and then\n" +
			"those held longest; redislock_locks_omitted says how many have none. The totals count all.\n\n" +
			"Alert rules and a dashboard: cmd/redislock/monitoring.",
		Example: "  redislock metrics\n  redislock metrics --listen 127.0.0.1:9464",
		Args:    cobra.NoArgs,
	}
	listen := cmd.Flags().String("listen", "", "serve at `HOST:PORT` until ended (default: print once)")
	interval := cmd.Flags().Duration("interval", 15*time.Second, "between two looks at Redis, with --listen")
	most := cmd.Flags().Int("max-locks", 100, "locks with lines of their own")
	cmd.RunE = work(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		switch {
		case *most < 0:
			return usage("--max-locks %d: it must not be negative", *most)
		case *interval < time.Second:
			return usage("--interval %v: it must be at least 1s", *interval)
		}
		client, _, err := s.connect("redislock-metrics")
		if err != nil {
			return err
		}
		defer client.Close()
		g := &gauge{client: client, collector: newCollector(client, s.prefix, 100, 1000), most: *most}
		if *listen != "" {
			return g.serve(ctx, cmd.ErrOrStderr(), *listen, *interval)
		}
		snapshot, err := g.collector.complete(ctx, time.Second, func(int) {})
		if err != nil {
			return err
		}
		if _, err := cmd.OutOrStdout().Write(g.text(ctx, snapshot)); err != nil {
			return err
		}
		if len(snapshot.Errors) > 0 {
			return errors.New(strings.Join(snapshot.Errors, "; "))
		}
		return nil
	})
	return cmd
}

// gauge is one metric.
type gauge struct {
	client    rueidis.Client
	collector *collector
	most      int
}

// serve answers with the last snapshot, so scrapes cost Redis nothing.
func (g *gauge) serve(ctx context.Context, log io.Writer, addr string, interval time.Duration) error {
	var last atomic.Pointer[[]byte]
	look := func() {
		text := g.text(ctx, g.collector.refresh(ctx, interval))
		last.Store(&text)
	}
	look()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(*last.Load())
	})
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return usage("--listen: %w", err)
	}
	fmt.Fprintf(log, "redislock: metrics at http://%s/metrics\n", listener.Addr())
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	for {
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
			return server.Close()
		case <-time.After(interval):
			look()
		}
	}
}

// metric is one of them, with its lines.
type metric struct {
	name, help string
	lines      []string
}

func (f *metric) add(value float64, labels ...string) {
	text := ""
	for i := 0; i+1 < len(labels); i += 2 {
		text += cmp.Or(strings.Repeat(",", min(i, 1)), "{") + labels[i] + `="` + escapeLabel(labels[i+1]) + `"`
	}
	if text != "" {
		text += "}"
	}
	f.lines = append(f.lines, f.name+text+" "+strconv.FormatFloat(value, 'f', -1, 64))
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// escapeLabel also limits the length, and quotes bytes that are not UTF-8.
func escapeLabel(s string) string {
	s = jsonText(s)
	if len(s) > maxLabel {
		s = strings.ToValidUTF8(s[:maxLabel], "") + "…"
	}
	return labelEscapes.Replace(s)
}

// text returns all metrics. docs/cli.md documents names and labels.
func (g *gauge) text(ctx context.Context, s Snapshot) []byte {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var (
		up        = metric{name: "redislock_up", help: "1 if all primaries answered."}
		complete  = metric{name: "redislock_complete", help: "1 once all keys were looked at; the totals are too low before."}
		missing   = metric{name: "redislock_library_missing", help: "1 if the function library cannot be called on this primary."}
		library   = metric{name: "redislock_library_info", help: "The version of the function library on this primary, and of the one in this program."}
		evicting  = metric{name: "redislock_may_evict", help: "1 if this primary's maxmemory-policy can evict locks."}
		held      = metric{name: "redislock_locks_held", help: "Locks that somebody holds."}
		waiting   = metric{name: "redislock_locks_waiting", help: "Waiters of all locks."}
		omitted   = metric{name: "redislock_locks_omitted", help: "Locks without lines of their own, see --max-locks."}
		holders   = metric{name: "redislock_holders", help: "How many hold this lock."}
		waiters   = metric{name: "redislock_waiters", help: "How many wait for this lock."}
		longest   = metric{name: "redislock_longest_wait_seconds", help: "For how long the first in the queue of this lock has waited."}
		oldest    = metric{name: "redislock_oldest_hold_seconds", help: "For how long this lock has been held since its last grant."}
		unlimited = metric{name: "redislock_never_expires", help: "1 if this lock is held without expiry."}
	)
	up.add(one(len(s.Errors) == 0))
	complete.add(one(s.Complete))
	nodes := primaries(ctx, g.client)
	for addr, node := range nodes {
		version, err := node.Do(ctx, node.B().Arbitrary("FCALL_RO", "lock_version", "0").Build()).ToString()
		missing.add(one(err != nil), "node", addr)
		if err == nil {
			library.add(1, "node", addr, "version", version, "program", redislock.Version)
		}
		info, err := node.Do(ctx, node.B().Info().Section("memory").Build()).ToString()
		if policy := infoOf(info)["maxmemory_policy"]; err == nil && policy != "" { // otherwise the user has no right to ask
			evicting.add(one(policy != "noeviction"), "node", addr)
		}
	}
	isHeld, isWaiting := 0, int64(0)
	for i := range s.Locks {
		isWaiting += s.Locks[i].Waiting
		if s.Locks[i].Count > 0 {
			isHeld++
		}
	}
	held.add(float64(isHeld))
	waiting.add(float64(isWaiting))
	slices.SortFunc(s.Locks, func(a, b Lock) int {
		return cmp.Or(cmp.Compare(b.Longest, a.Longest), cmp.Compare(b.Held, a.Held), cmp.Compare(a.Name, b.Name))
	})
	shown := s.Locks[:min(g.most, len(s.Locks))]
	omitted.add(float64(len(s.Locks) - len(shown)))
	for _, l := range shown {
		holders.add(float64(l.Count), "lock", l.Name)
		waiters.add(float64(l.Waiting), "lock", l.Name)
		longest.add(float64(l.Longest)/1000, "lock", l.Name)
		oldest.add(float64(max(0, l.Held))/1000, "lock", l.Name)
		unlimited.add(one(l.Count > 0 && l.Left == -1), "lock", l.Name)
	}
	var b bytes.Buffer
	for _, f := range []*metric{&up, &complete, &missing, &library, &evicting, &held, &waiting, &omitted, &holders, &waiters, &longest, &oldest, &unlimited} {
		if len(f.lines) == 0 {
			continue
		}
		slices.Sort(f.lines)
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s gauge\n%s\n", f.name, f.help, f.name, strings.Join(f.lines, "\n"))
	}
	return b.Bytes()
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
