package main

import (
	"context"
	"testing"
)

// The library's own allocations are the difference of two benchmarks: a free acquire and release
// through the library, and the same two commands sent with bare rueidis.

func benchmarkLibrary(b *testing.B, t target) {
	l, err := openOurs(t)
	if err != nil {
		b.Fatal(err)
	}
	defer l.close()
	name := newToken()
	b.ReportAllocs()
	for b.Loop() {
		unlock, err := l.lock(b.Context(), name)
		if err == nil {
			err = unlock()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func benchmarkCommands(b *testing.B, t target) {
	client, err := t.rueidis()
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	raw := &rawLock{name: newToken()}
	keys, token, name := raw.keys(), raw.token(), append(raw.keys(), raw.signal())
	b.ReportAllocs()
	for b.Loop() {
		ctx := b.Context()
		acquire := client.B().Fcall().Function("lock_acquire").Numkeys(4).Key(name...).Arg(token, longLease, longWait).Build()
		release := client.B().Fcall().Function("lock_release").Numkeys(3).Key(keys...).Arg(token).Build()
		if _, err := client.Do(ctx, acquire).ToArray(); err != nil {
			b.Fatal(err)
		}
		if _, err := client.Do(ctx, release).AsInt64(); err != nil {
			b.Fatal(err)
		}
	}
}

// benchmarkHandOver is a cycle where two goroutines of one Locker take turns.
func benchmarkHandOver(b *testing.B, t target) {
	l, err := openOurs(t)
	if err != nil {
		b.Fatal(err)
	}
	defer l.close()
	name := newToken()
	b.SetParallelism(1)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			unlock, err := l.lock(context.Background(), name)
			if err == nil {
				err = unlock()
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// allocated is what one operation allocates.
type allocated struct {
	What   string  `json:"what"`
	Allocs float64 `json:"allocs"`
	Bytes  float64 `json:"bytes"`
}

const ownAllocs = "the library's own: the difference"

func allocs(_ context.Context, b *bench) error {
	b.say("allocations")
	run := func(what string, bench func(*testing.B, target)) allocated {
		r := testing.Benchmark(func(tb *testing.B) { bench(tb, b.target) })
		return allocated{what, float64(r.MemAllocs) / float64(r.N), float64(r.MemBytes) / float64(r.N)}
	}
	library := run("free acquire and release", benchmarkLibrary)
	commands := run("the same two commands with bare rueidis", benchmarkCommands)
	handOver := run("contended acquire and release, rueidis included", benchmarkHandOver)
	b.report.Allocs = []allocated{library, commands,
		{ownAllocs, library.Allocs - commands.Allocs, library.Bytes - commands.Bytes}, handOver}
	b.allocTable()
	return nil
}
