package model_test

import (
	"slices"
	"strings"
)

// Go's fuzzing sees which lines of Go an input reaches, and nothing of Lua. So here is a line for each function and
// kind of reply, and, within each, for what the keys held before.

// reached is written only.
var reached int

func (v *verdict) note() {
	free, head, fence, last, signal := v.circumstances()
	switch v.name {
	case "lock_acquire":
		switch v.class {
		case "held":
			one(head)
			two(free, signal)
			three(fence, last)
		case "queued":
			one(head)
			two(free, signal)
			three(fence, last)
		case "busy":
			one(head)
			two(free, signal)
			three(fence, last)
		case "LOCKARG":
			two(free, signal)
		case "WRONGTYPE":
			one(head)
			two(free, signal)
		default:
			reached++
		}
	case "lock_release":
		switch v.class {
		case "0":
			one(head)
			two(free, signal)
			three(fence, last)
		case "1":
			one(head)
			two(free, signal)
			three(fence, last)
		case "2":
			one(head)
			two(free, signal)
			three(fence, last)
		case "LOCKARG":
			reached++
		case "WRONGTYPE":
			one(head)
		default:
			reached++
		}
	case "lock_extend":
		switch v.class {
		case "0":
			one(head)
			three(fence, last)
		case "1":
			one(head)
			three(fence, last)
		case "LOCKARG":
			reached++
		case "WRONGTYPE":
			one(head)
		default:
			reached++
		}
	case "lock_reset":
		switch v.class {
		case "0":
			one(head)
			two(free, signal)
			three(fence, last)
		case "1":
			one(head)
			two(free, signal)
			three(fence, last)
		case "LOCKARG":
			reached++
		case "WRONGTYPE":
			one(head)
		default:
			reached++
		}
	case "lock_inspect":
		switch v.class {
		case "":
			one(head)
			two(free, signal)
			three(fence, last)
		case "LOCKARG":
			reached++
		case "WRONGTYPE":
			one(head)
		default:
			reached++
		}
	case "lock_version":
		switch v.class {
		case "":
			reached++
		case "LOCKARG":
			reached++
		default:
			reached++
		}
	default:
		reached++
	}
}

// These are inlined where they are called, so that each call has lines of its own.

func one(head int) {
	switch head {
	case 0:
		reached++
	case 1:
		reached++
	case 2:
		reached++
	case 3:
		reached++
	case 4:
		reached++
	case 5:
		reached++
	case 6:
		reached++
	}
}

func two(free, signal int) {
	switch free {
	case 0:
		reached++
	case 1:
		reached++
	case 2:
		reached++
	case 3:
		reached++
	}
	switch signal {
	case 0:
		reached++
	case 1:
		reached++
	case 2:
		reached++
	case 3:
		reached++
	}
}

func three(fence, last int) {
	switch fence {
	case 0:
		reached++
	case 1:
		reached++
	case 2:
		reached++
	}
	switch last {
	case 0:
		reached++
	case 1:
		reached++
	case 2:
		reached++
	}
}

// circumstances are classes of what was in the keys.
func (v *verdict) circumstances() (free, head, fence, last, signal int) {
	holder, held := v.before.text(v.lock)
	if v.before.keys[v.lock].kind == "zset" {
		free = 3
	}
	switch {
	case held && holder == v.token:
		free = 1
	case held:
		free = 2
	}
	known := v.before.hash(v.hash)
	fence, last = number(known["fence"]), number(known["last"])

	members := v.before.members(v.queue)
	if len(members) == 0 {
		return free, 0, fence, last, 0
	}
	entry, has := known["@"+members[0]]
	parts := strings.SplitN(entry, " ", 4)
	list := ""
	switch {
	case members[0] == v.token:
		head = 1
	case !has:
		head = 2
	case len(parts) < 4 || slices.ContainsFunc(parts[:3], func(s string) bool { return number(s) != 1 }):
		head = 3
	case digits(parts[0])+digits(parts[1]) < v.before.micros/1000:
		head = 4
	case digits(parts[0]) > v.before.micros/1000:
		head = 5
	default:
		head = 6
	}
	if len(parts) == 4 {
		list = parts[3]
	}
	switch k := v.before.keys[list]; {
	case k.kind == "list" && strings.Contains(k.items[0], " "):
		signal = 1
	case k.kind == "list":
		signal = 2
	case k.kind != "":
		signal = 3
	}
	return free, head, fence, last, signal
}

// number is 0 for none, 1 for one within what the library writes, and 2 for garbage.
func number(s string) int {
	switch n := digits(s); {
	case s == "":
		return 0
	case n >= 0 && n <= most:
		return 1
	}
	return 2
}
