package redistest

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestClock(t *testing.T) {
	s, err := StartWithClock()
	must(t, err)
	t.Cleanup(func() { _ = s.Stop() })
	want(t, s, "SET k v EX 1800", "+OK")
	must(t, s.StepClock(-time.Hour))
	want(t, s, "EXISTS k", ":1")
	must(t, s.StepClock(time.Hour))
	want(t, s, "EXISTS k", ":1")
	must(t, s.StepClock(time.Hour))
	want(t, s, "EXISTS k", ":0")

	must(t, s.Restart())
	must(t, s.StepClock(0)) // it has kept its clock, or this fails
	must(t, s.Kill())
	shared, err := os.ReadDir("/dev/shm")
	must(t, err)
	for _, file := range shared {
		if strings.HasSuffix(file.Name(), "_"+itoa(s.PID())) {
			t.Errorf("left behind: /dev/shm/%s", file.Name())
		}
	}
}

func TestStoppedClock(t *testing.T) {
	s, err := StartWithClock()
	must(t, err)
	t.Cleanup(func() { must(t, s.Stop()) })
	for _, micros := range []int64{1_767_225_600_000_000, 1_767_225_600_999_999, 1_767_225_600_123_456} {
		must(t, s.StopClock(time.UnixMicro(micros)))
		for range 2 {
			shown, err := s.Do("TIME").AsIntSlice()
			must(t, err)
			if got := shown[0]*1_000_000 + shown[1]; got != micros {
				t.Fatalf("stopped at %d, and shows %d", micros, got)
			}
		}
	}
	want(t, s, "SET k v PX 1000", "+OK")
	must(t, s.StopClock(time.UnixMicro(1_767_225_601_123_456)))
	want(t, s, "PTTL k", ":0")
	must(t, s.StopClock(time.UnixMicro(1_767_225_601_124_000)))
	want(t, s, "PTTL k", ":-2")
	must(t, s.StepClock(0)) // it runs again, or this fails
}

func TestFastClock(t *testing.T) {
	s, err := StartWithClock()
	must(t, err)
	t.Cleanup(func() { must(t, s.Stop()) })
	must(t, s.SpeedClock(1.5))
	shown := func() time.Time {
		at, err := s.Do("TIME").AsIntSlice()
		must(t, err)
		return time.Unix(at[0], at[1]*1000)
	}
	// Each bound is of calls that lie inside, or outside, of the time that is compared.
	before, first, inside := time.Now(), shown(), time.Now()
	<-time.After(200 * time.Millisecond)
	insideEnd, second, after := time.Now(), shown(), time.Now()
	least, most := insideEnd.Sub(inside)*3/2, after.Sub(before)*3/2
	if took := second.Sub(first); took < least-time.Millisecond || took > most+time.Millisecond {
		t.Fatalf("%v passed there, it should be %v to %v", took, least, most)
	}
}

func TestStepOfAServerWithoutClock(t *testing.T) {
	s, err := Start()
	must(t, err)
	t.Cleanup(func() { must(t, s.Stop()) })
	if err := s.StepClock(time.Hour); err == nil || !strings.Contains(err.Error(), "no effect") {
		t.Fatalf("got %v", err)
	}
}

func TestNoFaketime(t *testing.T) {
	if _, err := findFaketime(t.TempDir()); err == nil || !strings.Contains(err.Error(), "apt-get install faketime") {
		t.Fatalf("got %v", err)
	}
}
