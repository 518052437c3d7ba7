package redistest

import (
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// TestPortOfAServerThatIsDown: no other process takes it before Stop.
func TestPortOfAServerThatIsDown(t *testing.T) {
	if port, err := strconv.Atoi(os.Getenv("RESERVE_PORT")); err == nil { // the other process
		if !reserve(port) {
			t.Fatal("it is taken")
		}
		return
	}
	s, err := Start()
	must(t, err)
	t.Cleanup(func() { _ = s.Stop() })
	must(t, s.Kill())
	if !free(s.Port()) {
		t.Fatal("it is not down")
	}
	other := func() error {
		cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "RESERVE_PORT="+strconv.Itoa(s.Port()))
		return cmd.Run()
	}
	if reserve(s.Port()) {
		t.Error("this process takes it")
	}
	if other() == nil {
		t.Error("another process takes it")
	}
	must(t, s.Stop())
	must(t, other())
}
