package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/rueidis"
	"github.com/spf13/cobra"

	"github.com/seed-ee05a192/redislock"
)

// loaded is the result of load on a primary.
type loaded struct {
	Node   string `json:"node"`
	Before string `json:"before"` // the version that was there, "" if there was none
	Now    string `json:"now"`
}

func newLoad(s *server) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Load the function library into Redis",
		Long: "Load the function library that is in this program into every primary.\n\n" +
			"An older version is replaced, under traffic and without harm. The same or a newer one is left alone,\n" +
			"so it can be repeated. Not so another major version, or somebody else's functions.",
		Example: "  redislock load",
		Args:    cobra.NoArgs,
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = work(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		client, _, err := s.connect("redislock-load")
		if err != nil {
			return err
		}
		defer client.Close()
		before := versions(ctx, client)
		if err := redislock.Load(ctx, client); err != nil {
			return err
		}
		now := versions(ctx, client)
		all := []loaded{}
		for _, node := range slices.Sorted(maps.Keys(now)) {
			all = append(all, loaded{node, before[node], now[node]})
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), all)
		}
		for _, l := range all {
			what := "version " + l.Now + " is loaded"
			switch {
			case l.Before == l.Now:
				what = "version " + l.Now + " was there"
			case l.Before != "":
				what += ", in place of " + l.Before
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", l.Node, what)
		}
		return nil
	})
	return cmd
}

// primaries returns the nodes to check. Without the right to ask, it includes the replicas.
func primaries(ctx context.Context, client rueidis.Client) map[string]rueidis.Client {
	nodes := client.Nodes()
	if len(nodes) > 1 {
		maps.DeleteFunc(nodes, func(_ string, node rueidis.Client) bool { return isReplica(ctx, node) })
	}
	return nodes
}

// versions returns the library's version on each primary that has the library.
func versions(ctx context.Context, client rueidis.Client) map[string]string {
	all := map[string]string{}
	for addr, node := range primaries(ctx, client) {
		if version, err := node.Do(ctx, node.B().Arbitrary("FCALL_RO", "lock_version", "0").Build()).ToString(); err == nil {
			all[addr] = version
		}
	}
	return all
}

// check is one line of verify.
type check struct {
	Node   string `json:"node"`
	Check  string `json:"check"`
	State  string `json:"state"`
	Found  string `json:"found"`
	Remedy string `json:"remedy,omitempty"`
}

const (
	stateOK   = "ok"
	stateWarn = "warn" // it works, with a risk
	stateFail = "FAIL"
)

func newVerify(s *server) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that Redis is as locks need it",
		Long: "Check on every primary that the function library is this program's, letter by letter, and that the server's\n" +
			"version, eviction policy, persistence and replicas suit locks. Exits with 1 if a check fails; a warning\n" +
			"is not a failure.\n\n" +
			"The user of the loader may do that with +function|list +info besides, see redislock acl.",
		Example: "  redislock verify\n  redislock verify --json | jq '.[] | select(.state != \"ok\")'",
		Args:    cobra.NoArgs,
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = work(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		client, _, err := s.connect("redislock-verify")
		if err != nil {
			return err
		}
		defer client.Close()
		checks := []check{}
		nodes := primaries(ctx, client)
		for _, addr := range slices.Sorted(maps.Keys(nodes)) {
			checks = append(checks, verify(ctx, addr, nodes[addr])...)
		}
		if *asJSON {
			err = printJSON(cmd.OutOrStdout(), checks)
		} else {
			err = printChecks(cmd, checks)
		}
		if failed := slices.ContainsFunc(checks, func(c check) bool { return c.State == stateFail }); failed && err == nil {
			err = &failure{code: exitFailed}
		}
		return err
	})
	return cmd
}

func printChecks(cmd *cobra.Command, checks []check) error {
	rows := [][]string{{"NODE", "CHECK", "STATE", "FOUND"}}
	for _, c := range checks {
		rows = append(rows, []string{c.Node, c.Check, c.State, c.Found})
	}
	if err := printTable(cmd.OutOrStdout(), rows, needed(rows)); err != nil {
		return err
	}
	said := map[string]bool{}
	for _, c := range checks {
		if c.Remedy != "" && !said[c.Check] {
			said[c.Check] = true
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", c.Check, c.Remedy)
		}
	}
	return nil
}

// verify checks one primary.
func verify(ctx context.Context, addr string, node rueidis.Client) []check {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	checks := []check{verifyLibrary(ctx, node)}
	text, err := node.Do(ctx, node.B().Info().Build()).ToString()
	if err != nil {
		checks = append(checks, check{Check: "server", State: stateFail, Found: oneLine(err), Remedy: "its user needs +info"})
	} else {
		checks = append(checks, verifyInfo(infoOf(text))...)
	}
	for i := range checks {
		checks[i].Node = addr
	}
	return checks
}

func verifyLibrary(ctx context.Context, node rueidis.Client) check {
	c := check{Check: "library", State: stateFail}
	version, err := node.Do(ctx, node.B().Arbitrary("FCALL_RO", "lock_version", "0").Build()).ToString()
	if err != nil {
		c.Found, c.Remedy = oneLine(err), "redislock load, as a user with the rights of redislock acl loader"
		return c
	}
	c.Found = version
	libraries, err := node.Do(ctx, node.B().Arbitrary("FUNCTION", "LIST", "LIBRARYNAME", "lock", "WITHCODE").Build()).ToArray()
	if err != nil {
		c.State, c.Found, c.Remedy = stateWarn, version+", its text is not known: "+oneLine(err), "its user needs +function|list"
		return c
	}
	for _, library := range libraries {
		fields, err := library.AsMap()
		if err != nil {
			continue
		}
		field := fields["library_code"]
		if text, _ := field.ToString(); text == redislock.Source() {
			c.State, c.Found = stateOK, version+", the text of this program"
			return c
		}
	}
	c.Found = fmt.Sprintf("%s, not the text of this program's %s", version, redislock.Version)
	c.Remedy = "this program in the version of that library; or, if the text was tampered with or is of a build between two versions, " +
		"redis-cli -x FUNCTION LOAD REPLACE < lua/lock.lua"
	if version != redislock.Version {
		c.Remedy = "redislock load, if that version is older than this program's; else this program in its version"
	}
	return c
}

// infoOf returns the fields of INFO.
func infoOf(text string) map[string]string {
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if field, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[field] = value
		}
	}
	return info
}

func verifyInfo(info map[string]string) []check {
	version := check{Check: "version", State: stateOK, Found: "Redis " + info["redis_version"]}
	if valkey := info["valkey_version"]; valkey != "" {
		version.Found = "Valkey " + valkey
	}
	if major, _ := strconv.Atoi(strings.Split(info["redis_version"], ".")[0]); major < 7 {
		version.State, version.Remedy = stateFail, "Redis 7.0 or newer, or Valkey: older ones have no functions"
	}
	eviction := check{Check: "eviction", State: stateOK, Found: info["maxmemory_policy"]}
	if eviction.Found != "noeviction" {
		eviction.State, eviction.Remedy = stateFail, "CONFIG SET maxmemory-policy noeviction: any other policy can evict locks, and then two hold one. "+
			"If the other data needs it, give the locks a Redis of their own"
	}
	persistence := check{Check: "persistence", State: stateOK, Found: "append-only file"}
	if info["aof_enabled"] != "1" {
		persistence.State, persistence.Found = stateWarn, "no append-only file"
		persistence.Remedy = "CONFIG SET appendonly yes: without it, a restart frees locks that are held, or brings back released ones"
	}
	replicas := check{Check: "replicas", State: stateOK, Found: info["connected_slaves"]}
	if replicas.Found == "0" || replicas.Found == "" {
		replicas.State, replicas.Found = stateWarn, "0"
		replicas.Remedy = "a replica, with Sentinel or a cluster, if locks are to outlive this machine"
	}
	return []check{version, eviction, persistence, replicas}
}

// rights are the least rights of each user; PREFIX is a placeholder. A spec compares them with SECURITY.md.
var rights = []struct{ user, keys, commands string }{
	{"app", "~PREFIX:* ~PREFIX-queue:* ~PREFIX-state:* ~PREFIX-signal:*",
		"+fcall +fcall_ro +blpop +getrange +set +unlink +pttl +pexpire +persist +time " +
			"+zadd +zcard +zcount +zrange +zrank +zrem +zremrangebyrank +zscore +hget +hmget +hset +hdel +hlen " +
			"+llen +lindex +lpop +rpop +rpush"},
	{"loader", "", "+function|load +fcall_ro"},
	{"observer", "%R~PREFIX:* %R~PREFIX-queue:* %R~PREFIX-state:*",
		"+fcall_ro +scan +getrange +pttl +time +zcard +zcount +zrange +zscore +hget +hmget"},
}

func newACL(s *server) *cobra.Command {
	names := make([]string, len(rights))
	for i, r := range rights {
		names[i] = r.user
	}
	cmd := &cobra.Command{
		Use:   "acl [app|loader|observer]",
		Short: "Print the least rights that users need",
		Long: "Print the ACL SETUSER lines of the users that are enough, for the keys of --prefix:\n\n" +
			"  app       takes, keeps and gives back locks: run, and every program\n" +
			"  loader    puts the function library there: load\n" +
			"  observer  looks: list, top, inspect, metrics\n\n" +
			"PASSWORD is yours to put there. ACLs are not replicated: run the lines on every node. In a cluster each\n" +
			"user needs +cluster|slots +cluster|shards +asking +role besides; with Sentinel, +role.",
		Example:   "  redislock acl\n  redislock acl observer --prefix billing",
		ValidArgs: names,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = work(func(_ context.Context, cmd *cobra.Command, args []string) error {
		if _, _, err := s.options(""); err != nil {
			return err
		}
		lines := map[string]string{}
		for _, r := range rights {
			if len(args) > 0 && args[0] != r.user {
				continue
			}
			words := []string{"ACL", "SETUSER", s.prefix + "-" + r.user, "reset", "on", "'>PASSWORD'", "resetchannels"}
			for _, word := range strings.Fields(strings.ReplaceAll(r.keys, "PREFIX", globEscape(s.prefix)) + " " + r.commands) {
				if strings.ContainsAny(word, "~|*") {
					word = "'" + word + "'"
				}
				words = append(words, word)
			}
			lines[r.user] = strings.Join(words, " ")
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), lines)
		}
		for _, r := range rights {
			if line, ok := lines[r.user]; ok {
				fmt.Fprintln(cmd.OutOrStdout(), line)
			}
		}
		return nil
	})
	return cmd
}
