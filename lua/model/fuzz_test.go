package model_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-ee05a192/redislock"
)

// The bytes of an input are a program of steps: those that leave garbage in the keys, and calls, each of which is
// judged. A step is one byte, its number in the steps below, and its operands. An operand that is a choice is one
// byte, of which as many low bits count as the table needs; from 128 on, a word is a literal of the length in the
// low 6 bits. What is missing at the end is zero. The committed corpus goes by these numbers: add at free places
// only.

const (
	mostSteps = 24
	mostCalls = 8
)

// keyTable: the lock's keys, two lists that are signal lists by the rule, and others.
var keyTable = [8]string{"L:{k}", "Q", "S", "L-signal:X", "Y {k}", "", "Z", "X\r\n\x00\xff{k}"}

// numberTable: now and micros stand for the time.
var numberTable = [64]string{
	"", "0", "1", "-1", "2", "3", "10", "1000",
	"2000", "30000", "600000", "9999999999999", "10000000000000", "99999999999999999999", "9007199254740991", "9007199254740992",
	"9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "1e3", "1e15", "1e999", "-1e999",
	"1e-5", "inf", "-inf", "+inf", "nan", "-nan", "0x10", "0x1p70",
	" 1", "1 ", "+1", "1.5", "-1.5", "00001", "1\n", "1\x00",
	"\x00", "abc", "1,5", "\u0661", "1e308", "-1e308", "", "null",
	"true", "%d", "1_000", "now", "now-60000", "now+60000", "now-86400000000", "now+31536000000",
	"micros", "micros-60000000", "micros+60000000", "micros+1000000000", "999999999", "1000000000", "1000000001", "5000",
}

var tokenTable = [16]string{
	"a", "b", "c", "h", "", "fence", "last", "since",
	"@a", "a b", "\x00", "\r\n", "\xff\xfe", "%d*[^", "1 2 3 X", "",
}

// What the tables have no room for.
func init() {
	numberTable[46] = strings.Repeat("9", 400)
	tokenTable[15] = strings.Repeat("0123456789", 500)
}

// The steps.
const (
	setKey   = iota // key word
	pushKey         // key n (word...)
	addKey          // key n (word...): a set
	zaddKey         // key n (number word)...
	hsetKey         // key n (word number)...
	xaddKey         // key word number
	waiter          // how token score called wait lease key: a member of the queue and its entry
	signals         // key n (number number word)...: elements FENCE DEADLINE TOKEN
	expire          // key number
	del             // key
	call            // function, then an argument each: word or number
	raw             // function numkeys n (word)...
	sane            // token, lease and wait and holders: lock_acquire as a client calls it
	crowd           // how n: the number of members of the queue
	flush           //
	setField        // field number: of the state; from 128 on, of a lock that is held together
)

// The bits of how.
const (
	noMember = 1 << iota
	noEntry
	oddEntry // one space more
	lapsedEntry
	sharedSignal
)

type reader struct{ bytes []byte }

func (r *reader) byte() (b byte) {
	if len(r.bytes) > 0 {
		b, r.bytes = r.bytes[0], r.bytes[1:]
	}
	return b
}

func (r *reader) word(table []string) string {
	b := r.byte()
	if b < 128 {
		return table[int(b)%len(table)]
	}
	n := min(int(b&63), len(r.bytes))
	literal := string(r.bytes[:n])
	r.bytes = r.bytes[n:]
	return literal
}

func (r *reader) key() string   { return r.word(keyTable[:]) }
func (r *reader) token() string { return r.word(tokenTable[:]) }

func (r *reader) number() string {
	isLiteral := len(r.bytes) > 0 && r.bytes[0] >= 128
	word := r.word(numberTable[:])
	if isLiteral {
		return word
	}
	for prefix, now := range map[string]int64{"now": time.Now().UnixMilli(), "micros": time.Now().UnixMicro()} {
		if offset, ok := strings.CutPrefix(word, prefix); ok {
			n, _ := strconv.ParseInt(offset, 10, 64)
			return strconv.FormatInt(now+n, 10)
		}
	}
	return word
}

// words is a command of one to four groups of operands.
func (r *reader) words(command []string, operands ...func() string) []string {
	for range r.byte()&3 + 1 {
		for _, operand := range operands {
			command = append(command, operand())
		}
	}
	return command
}

// step returns the commands of one step; isCall if it is a call to be judged.
func (r *reader) step() (commands [][]string, isCall bool) {
	one := func(words ...string) [][]string { return [][]string{words} }
	switch r.byte() & 15 {
	case setKey:
		return one("SET", r.key(), r.token()), false
	case pushKey:
		return one(r.words([]string{"RPUSH", r.key()}, r.token)...), false
	case addKey:
		return one(r.words([]string{"SADD", r.key()}, r.token)...), false
	case zaddKey:
		return one(r.words([]string{"ZADD", r.key()}, r.number, r.token)...), false
	case hsetKey:
		return one(r.words([]string{"HSET", r.key()}, r.token, r.number)...), false
	case xaddKey:
		return one("XADD", r.key(), "*", r.token(), r.number()), false
	case waiter:
		how, token := r.byte(), r.token()
		score, called, wait, lease, signal := r.number(), r.number(), r.number(), r.number(), r.key()
		if how&noMember == 0 {
			commands = append(commands, []string{"ZADD", "Q", score, token})
		}
		if how&oddEntry != 0 {
			wait = " " + wait
		}
		if how&noEntry == 0 {
			commands = append(commands, []string{"HSET", "S", "@" + token, strings.Join([]string{called, wait, lease, signal}, " ")})
		}
		return commands, false
	case signals:
		element := func() string { return r.number() + " " + r.number() + " " + r.token() }
		return one(r.words([]string{"RPUSH", r.key()}, element)...), false
	case expire:
		return one("PEXPIRE", r.key(), r.number()), false
	case del:
		return one("DEL", r.key()), false
	case call:
		f := r.byte()
		s := signatures[f%6]
		var args []string
		for _, name := range s.args {
			if name == "HOLDERS" && f < 192 {
				continue
			}
			if name == "TOKEN" {
				args = append(args, r.token())
			} else {
				args = append(args, r.number())
			}
		}
		return one(asking(s.name, args...)...), true
	case raw:
		words := []string{"FCALL", "", r.number()}
		f := r.byte()
		switch i := int(f & 7); {
		case i < len(signatures):
			words[1] = signatures[i].name
		case i == 6:
			words[1] = "LOCK_Acquire"
		default:
			words[1] = r.token()
		}
		if f&64 != 0 {
			words[0] = "FCALL_RO"
		}
		for range f >> 3 & 7 {
			words = append(words, r.key())
		}
		for range r.byte() & 3 {
			words = append(words, r.number())
		}
		return one(words...), true
	case sane:
		times := []string{"0", "1000", "30000", "86400000"}
		token, b := r.token(), r.byte()
		args := []string{token, times[b&3], times[b>>2&3], []string{"", "0", "2", "1000"}[b>>4&3]}
		if args[3] == "" {
			args = args[:3]
		}
		return one(asking("lock_acquire", args...)...), true
	case crowd:
		how, now := r.byte(), time.Now()
		members, entries := []string{"ZADD", "Q"}, []string{"HSET", "S"}
		called, signal := now.UnixMilli(), keyTable[4]
		if how&lapsedEntry != 0 {
			called -= 3_600_000
		}
		for i := range int(r.byte()) + 1 {
			token := fmt.Sprintf("crowd%03d", i)
			if how&sharedSignal == 0 {
				signal = "L-signal:" + token
			}
			members = append(members, strconv.FormatInt(now.UnixMicro()-1_000_000+int64(i), 10), token)
			entries = append(entries, "@"+token, fmt.Sprintf("%d 30000 5000 %s", called, signal))
		}
		if how&noMember == 0 {
			commands = append(commands, members)
		}
		if how&noEntry == 0 {
			commands = append(commands, entries)
		}
		return commands, false
	case flush:
		return one("FLUSHALL"), false
	default: // setField
		f := r.byte()
		words := []string{"HSET", "S", [4]string{"fence", "last", "since", "@a"}[f&3], r.number()}
		if f >= 128 {
			words[3] += " shared"
		}
		return one(words...), false
	}
}

// asking is a call on the lock of keyTable.
func asking(function string, args ...string) []string {
	i := slices.IndexFunc(signatures, func(s signature) bool { return s.name == function })
	keys := keyTable[:len(signatures[i].keys)]
	return slices.Concat([]string{"FCALL", function, strconv.Itoa(len(keys))}, keys, args)
}

// run runs a program; what it did, as lines for redis-cli, is in the error.
func (p *prey) run(program []byte) error {
	var done [][]string
	err := p.perform(&reader{program}, &done)
	if err == nil {
		return nil
	}
	var lines strings.Builder
	for _, words := range done {
		for i, word := range words {
			if i < 2 && word != "" && strings.Trim(strings.ToUpper(word), "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") == "" {
				fmt.Fprint(&lines, word, " ")
			} else {
				fmt.Fprint(&lines, quoted(word), " ")
			}
		}
		fmt.Fprintln(&lines)
	}
	return fmt.Errorf("%w\nthe calls, for redis-cli:\n%s", err, &lines)
}

// quoted is a word as redis-cli takes it.
func quoted(word string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(word) {
		switch {
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, `\x%02x`, c)
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			fallthrough
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func (p *prey) perform(r *reader, done *[][]string) error {
	if err := p.clean(); err != nil {
		return err
	}
	var pending [][]string
	calls := 0
	for range mostSteps {
		if len(r.bytes) == 0 || calls == mostCalls {
			break
		}
		commands, isCall := r.step()
		*done = append(*done, commands...)
		if !isCall {
			pending = append(pending, commands...)
			continue
		}
		calls++
		if _, err := p.judged(pending, commands[0]); err != nil {
			return err
		}
		pending = nil
	}
	return p.heals(pending, done)
}

// judged sends commands and then a call, which it judges.
func (p *prey) judged(before [][]string, words []string) (reply any, err error) {
	replies, err := p.ask(append(slices.Clone(before), snap, words, snap)...)
	if err != nil {
		return nil, err
	}
	replies = replies[len(before):]
	return replies[1], judge(words, replies[1], parseState(replies[0]), parseState(replies[2]))
}

// heals says whether the lock can be used, whatever is in the keys: a waiter's check-in keeps its place, a reset
// works, and without the keys it is as new.
func (p *prey) heals(before [][]string, done *[][]string) error {
	acquire := asking("lock_acquire", "new", "20000", "30000")
	follow := func(words ...string) (any, error) {
		*done = append(*done, words)
		reply, err := p.judged(before, words)
		before = nil
		return reply, err
	}
	first, err := follow(acquire...)
	if err != nil {
		return err
	}
	again, err := follow(acquire...)
	if err != nil {
		return err
	}
	if a, err := integers(first, 4); err == nil {
		b, err := integers(again, 4)
		if err != nil || a[0] > b[0] || a[0] == 0 && b[0] == 0 && b[1] > a[1] {
			return fmt.Errorf("a check-in lost its place: %v, then %v", first, again)
		}
	}
	if _, err := follow(asking("lock_reset")...); err != nil {
		return err
	}
	// Whatever the state holds, a lock that nobody holds or wants is free.
	for _, lost := range [][]string{{"DEL", keyTable[0], "Q", keyTable[3]}, {"DEL", keyTable[0], "Q", "S", keyTable[3]}} {
		*done = append(*done, lost)
		before = [][]string{lost}
		first, err = follow(acquire...)
		if err != nil {
			return err
		}
		if a, err := integers(first, 4); err == nil && a[0] != 1 || err != nil && len(lost) == 5 {
			return fmt.Errorf("a free lock is not to be had: %v", first)
		}
	}
	if gone, err := follow(asking("lock_release", "new")...); err != nil || gone != int64(1) {
		return fmt.Errorf("the lock is not to be released: %v, %w", gone, err)
	}
	return nil
}

// library is the text that is fuzzed: lock.lua, or the file at LOCK_LUA.
func library(t testing.TB) string {
	file := os.Getenv("LOCK_LUA")
	if file == "" {
		return redislock.Source()
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// FuzzGarbage calls the functions on keys that hold anything.
func FuzzGarbage(f *testing.F) {
	p := newPrey(f, library(f))
	for _, program := range seeds() {
		f.Add(program)
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		if err := p.run(program); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzCall makes calls of any words: the function, numkeys and up to nine more, on a lock that "h" holds and "a" waits for.
func FuzzCall(f *testing.F) {
	p := newPrey(f, library(f))
	for _, words := range callSeeds() {
		name, numkeys := words[0], words[1]
		n := len(words) - 2
		words = append(slices.Clone(words[2:]), make([]string, 9)...)
		f.Add(false, name, numkeys, uint8(n), words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7], words[8])
		f.Add(true, name, numkeys, uint8(n), words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7], words[8])
	}
	f.Fuzz(func(t *testing.T, ro bool, name, numkeys string, n uint8, a, b, c, d, e, f, g, h, i string) {
		words := []string{"FCALL", name, numkeys}
		if ro {
			words[0] = "FCALL_RO"
		}
		words = append(words, []string{a, b, c, d, e, f, g, h, i}[:n%10]...)
		if err := p.runCall(words); err != nil {
			t.Fatal(err)
		}
	})
}

func (p *prey) runCall(words []string) error {
	if err := p.clean(); err != nil {
		return err
	}
	contended := [][]string{
		asking("lock_acquire", "h", "0", "0"),
		asking("lock_acquire", "a", "30000", "30000"),
	}
	_, err := p.judged(contended, words)
	if err != nil {
		return fmt.Errorf("%w\nthe call: %q", err, words)
	}
	return nil
}
