package model_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Programs are put together from these: a word that is in the table is its number, any other a literal.

func in(table []string, word string) []byte {
	if i := slices.Index(table, word); i >= 0 {
		return []byte{byte(i)}
	}
	return append([]byte{128 | byte(len(word))}, word...)
}

func key(word string) []byte { return in(keyTable[:], word) }
func tok(word string) []byte { return in(tokenTable[:], word) }
func num(word string) []byte { return in(numberTable[:], word) }

func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

// waits is a waiter "a": fields are score, called, wait and lease.
func waits(how byte, token string, fields [4]string, signal string) []byte {
	return join([]byte{waiter, how}, tok(token), num(fields[0]), num(fields[1]), num(fields[2]), num(fields[3]), key(signal))
}

func live(token string) []byte {
	return waits(0, token, [4]string{"micros-60000000", "now", "600000", "5000"}, keyTable[4])
}

func field(name, number string) []byte {
	return join([]byte{setField, byte(slices.Index([]string{"fence", "last", "since", "@a"}, name))}, num(number))
}

func unread(list, deadline string) []byte {
	return join([]byte{signals}, key(list), []byte{0}, num("1"), num(deadline), tok("a"))
}

func holds(token string) []byte { return join([]byte{setKey}, key(keyTable[0]), tok(token)) }

// calls is what is asked of each garbage: by a newcomer, the holder, the waiter; all of it, each from the same start.
var calls = [][]byte{
	join([]byte{call, 0}, tok("b"), num("5000"), num("30000")),
	join([]byte{call, 0}, tok("a"), num("5000"), num("30000")),
	join([]byte{call, 1}, tok("h")),
	{call, 4},
	join([]byte{call, 0}, tok("b"), num("0"), num("0")),
	join([]byte{call, 0}, tok("h"), num("5000"), num("30000")),
	join([]byte{call, 1}, tok("a")),
	join([]byte{call, 2}, tok("h"), num("5000")),
	join([]byte{call, 2}, tok("h"), num("0")),
	{call, 3},
	join([]byte{sane}, tok("b"), []byte{2 | 2<<2 | 1<<4}),
	join([]byte{sane}, tok("a"), []byte{2 | 2<<2 | 2<<4}),
}

// each is a program for every call, from the same start; held: also where "h" holds the lock.
func each(start []byte) [][]byte {
	var free, held []byte
	var all [][]byte
	for i, c := range calls {
		free = join(free, []byte{flush}, start, c)
		held = join(held, []byte{flush}, start, holds("h"), c)
		if i%4 == 3 || i == len(calls)-1 {
			all = append(all, free, held)
			free, held = nil, nil
		}
	}
	return all
}

// garbage is a start for every number at every place where lock.lua reads one.
func garbage(number string) [][]byte {
	now, wait, lease, score := "now", "600000", "5000", "micros-60000000"
	return [][]byte{
		field("fence", number),
		join(live("a"), field("fence", number)),
		join(live("a"), field("last", number)),
		join(waits(noEntry, "a", [4]string{score}, ""), field("since", number)),
		join(waits(noEntry, "a", [4]string{score}, ""), waits(noEntry, "c", [4]string{score}, ""), field("last", number)),
		join(live("a"), field("@a", number)),
		waits(0, "a", [4]string{number, now, wait, lease}, keyTable[4]),
		waits(noEntry, "a", [4]string{number}, ""),
		waits(0, "a", [4]string{score, number, wait, lease}, keyTable[4]),
		waits(0, "a", [4]string{score, now, number, lease}, keyTable[4]),
		waits(0, "a", [4]string{score, now, wait, number}, keyTable[4]),
		join(live("a"), live("c"), unread(keyTable[4], number)),
		join(waits(0, "a", [4]string{score, "now-60000", wait, lease}, keyTable[4]), live("c"), unread(keyTable[4], number)),
	}
}

// TestGarbage runs every number at every place. It is what FuzzGarbage begins with, and more.
func TestGarbage(t *testing.T) {
	p := newPrey(t, library(t))
	for _, program := range everyNumber() {
		if err := p.run(program); err != nil {
			t.Error(err)
		}
	}
}

func everyNumber() (all [][]byte) {
	for i := range numberTable {
		for _, start := range garbage(numberTable[i]) {
			all = append(all, each(start)...)
		}
	}
	return all
}

func seeds() (all [][]byte) {
	for _, number := range []string{"1e999", "nan", "-1", "99999999999999999999", "1.5", "abc", "-inf", "now-60000"} {
		for _, start := range garbage(number) {
			all = append(all, each(start)[0])
		}
	}
	return append(all, oddities()...)
}

// oddities are starts of other kinds.
func oddities() (all [][]byte) {
	starts := [][]byte{
		join([]byte{crowd, 0, 5}),
		join(live(tokenTable[15]), live("a")),
		join(waits(0, "a", [4]string{"1", "now-60000", "600000", "5000"}, "Z"), live("b")),
		join([]byte{crowd, lapsedEntry, 150}),
		join([]byte{crowd, lapsedEntry, 99}),
		join([]byte{crowd, noEntry, 20}),
		join([]byte{crowd, noMember, 20}),
		join([]byte{crowd, noMember, 20}, live("a")),
		join([]byte{crowd, sharedSignal, 40}, unread(keyTable[4], "now-60000")),
		join([]byte{crowd, sharedSignal | lapsedEntry, 40}, unread(keyTable[4], "now+60000"), live("a")),
		waits(oddEntry, "a", [4]string{"1", "now", "30000", "0"}, keyTable[4]),
		waits(noMember, "a", [4]string{"1", "now", "30000", "0"}, keyTable[4]),
		waits(noMember, "b", [4]string{"1", "now-60000", "30000", "0"}, keyTable[4]),
		waits(0, "", [4]string{"1", "now", "30000", "0"}, keyTable[4]),
		waits(0, "h", [4]string{"1", "now", "30000", "0"}, keyTable[4]),
		join(waits(0, "a", [4]string{"1", "now-60000", "30000", "0"}, keyTable[4]), live("b"), live("c")),
		join(live("a"), []byte{expire}, key(keyTable[0]), num("9999999999999")),
	}
	for _, end := range []string{"now+60000", "now-60000", "9007199254740992", "+inf", "-1", "nan", "1e999"} {
		together := join([]byte{zaddKey}, key(keyTable[0]), []byte{1}, num(end), tok("h"), num("now+60000"), tok("c"))
		starts = append(starts,
			together,
			join(together, live("a")),
			join(together, []byte{setField, 128}, num("micros-60000000"), live("a")),
			join(together, []byte{setField, 128}, num("micros-60000000"), waits(0, "a", [4]string{"1", "now", "30000", "5000/2"}, keyTable[4]), live("b")),
			join(together, waits(0, "a", [4]string{"1", "now", "30000", "0/0"}, keyTable[3]), waits(0, "b", [4]string{"2", "now-60000", "600000", "0/99999999999999"}, keyTable[4])),
			join([]byte{setField, 128}, num(end), live("a")),
		)
	}
	for _, to := range keyTable {
		starts = append(starts, waits(0, "a", [4]string{"1", "now", "30000", "5000"}, to))
		for kind := range byte(xaddKey + 1) {
			starts = append(starts,
				join([]byte{kind}, key(to), []byte{0, 1, 1}, live("a")),
				join(live("a"), []byte{kind}, key(to), []byte{0, 1, 1}),
			)
		}
	}
	for _, start := range starts {
		all = append(all, each(start)...)
	}
	asks := func(token string) []byte { return join([]byte{sane}, tok(token), []byte{2 | 2<<2}) }
	releases := func(token string) []byte { return join([]byte{call, 1}, tok(token)) }
	all = append(all,
		join(asks("a"), []byte{call, 2}, tok("a"), num("0"), releases("a")),
		join(asks("a"), asks("b"), asks("c"), releases("b"), releases("a"), []byte{call, 3}, asks("a"), releases("c")),
		join(asks("a"), asks("b"), []byte{del}, key(keyTable[0]), asks("c"), []byte{del}, key("S"), asks("b"), releases("b"), asks("c")),
		join(asks("a"), asks("b"), []byte{del}, key("Q"), asks("c"), []byte{call, 4}, releases("a"), asks("b")),
	)
	for f := range byte(8) {
		for numkeys := range numberTable[:8] {
			for keys := range byte(6) {
				all = append(all, []byte{raw, byte(numkeys), f | keys<<3, 0, 1, 2, 3, 4, 5, 3, 7, 8, 9})
			}
		}
	}
	return all
}

// callSeeds are a function, numkeys, and the words that follow.
func callSeeds() (all [][]string) {
	keys := keyTable[:5]
	for _, s := range signatures {
		args := []string{"h", "5000", "30000", "0", "1"}
		for i := range s.keys {
			for j := range i {
				twice := slices.Clone(keys[:len(s.keys)])
				twice[i] = twice[j]
				all = append(all, slices.Concat([]string{s.name, strconv.Itoa(len(s.keys))}, twice, args[:len(s.args)]))
			}
		}
		for n := range 6 {
			for m := range 6 {
				numkeys := []string{"0", "1", "2", "3", "4", "5"}[n]
				all = append(all, slices.Concat([]string{s.name, numkeys}, keys[:n], args[:m]))
			}
		}
		all = append(all, slices.Concat([]string{"lock_acquire", "4"}, keys[:4], args[:4]), slices.Concat([]string{"lock_acquire", "4"}, keys[:4], []string{"b", "5000", "30000", "2"}))
		good := slices.Concat([]string{strings.ToUpper(s.name), strconv.Itoa(len(s.keys))}, keys[:len(s.keys)], args[:len(s.args)])
		if len(s.args) > 0 {
			long := slices.Clone(good)
			long[2+len(s.keys)] = strings.Repeat("x", tokenMost+1)
			all = append(all, long)
		}
		for i := range s.keys {
			long := slices.Clone(good)
			long[2+i] += strings.Repeat("x", keyMost)
			all = append(all, long)
		}
		for i := range len(good) - 1 {
			for _, number := range numberTable {
				if number != "" && (number[0] == 'n' || number[0] == 'm') && number != "nan" && number != "null" || len(number) > 100 {
					continue // now and micros
				}
				odd := slices.Clone(good)
				odd[i+1] = number
				all = append(all, odd)
			}
		}
	}
	return all
}
