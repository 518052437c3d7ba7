package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/redis/rueidis"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/seed-ee05a192/redislock"
)

const (
	defaultURL  = "redis://127.0.0.1:6379"
	dialTimeout = 2 * time.Second
	// topologyEvery is how often the client asks a cluster for its primaries.
	topologyEvery = 2 * time.Second
)

// server is the flags about Redis.
type server struct {
	url, passwordFile, prefix string
}

func (s *server) flags(flags *pflag.FlagSet) {
	flags.StringVar(&s.url, "url", "", "redis://[USER@]HOST:PORT[/DB] or rediss://, of a cluster any node, or\n"+
		"redis://HOST:26379?master_set=NAME for Sentinel (default $REDIS_URL, or "+defaultURL+")")
	flags.StringVar(&s.passwordFile, "password-file", "", "`FILE` with the password (default: $REDIS_PASSWORD, or that in $REDIS_URL)")
	flags.StringVar(&s.prefix, "prefix", "lock", "what the keys of the locks begin with")
}

// options returns the options of rueidis, and the address without its password.
func (s *server) options(name string) (rueidis.ClientOption, string, error) {
	var none rueidis.ClientOption
	if s.prefix == "" || strings.ContainsAny(s.prefix, "{}:") {
		return none, "", usage("--prefix %q: it must not be empty, nor have braces or a colon", s.prefix)
	}
	text, from := s.url, "--url"
	if text == "" {
		text, from = os.Getenv("REDIS_URL"), "REDIS_URL"
	}
	if text == "" {
		text = defaultURL
	}
	u, err := url.Parse(text)
	if err != nil {
		var wrong *url.Error // its text contains the password
		if errors.As(err, &wrong) {
			err = wrong.Err
		}
		return none, "", usage("%s: %w", from, err)
	}
	if _, has := u.User.Password(); has && from == "--url" {
		return none, "", usage("--url has a password, which every user of this machine can see with ps. " +
			"Put it into REDIS_PASSWORD, or into a file: --password-file FILE")
	}
	opts, err := rueidis.ParseURL(text)
	if err != nil {
		return none, "", usage("%s: %w", from, err)
	}
	if password := os.Getenv("REDIS_PASSWORD"); password != "" {
		opts.Password = password
	}
	if s.passwordFile != "" {
		text, err := os.ReadFile(s.passwordFile)
		if err != nil {
			return none, "", usage("--password-file: %w", err)
		}
		opts.Password = strings.TrimRight(string(text), "\r\n")
	}
	// One connection to a node is enough. Short timeouts notice a dead server.
	opts.DisableCache = true
	opts.PipelineMultiplex = -1
	opts.ClientName = name
	opts.ReadBufferEachConn, opts.WriteBufferEachConn = 64<<10, 64<<10
	opts.Dialer = net.Dialer{Timeout: dialTimeout, KeepAlive: time.Second}
	opts.ConnWriteTimeout = dialTimeout
	// rueidis asks for the primaries again when a call is redirected or fails. SCAN is never redirected, so
	// the locks of a new primary would be missing without a word.
	opts.ClusterOption.ShardsRefreshInterval = topologyEvery
	return opts, u.Redacted(), nil
}

// connect returns a client, and the address without its password.
func (s *server) connect(name string) (rueidis.Client, string, error) {
	opts, shown, err := s.options(name)
	if err != nil {
		return nil, "", err
	}
	client, err := rueidis.NewClient(opts)
	if err != nil {
		return nil, "", &failure{exitUnavailable, fmt.Errorf("%s: %w", shown, err)}
	}
	return client, shown, nil
}

// explain returns an error in one line, with the remedy.
func explain(err error) string {
	text := strings.TrimPrefix(oneLine(err), "redislock: ")
	var version *redislock.VersionError
	var network net.Error
	says := func(words ...string) bool {
		for _, word := range words {
			if strings.Contains(text, word) {
				return true
			}
		}
		return false
	}
	switch {
	case errors.As(err, &version) && version.Have == "":
		return fmt.Sprintf("the function library is missing on %s. Remedy: redislock load (its user's rights: redislock acl loader)", version.Node)
	case errors.As(err, &version):
		return fmt.Sprintf("the function library on %s: %s, need %s. Remedy: redislock load, or this program in another version", version.Node, version.Reason, version.Want)
	case says("Function not found"):
		return text + ". Remedy: redislock load"
	case says("NOAUTH", "WRONGPASS"):
		return text + ". Remedy: the password in REDIS_PASSWORD or --password-file, the user in the URL: redis://USER@HOST"
	case says("NOPERM"):
		return text + ". Remedy: the rights that redislock acl prints"
	case says("WRONGTYPE"):
		return text + ". Remedy: another name or --prefix: another program uses this key"
	case says("OOM"):
		return text + ". Remedy: free memory, or raise maxmemory"
	case says("LOCKARG expected"):
		return text + ". Remedy: redislock verify: the function library is older than this program"
	case says("CROSSSLOT", "MOVED"):
		return text + ". Remedy: this is a node of a cluster, give its user +cluster|slots +cluster|shards"
	case errors.As(err, &network), says("connection refused", "deadline exceeded", "connection reset", "EOF"):
		return text + ". Remedy: see that Redis runs there, and that --url or REDIS_URL names it"
	}
	return text
}

// code is the exit code for an error of the library.
func code(err error) int {
	var f *failure
	switch {
	case errors.As(err, &f):
		return f.code
	case errors.Is(err, redislock.ErrUnavailable):
		return exitUnavailable
	case errors.Is(err, redislock.ErrNotAcquired):
		return exitBusy
	case errors.Is(err, redislock.ErrLost):
		return exitLost
	}
	return exitUnavailable
}

func printJSON(w io.Writer, v any) error {
	return json.NewEncoder(w).Encode(v)
}

// buildVersion is the version of the module, or what git knows of it.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}

// work gives a command's errors their exit code.
func work(do func(ctx context.Context, cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := do(cmd.Context(), cmd, args)
		var f *failure
		if err != nil && !errors.As(err, &f) {
			err = &failure{code(err), err}
		}
		return err
	}
}
