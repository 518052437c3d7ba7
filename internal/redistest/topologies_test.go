package redistest

import (
	"testing"
	"time"
)

func TestSentinel(t *testing.T) {
	s, err := StartSentinel(1, 3, time.Second)
	must(t, err)
	t.Cleanup(func() { must(t, s.Stop()) })
	first := s.Primary()
	if first != s.Servers[0] {
		t.Fatal("another primary")
	}
	must(t, s.Failover())
	if s.Primary() != s.Servers[1] {
		t.Fatal("the same primary")
	}
}

func TestCluster(t *testing.T) {
	c, err := StartCluster(3, 1, 1500*time.Millisecond)
	must(t, err)
	t.Cleanup(func() { must(t, c.Stop()) })
	for _, key := range []string{"", "123456789", "a{foo}b", "foo", "{}foo", "foo{", "{a}{b}", "a}b{c}"} {
		if got, err := c.Servers[0].Do("CLUSTER", "KEYSLOT", key).AsInt64(); err != nil || int(got) != SlotOf(key) {
			t.Errorf("slot of %q: %d, but Redis says %d, %v", key, SlotOf(key), got, err)
		}
	}
	owner := c.Owner("a{foo}b")
	want(t, owner, "SET {foo} v", "+OK")
	want(t, owner, "SET a{foo}b v", "+OK")

	replica := c.ReplicaOf(owner)
	must(t, c.Failover(replica))
	if c.Owner("foo") != replica {
		t.Fatal("it does not own the slot")
	}
	must(t, c.Settle())

	added, err := c.Add()
	must(t, err)
	steps := 0
	must(t, c.Move("foo", added, func(moved int) {
		if moved != steps {
			t.Errorf("moved %d, want %d", moved, steps)
		}
		steps++
	}))
	if steps != 3 || c.Owner("foo") != added {
		t.Fatalf("%d steps, owner %v", steps, c.Owner("foo"))
	}
	want(t, added, "EXISTS a{foo}b {foo}", ":2")
}
