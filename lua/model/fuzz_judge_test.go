package model_test

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-ee05a192/redislock"
)

const (
	claim    = 2000    // a handed-over lease, ms, at most
	most     = 1 << 53 // a fence, at most
	slack    = 2       // ms that two readings of a clock may differ by
	listMost = 1000    // waiters that lock_inspect lists

	tokenMost = 16_384 // bytes
	keyMost   = 8192
)

var numberMost = map[string]int64{"LEASE_MS": 9_999_999_999_999, "WAIT_MS": 86_400_000, "HOLDERS": 9_999_999_999_999}

// signature is what the contract says of a function.
type signature struct {
	name       string
	keys, args []string
	reads      bool // FCALL_RO takes it
}

var signatures = []signature{
	{"lock_acquire", []string{"lock", "queue", "state", "signal"}, []string{"TOKEN", "LEASE_MS", "WAIT_MS", "HOLDERS"}, false}, // the last one is optional
	{"lock_release", []string{"lock", "queue", "state"}, []string{"TOKEN"}, false},
	{"lock_extend", []string{"lock", "queue", "state"}, []string{"TOKEN", "LEASE_MS"}, false},
	{"lock_reset", []string{"lock", "queue", "state"}, nil, false},
	{"lock_inspect", []string{"lock", "queue", "state"}, nil, true},
	{"lock_version", nil, nil, true},
}

var kinds = map[string]string{"lock": "string", "queue": "zset", "state": "hash", "signal": "list"}

// verdict is one call with what came before and after, to be judged.
type verdict struct {
	words         []string
	reply         any
	before, after state

	class string // the kind of reply

	signature
	lock, queue, hash, signal string // the keys
	token, lease, wait        string
	holders                   string
}

// judge says what is wrong with the reply to a call, or with what it did.
func judge(words []string, reply any, before, after state) error {
	v := &verdict{words: words, reply: reply, before: before, after: after}
	var err error
	if v.class, err = v.judge(); err != nil {
		return fmt.Errorf("%w\ncall:   %.2000q\nreply:  %.2000q\nbefore: %.3000q\nafter:  %.3000q", err, words, fmt.Sprint(reply), fmt.Sprint(before), fmt.Sprint(after))
	}
	v.note()
	return nil
}

func (v *verdict) judge() (class string, err error) {
	text, failed := v.reply.(replyError)
	if failed {
		if err := v.before.changes(v.after); err != nil {
			return "", fmt.Errorf("an error, but something was written: %w", err)
		}
		class, _, _ = strings.Cut(string(text), " ")
		if err := speaks(string(text)); err != nil {
			return class, err
		}
	}
	want, about := v.expected()
	switch {
	case v.unsure() && (want == "" || want == "WRONGTYPE") && (!failed || class == "WRONGTYPE"):
		return "unsure", nil
	case failed && class != want:
		return class, fmt.Errorf("an error of the class %q, not %q", class, want)
	case failed && !strings.Contains(string(text), about):
		return class, fmt.Errorf("the error does not tell of %q", about)
	case failed:
		return class, nil
	case want != "":
		return "ok", fmt.Errorf("no error, where %s about %q is due", want, about)
	}
	switch v.name {
	case "lock_acquire":
		class, err = v.acquired()
	case "lock_version":
		if v.reply != redislock.Version {
			err = fmt.Errorf("the version is not %q", redislock.Version)
		}
	case "lock_inspect":
		err = v.inspected()
	default:
		class, err = v.numbered()
	}
	if err == nil && v.reads {
		err = v.before.changes(v.after)
	}
	if err == nil && !v.reads {
		err = v.wrote()
	}
	return class, err
}

// speaks says what an error text must not have: what Lua says of itself.
func speaks(text string) error {
	said, _, _ := strings.Cut(text, ` got "`) // what follows are the caller's own words
	for _, word := range []string{"user_function", "script:", "@", "attempt to", "stack", "nil", ".lua", "bad argument", "table", "unpack"} {
		if strings.Contains(said, word) {
			return fmt.Errorf("an error of Lua: it says %q", word)
		}
	}
	for _, r := range []byte(text) {
		if r < ' ' || r > '~' {
			return fmt.Errorf("an error with the byte %q", r)
		}
	}
	return nil
}

// expected is the first word of the error that the call must get, and what it must tell of; "" for a call in good order.
func (v *verdict) expected() (class, about string) {
	i := slices.IndexFunc(signatures, func(s signature) bool { return s.name == strings.ToLower(v.words[1]) })
	if i < 0 {
		return "ERR", "Function not found"
	}
	v.signature = signatures[i]
	rest := v.words[3:]
	n, err := strconv.ParseInt(v.words[2], 10, 64)
	switch {
	case err != nil || strconv.FormatInt(n, 10) != v.words[2]:
		return "ERR", "umber of keys"
	case n < 0 || n > int64(len(rest)):
		return "ERR", "umber of keys can't be"
	case v.words[0] == "FCALL_RO" && !v.reads:
		return "ERR", "write flag"
	}
	keys, args := rest[:n], rest[n:]
	switch {
	case len(keys) != len(v.keys):
		return "LOCKARG", fmt.Sprintf("expected %d keys", len(v.keys))
	case len(args) != len(v.args) && (v.name != "lock_acquire" || len(args) != len(v.args)-1):
		return "LOCKARG", fmt.Sprintf("expected %d arguments", len(v.args))
	}
	for i := range keys {
		switch {
		case len(keys[i]) > keyMost:
			return "LOCKARG", "key " + v.keys[i] + " must have"
		case slices.Index(keys, keys[i]) < i:
			return "LOCKARG", v.keys[i] + " must differ"
		}
	}
	for i, name := range v.args[:len(args)] {
		n := digits(args[i])
		if most, isNumber := numberMost[name]; isNumber && (n < 0 || n > most || len(args[i]) > 13) ||
			!isNumber && (args[i] == "" || len(args[i]) > tokenMost) {
			return "LOCKARG", name
		}
	}
	for i, to := range []*string{&v.lock, &v.queue, &v.hash, &v.signal}[:len(keys)] {
		*to = keys[i]
	}
	v.holders = "1"
	for i, to := range []*string{&v.token, &v.lease, &v.wait, &v.holders}[:len(args)] {
		*to = args[i]
	}
	for i, name := range v.keys {
		k, ok := v.before.keys[keys[i]]
		if ok && name == "lock" && (k.kind == "zset" || k.kind == "string" && v.saysShared()) {
			continue // a string where the state tells of a set may be an error
		}
		if ok && name == "signal" && !v.queued() {
			continue // it counts only for one who may have to wait
		}
		if ok && k.kind != kinds[name] {
			return "WRONGTYPE", ""
		}
	}
	return "", ""
}

// expiring tells whether a key's time may have been up during the call.
func (v *verdict) expiring(key string) bool {
	k, ok := v.before.keys[key]
	return ok && k.expires >= 0 && k.expires <= v.after.micros/1000+slack
}

// queued tells whether the reply is a place, or an error.
func (v *verdict) queued() bool {
	r, err := integers(v.reply, 4)
	return err != nil || r[0] == 0 && r[1] > 0
}

// saysShared tells whether the state says that the lock is held together.
func (v *verdict) saysShared() bool {
	return strings.HasSuffix(v.before.hash(v.hash)["fence"], " shared")
}

// sharing are those who hold the lock together. One whose share ends about now may count, or not.
func (v *verdict) sharing(s state) (sure, perhaps map[string]float64) {
	sure, perhaps = map[string]float64{}, map[string]float64{}
	k := s.keys[v.lock]
	if k.kind != "zset" {
		return sure, perhaps
	}
	for i := 0; i+1 < len(k.items); i += 2 {
		end, err := strconv.ParseFloat(k.items[i+1], 64)
		if err != nil {
			continue
		}
		if end > float64(v.before.micros/1000-slack) {
			perhaps[k.items[i]] = end
		}
		if end > float64(v.after.micros/1000+slack) {
			sure[k.items[i]] = end
		}
	}
	return sure, perhaps
}

// together tells whether the lock was or is held so.
func (v *verdict) together() bool {
	return v.before.keys[v.lock].kind == "zset" || v.after.keys[v.lock].kind == "zset"
}

// unsure tells whether the call may have seen less than is in before.
func (v *verdict) unsure() bool {
	if v.saysShared() && v.before.keys[v.lock].kind == "string" {
		return true
	}
	return v.expiring(v.lock) || v.expiring(v.queue) || v.expiring(v.hash) || v.expiring(v.signal)
}

// lasts tells whether what was set for some ms cannot be over yet.
func (v *verdict) lasts(ms int64) bool {
	return ms == 0 || v.before.micros/1000+ms > v.after.micros/1000+slack
}

func (v *verdict) during(ms int64) bool {
	return ms >= v.before.micros/1000-slack && ms <= v.after.micros/1000+slack
}

// ends tells whether a key expires this many ms after the call, or never if 0.
func (v *verdict) ends(key string, ms int64) bool {
	at := v.after.keys[key].expires
	return ms == 0 && at == -1 || ms > 0 && v.during(at-ms)
}

func (v *verdict) acquired() (class string, err error) {
	r, err := integers(v.reply, 4)
	if err != nil {
		return "", err
	}
	lease, wait := digits(v.lease), digits(v.wait)
	holder, held := v.before.text(v.lock)
	place := slices.Index(v.after.members(v.queue), v.token)
	if !v.during(r[3]) {
		return "", fmt.Errorf("now_ms is not the time of the call")
	}
	if v.together() {
		return v.acquiredTogether(r, place)
	}
	if held && (holder == v.token) != (r[0] == 1) {
		return "", fmt.Errorf("the lock was %q's", holder)
	}
	switch {
	case r[0] == 1:
		class = "held"
		left := lease
		if lease == 0 {
			left = -1
		}
		known := v.fenceOf(v.before)
		switch {
		case r[2] != left:
			err = fmt.Errorf("lease_left_ms is not that of the lease")
		case r[1] < 1 || r[1] > most:
			err = fmt.Errorf("no fence")
		case !held && r[1] < v.before.micros-slack*1000:
			err = fmt.Errorf("the fence is less than the time")
		case !held && r[1] <= known:
			err = fmt.Errorf("the fence was given out before")
		case held && known > 0 && r[1] != known:
			err = fmt.Errorf("the holder's fence has changed")
		case !v.lasts(lease):
		case !v.holds(v.token):
			err = fmt.Errorf("the lock is not the caller's")
		case !v.ends(v.lock, lease):
			err = fmt.Errorf("the lock expires at another time")
		case v.newFence() != r[1]:
			err = fmt.Errorf("the state has another fence")
		case !v.outlived():
			err = fmt.Errorf("the state ends before the lock")
		case !held && place >= 0:
			err = fmt.Errorf("the caller is still queued")
		}
	case r[0] != 0:
		err = fmt.Errorf("neither 1 nor 0")
	case r[1] == 0:
		class = "busy"
		if wait != 0 || r[2] < -1 || place >= 0 {
			err = fmt.Errorf("busy, but WAIT_MS is %d, and the place %d", wait, place+1)
		}
	default:
		class = "queued"
		waiting := int64(len(v.after.members(v.queue)))
		switch {
		case wait == 0:
			err = fmt.Errorf("queued, but WAIT_MS is 0")
		case r[2] < 1 || r[2] > max(1, wait/3):
			err = fmt.Errorf("check_in_ms is not within WAIT_MS/3")
		case !v.lasts(wait):
		case place < 0 || r[1] < int64(place)+1 || r[1] > waiting:
			err = fmt.Errorf("the place is %d of %d", place+1, waiting)
		case v.after.hash(v.hash)["@"+v.token] != v.entry(r[3]):
			err = fmt.Errorf("the entry is not what the caller asked for")
		case digits(v.after.hash(v.hash)["last"]) < 0 && !slices.Contains(v.before.members(v.queue), v.token):
			err = fmt.Errorf("`last` is no number")
		case v.after.keys[v.queue].expires >= 0 && v.after.keys[v.queue].expires < r[3]+wait:
			err = fmt.Errorf("the queue ends before the wait")
		}
	}
	return class, err
}

// entry is what the state has to say of the caller.
func (v *verdict) entry(now int64) string {
	lease := strconv.FormatInt(digits(v.lease), 10)
	if n := digits(v.holders); n != 1 {
		lease += "/" + strconv.FormatInt(n, 10)
	}
	return fmt.Sprintf("%d %d %s %s", now, digits(v.wait), lease, v.signal)
}

// acquiredTogether is for a lock that several hold.
func (v *verdict) acquiredTogether(r []int64, place int) (class string, err error) {
	lease, wait, holders := digits(v.lease), digits(v.wait), digits(v.holders)
	sure, perhaps := v.sharing(v.before)
	_, mine := sure[v.token]
	_, maybe := perhaps[v.token]
	now, _ := v.sharing(v.after)
	end, shares := now[v.token]
	switch {
	case mine && r[0] != 1:
		return "", fmt.Errorf("the caller has lost its share")
	case r[0] == 1 && v.lasts(lease) && !shares && !v.holds(v.token):
		return "", fmt.Errorf("the caller does not hold the lock")
	case r[0] == 1 && shares && lease > 0 && !v.during(int64(end)-lease),
		r[0] == 1 && shares && lease == 0 && end != most:
		return "", fmt.Errorf("the caller's share ends at %f", end)
	case r[0] == 1 && !maybe && holders == 1 && len(sure) > 0,
		r[0] == 1 && !maybe && holders > 1 && int64(len(sure)) >= holders:
		return "", fmt.Errorf("%d had the lock, the caller allows %d", len(sure), holders)
	case r[0] == 1 && (r[1] < 1 || r[1] > most):
		return "", fmt.Errorf("no fence")
	case r[0] == 1 && len(sure) > 0 && v.saysShared() && v.fenceOf(v.before) > 0 && r[1] != v.fenceOf(v.before):
		return "", fmt.Errorf("the fence is not that of the others")
	case r[0] == 1 && v.lasts(lease) && !v.outlived():
		return "", fmt.Errorf("the state ends before the lock")
	case r[0] == 1:
		return "held", nil
	case r[1] == 0 && (wait != 0 || place >= 0):
		return "", fmt.Errorf("busy, but WAIT_MS is %d, and the place %d", wait, place+1)
	case r[1] == 0:
		return "busy", nil
	case v.lasts(wait) && v.after.hash(v.hash)["@"+v.token] != v.entry(r[3]):
		return "", fmt.Errorf("the entry is not what the caller asked for")
	case r[2] < 1 || r[2] > max(1, wait/3):
		return "", fmt.Errorf("check_in_ms is not within WAIT_MS/3")
	}
	return "queued", nil
}

// outlived tells whether the state outlives the lock, or is missing.
func (v *verdict) outlived() bool {
	lock, state := v.after.keys[v.lock].expires, v.after.keys[v.hash]
	return state.kind == "" || state.expires < 0 || lock >= 0 && lock < state.expires
}

// fenceOf is the fence that a state knows; 0 if that is not a fence, or the last one possible.
func (v *verdict) fenceOf(s state) int64 {
	fence := digits(strings.TrimSuffix(s.hash(v.hash)["fence"], " shared"))
	if fence < 0 || fence >= most {
		return 0
	}
	return fence
}

// newFence is the fence after the call; it may be the last one possible.
func (v *verdict) newFence() int64 {
	return digits(strings.TrimSuffix(v.after.hash(v.hash)["fence"], " shared"))
}

func (v *verdict) holds(token string) bool {
	holder, held := v.after.text(v.lock)
	return held && holder == token
}

// numbered judges the functions that return a number.
func (v *verdict) numbered() (class string, err error) {
	n, ok := v.reply.(int64)
	holder, held := v.before.text(v.lock)
	mine := held && holder == v.token
	waits := slices.Contains(v.before.members(v.queue), v.token)
	if v.together() {
		return v.numberedTogether(n, ok, waits)
	}
	class = strconv.FormatInt(n, 10)
	switch {
	case !ok || n < 0 || n > 2 || n == 2 && v.name != "lock_release":
		return "", fmt.Errorf("not a number of the contract")
	case v.name == "lock_reset" && (n == 1) != held,
		v.name != "lock_reset" && (n == 1) != mine,
		n == 2 && !waits:
		return class, fmt.Errorf("the lock was held: %v, by the caller: %v; it waited: %v", held, mine, waits)
	case v.name == "lock_extend" && n == 1:
		if lease := digits(v.lease); v.lasts(lease) && (!v.holds(v.token) || !v.ends(v.lock, lease) || !v.outlived()) {
			return class, fmt.Errorf("the lease is not renewed, or longer than the state")
		}
	case v.name == "lock_extend":
		if now, still := v.after.text(v.lock); now != holder || still != held || v.after.keys[v.lock].expires != v.before.keys[v.lock].expires {
			return class, fmt.Errorf("the lock has changed")
		}
	case v.holds(v.token) && v.name == "lock_release":
		return class, fmt.Errorf("the caller holds the lock")
	case n != 1 && slices.Contains(v.after.members(v.queue), v.token) && v.name == "lock_release":
		return class, fmt.Errorf("the caller is still queued")
	}
	return class, nil
}

// numberedTogether is for a lock that several hold.
func (v *verdict) numberedTogether(n int64, ok, waits bool) (class string, err error) {
	sure, perhaps := v.sharing(v.before)
	now, _ := v.sharing(v.after)
	_, mine := sure[v.token]
	_, maybe := perhaps[v.token]
	_, shares := now[v.token]
	class = strconv.FormatInt(n, 10)
	switch {
	case !ok || n < 0 || n > 2 || n == 2 && (v.name != "lock_release" || !waits):
		return "", fmt.Errorf("not a number of the contract")
	case v.before.keys[v.lock].kind != "zset":
	case v.name == "lock_reset" && (len(sure) > 0 && n != 1 || len(perhaps) == 0 && n != 0),
		v.name != "lock_reset" && (mine && n != 1 || !maybe && n == 1):
		return class, fmt.Errorf("the lock was held by %v", perhaps)
	case v.name == "lock_release" && n == 1 && shares:
		return class, fmt.Errorf("the caller holds the lock")
	case v.name == "lock_extend" && n == 1 && v.lasts(digits(v.lease)) && !shares:
		return class, fmt.Errorf("the share is not renewed")
	}
	if v.name == "lock_reset" {
		return class, nil
	}
	for token, end := range sure { // a share is its holder's alone
		if is, still := now[token]; token != v.token && (!still || is != end) {
			return class, fmt.Errorf("the share of %q ends at %f, and not at %f", token, is, end)
		}
	}
	return class, nil
}

// wrote judges what any call may have done to the keys: a lock that was handed over, and what stays behind.
func (v *verdict) wrote() error {
	gone := map[string]bool{}
	for _, token := range v.before.members(v.queue) {
		// Else the queue's time may be up; and of a token that no function wrote, the entry stays as long as the state.
		gone[token] = (v.name != "lock_acquire" || v.lasts(digits(v.wait))) && len(token) <= tokenMost
	}
	for _, token := range v.after.members(v.queue) {
		gone[token] = false
	}
	for field := range v.after.hash(v.hash) {
		if token, ok := strings.CutPrefix(field, "@"); ok && gone[token] {
			return fmt.Errorf("%q has left and its entry stays", token)
		}
	}
	for key, k := range v.after.keys {
		_, old := v.before.keys[key]
		endless := key == v.lock || key == v.hash && v.after.keys[v.lock].kind != "" && v.after.keys[v.lock].expires < 0
		if !old && k.expires < 0 && !endless {
			return fmt.Errorf("%q is new and never expires", key)
		}
	}
	for key, k := range v.before.keys {
		if key == v.lock || key == v.queue || key == v.hash || v.expiring(key) {
			continue
		}
		if now := v.after.keys[key]; !v.isSignalList(key) && (now.expires != k.expires || !slices.Equal(now.items, k.items)) {
			return fmt.Errorf("%q is no signal list of this lock, and was changed", key)
		}
	}
	if v.after.keys[v.lock].kind == "zset" {
		return v.letIn()
	}
	was, held := v.before.text(v.lock)
	is, holds := v.after.text(v.lock)
	if !holds || held && is == was || v.name == "lock_acquire" && is == v.token {
		return nil
	}
	entry := v.before.hash(v.hash)["@"+is]
	parts := strings.SplitN(entry, " ", 4)
	fence, known := v.newFence(), v.fenceOf(v.before)
	deadline := v.after.keys[v.lock].expires
	switch {
	case !slices.Contains(v.before.members(v.queue), is):
		return fmt.Errorf("handed to %q, which did not wait", is)
	case slices.Contains(v.after.members(v.queue), is):
		return fmt.Errorf("handed to %q, which still waits", is)
	case len(parts) < 4 || !v.isSignalList(parts[3]):
		return fmt.Errorf("handed to %q, which cannot be told", is)
	case deadline < 0 || deadline > v.after.micros/1000+claim+slack:
		return fmt.Errorf("handed over for longer than %d ms", claim)
	case fence <= known || fence < v.before.micros-slack*1000 && known == 0:
		return fmt.Errorf("handed over with the fence %d after %d", fence, known)
	}
	if slices.Contains([]string{v.lock, v.queue, v.hash}, parts[3]) {
		return nil
	}
	signals := v.after.keys[parts[3]].items
	if len(signals) == 0 {
		return fmt.Errorf("handed to %q without a signal", is)
	}
	told := strings.SplitN(signals[len(signals)-1], " ", 3)
	late := deadline - digits(told[min(1, len(told)-1)]) // SET reads the clock once more
	if len(told) < 3 || digits(told[0]) != fence || told[2] != is || late < -slack || late > v.after.micros/1000-v.before.micros/1000+slack {
		return fmt.Errorf("handed to %q with the signal %q", is, told)
	}
	return nil
}

// letIn judges those who were given a share: in line, told, and for a short time.
func (v *verdict) letIn() error {
	_, had := v.sharing(v.before)
	now, _ := v.sharing(v.after)
	for token, end := range now {
		if _, old := had[token]; old && v.name != "lock_reset" || v.name == "lock_acquire" && token == v.token {
			continue
		}
		parts := strings.SplitN(v.before.hash(v.hash)["@"+token], " ", 4)
		switch {
		case !slices.Contains(v.before.members(v.queue), token) || slices.Contains(v.after.members(v.queue), token):
			return fmt.Errorf("a share for %q, which did not wait, or still does", token)
		case len(parts) < 4 || !v.isSignalList(parts[3]):
			return fmt.Errorf("a share for %q, which cannot be told", token)
		case int64(end) > v.after.micros/1000+claim+slack:
			return fmt.Errorf("a share is handed over for longer than %d ms", claim)
		case !slices.Contains(v.after.keys[parts[3]].items, fmt.Sprintf("%d %d %s", v.newFence(), int64(end)-1, token)):
			return fmt.Errorf("a share for %q without a signal", token)
		}
	}
	return nil
}

// isSignalList goes by the name of a list and by its oldest element.
func (v *verdict) isSignalList(list string) bool {
	prefix, _, named := strings.Cut(list, "-signal:")
	tag := regexp.MustCompile(`^[^{]*({[^}]+})`).FindStringSubmatch(v.lock)
	byPrefix := named && strings.HasPrefix(v.lock, prefix+":")
	if !byPrefix && (tag == nil || !strings.Contains(list, tag[1])) {
		return false
	}
	items := v.before.keys[list].items
	return len(items) == 0 || v.expiring(list) || regexp.MustCompile(`(?s)^[0-9]+ [0-9]+ .`).MatchString(items[0])
}

func (v *verdict) inspected() error {
	reply, _ := v.reply.([]any)
	fields := map[string]any{}
	for i := 0; i+1 < len(reply); i += 2 {
		name, _ := reply[i].(string)
		fields[name] = reply[i+1]
	}
	holder, isText := fields["holder"].(string)
	waiters, isList := fields["waiters"].([]any)
	numbers, err := integers([]any{fields["fence"], fields["ttl_ms"], fields["waiting"], fields["now_ms"]}, 4)
	if len(reply)%2 != 0 || !isText || !isList || err != nil {
		return fmt.Errorf("not the fields of the contract")
	}
	fence, ttl, waiting, now := numbers[0], numbers[1], numbers[2], numbers[3]
	is, held := v.before.text(v.lock)
	members := v.before.members(v.queue)
	count, isNumber := fields["held"].(int64)
	holders, isHolders := fields["holders"].([]any)
	sure, perhaps := v.sharing(v.before)
	if !isNumber || !isHolders || count < int64(len(sure)) || count < int64(len(holders)) || len(holders) > listMost {
		return fmt.Errorf("held by %d, among them %v", count, holders)
	}
	if len(perhaps) > 0 {
		is, held = holder, len(sure) > 0 || holder != ""
		if _, one := perhaps[holder]; !one && held {
			return fmt.Errorf("%q is none of those who hold the lock", holder)
		}
	}
	switch {
	case holder != is || (ttl == -2) == held || ttl < -2:
		return fmt.Errorf("the lock is %q's", is)
	case fence != v.fenceOf(v.before) && fence != most:
		return fmt.Errorf("the fence is not that of the state")
	case !v.during(now):
		return fmt.Errorf("now_ms is not the time of the call")
	case waiting < int64(len(waiters)) || waiting > int64(len(members)) || len(waiters) > listMost:
		return fmt.Errorf("%d waiters and %d waiting, of %d", len(waiters), waiting, len(members))
	}
	for _, one := range waiters {
		details, _ := one.([]any)
		if len(details) != 6 {
			return fmt.Errorf("a waiter that is not 6 values: %v", one)
		}
		if n, isNumber := details[5].(int64); !isNumber || n < 0 || n > numberMost["HOLDERS"] {
			return fmt.Errorf("a waiter with a number out of its bounds: %v", one)
		}
		numbers, err := integers(details[1:4], 3)
		token, isToken := details[0].(string)
		signal, isSignal := details[4].(string)
		i := slices.Index(members, token)
		switch {
		case err != nil || !isToken || !isSignal || i < 0:
			return fmt.Errorf("not a waiter, or not in this order: %v", one)
		case slices.Min(numbers) < 0 || numbers[1] > numberMost["WAIT_MS"] || numbers[2] > numberMost["LEASE_MS"]:
			return fmt.Errorf("a waiter with a number out of its bounds: %v", one)
		case strings.IndexByte(v.before.hash(v.hash)["@"+token], ' ') > 13 && numbers[1] > claim:
			return fmt.Errorf("a place that lasts by a time that is none: %v", one)
		case signal != "" && !strings.HasSuffix(v.before.hash(v.hash)["@"+token], " "+signal):
			return fmt.Errorf("another signal: %v", one)
		}
		members = members[i+1:]
	}
	return nil
}

func integers(reply any, n int) ([]int64, error) {
	elements, _ := reply.([]any)
	all := make([]int64, len(elements))
	for i, element := range elements {
		var ok bool
		if all[i], ok = element.(int64); !ok {
			return nil, fmt.Errorf("%v is no integer", element)
		}
	}
	if len(all) != n {
		return nil, fmt.Errorf("%d elements, not %d", len(all), n)
	}
	return all, nil
}
