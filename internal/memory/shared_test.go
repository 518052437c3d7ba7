package memory_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-ee05a192/redislock/internal/memory"
	"github.com/seed-ee05a192/redislock/internal/wire"
)

var orders = wire.Keys{
	Name: "orders", Lock: "lock:{orders}", Queue: "lock-queue:{orders}", State: "lock-state:{orders}", Tagged: "{orders}",
}

// network is a memory.Network that a test makes up.
type network func(ctx context.Context, call string, serve func()) error

func (n network) Carry(ctx context.Context, call string, serve func()) error {
	return n(ctx, call, serve)
}

func ideal(_ context.Context, _ string, serve func()) error { serve(); return nil }

func inBubble(t *testing.T, f func(t *testing.T, s *memory.Shared)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, memory.NewShared("1.0.0")) })
}

// take has a token take the lock, or queue for it.
func take(t *testing.T, c *memory.Client, token string) wire.Acquired {
	t.Helper()
	a, err := c.Acquire(t.Context(), orders, token, 10*time.Second, 30*time.Second, 1)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func release(t *testing.T, c *memory.Client, token string) wire.Released {
	t.Helper()
	r, err := c.Release(t.Context(), orders, token)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAnswers(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Shared) {
		c := s.Client("lock", network(ideal))
		first, second := take(t, c, "a"), take(t, c, "b")
		if !first.Held || first.Lease != 10*time.Second || first.Fence != time.Now().UnixMicro() || first.Now != time.Now().UnixMilli() {
			t.Errorf("%+v", first)
		}
		if second.Held || second.Position != 1 || second.CheckIn <= 0 || second.List == "" {
			t.Errorf("%+v", second)
		}
		if r := release(t, c, "b"); r != wire.WasQueued {
			t.Error(r)
		}
		if r := release(t, c, "a"); r != wire.WasHeld {
			t.Error(r)
		}
		if r := release(t, c, "a"); r != wire.NotMine {
			t.Error(r)
		}
		never, err := c.Acquire(t.Context(), orders, "a", wire.Never, 0, 1)
		if err != nil || never.Lease != wire.Never {
			t.Errorf("%+v %v", never, err)
		}
	})
}

// TestRefused: an error of the library will not pass, and the call was not carried out.
func TestRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Shared) {
		c := s.Client("lock", network(ideal))
		_, err := c.Acquire(t.Context(), orders, "", time.Second, 0, 1)
		if err == nil || wire.Passes(err) || wire.MayArrive(err) {
			t.Error(err)
		}
		s.Do(func(m *memory.Server) { m.Spoil(orders.Lock) })
		_, err = c.Extend(t.Context(), orders, "a", time.Second)
		if err == nil || wire.Passes(err) || wire.MayArrive(err) {
			t.Error(err)
		}
	})
}

// TestLateCall: a call is carried out after its caller has given up.
func TestLateCall(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Shared) {
		late := s.Client("lock", network(func(ctx context.Context, _ string, serve func()) error {
			time.AfterFunc(time.Minute, serve)
			<-ctx.Done()
			return ctx.Err()
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := late.Acquire(ctx, orders, "a", 10*time.Second, 0, 1)
		if !errors.Is(err, context.DeadlineExceeded) || !wire.Passes(err) || !wire.MayArrive(err) {
			t.Error(err)
		}
		holder := func() string {
			state, err := s.Client("lock", network(ideal)).Inspect(t.Context(), orders)
			if err != nil {
				t.Fatal(err)
			}
			return state.Holder
		}
		if holder() != "" {
			t.Error("too early")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if holder() != "a" {
			t.Error("never")
		}
	})
}

func TestPop(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Shared) {
		c := s.Client("lock", network(ideal))
		take(t, c, "a")
		list := take(t, c, "b").List
		time.AfterFunc(time.Second, func() { release(t, c, "a") })
		start := time.Now()
		signals, err := c.Pop(t.Context(), list, 5)
		want := []wire.Signal{{Fence: time.Now().UnixMicro(), Deadline: time.Now().Add(2 * time.Second).UnixMilli(), Token: "b"}}
		if err != nil || !slices.Equal(signals, want) || time.Since(start) != time.Second {
			t.Errorf("%v %v after %v", signals, err, time.Since(start))
		}

		// What has piled up comes at once, in order, but not more than was asked for.
		for _, token := range []string{"c", "d", "e"} {
			take(t, c, token)
		}
		for _, token := range []string{"b", "c", "d"} {
			release(t, c, token)
		}
		two, err := c.Pop(t.Context(), list, 2)
		if err != nil || len(two) != 2 || two[0].Token != "c" || two[1].Token != "d" {
			t.Error(two, err)
		}
		if err := c.Forget(t.Context(), []string{list}); err != nil {
			t.Error(err)
		}

		start = time.Now()
		none, err := c.Pop(t.Context(), list, 5)
		if err != nil || none != nil || time.Since(start) != 2*time.Second {
			t.Errorf("%v %v after %v", none, err, time.Since(start))
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Pop(ctx, list, 5); !errors.Is(err, context.DeadlineExceeded) || !wire.Passes(err) {
			t.Error(err)
		}
	})
}

// TestPopWithoutAnswer: a server that is silent does not block it for long.
func TestPopWithoutAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Shared) {
		silent := s.Client("lock", network(func(ctx context.Context, _ string, _ func()) error {
			<-ctx.Done()
			return ctx.Err()
		}))
		start := time.Now()
		if _, err := silent.Pop(t.Context(), "list", 1); !wire.Passes(err) || time.Since(start) != 4*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestExtendAndWait(t *testing.T) {
	inBubble(t, func(t *testing.T, s *memory.Shared) {
		c := s.Client("lock", network(ideal))
		take(t, c, "a")
		for replicas, want := range []time.Duration{time.Second, time.Second, 0, 0} {
			s.SetReplicas(replicas)
			start := time.Now()
			var extended wire.Extended
			acks, err := c.ExtendAndWait(t.Context(), orders, "a", time.Minute, 2, time.Second, func(e wire.Extended) { extended = e })
			if err != nil || acks != min(replicas, 2) || time.Since(start) != want || !extended.Held || !extended.Sent.Equal(start) {
				t.Errorf("%d replicas: %d %v %+v after %v", replicas, acks, err, extended, time.Since(start))
			}
		}
	})
}
