package redistest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// clockFile, in a server's folder, says how far its clock is off.
const clockFile = "clock"

// StartWithClock is Start for a server whose wall clock StepClock can set. Its monotonic clock goes on
// as it is, like that of a machine whose time NTP or a person sets. It takes Debian's faketime, for a Valkey
// also gcc, and a server that is linked dynamically.
func StartWithClock(args ...string) (*Server, error) {
	faketime, err := findFaketime("/usr/lib/*/faketime", "/usr/lib*/faketime", "/usr/local/lib/faketime")
	if err != nil {
		return nil, err
	}
	s := &Server{args: args}
	if s.dir, err = os.MkdirTemp("", "redistest-"); err != nil {
		return nil, err
	}
	preload := faketime
	if strings.HasPrefix(Version(), "Valkey") {
		own, err := systemClock(s.dir)
		if err != nil {
			return nil, errors.Join(err, os.RemoveAll(s.dir))
		}
		preload += ":" + own
	}
	s.env = []string{
		// Without libc's malloc, jemalloc and libfaketime wait for each other before main.
		"LD_PRELOAD=" + preload + ":libc.so.6",
		"FAKETIME_TIMESTAMP_FILE=" + filepath.Join(s.dir, clockFile),
		"FAKETIME_NO_CACHE=1",
		"FAKETIME_DONT_FAKE_MONOTONIC=1",
		"TZ=UTC", // of StopClock's times
	}
	if err := s.writeClock(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}
	if err := s.onFreePort(); err != nil {
		return nil, err
	}
	return s, nil
}

// systemClock builds what keeps a Valkey from counting the processor's ticks between two looks at the
// system's clock, which Valkey 9 does: a step would show up to a millisecond late, and a stopped clock would
// run on. Without /proc/cpuinfo, it knows of no ticks.
func systemClock(dir string) (library string, err error) {
	library = filepath.Join(dir, "systemclock.so")
	build := exec.Command("gcc", "-shared", "-fPIC", "-x", "c", "-o", library, "-", "-ldl")
	build.Stdin = strings.NewReader(`
		#define _GNU_SOURCE
		#include <dlfcn.h>
		#include <stdio.h>
		#include <string.h>
		#define OPEN(name) FILE *name(const char *path, const char *mode) { \
			FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, #name); \
			return strcmp(path, "/proc/cpuinfo") ? real(path, mode) : NULL; \
		}
		OPEN(fopen)
		OPEN(fopen64)
	`)
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("redistest: gcc, for the clock of a Valkey: %w\n%s", err, out)
	}
	return library, nil
}

func findFaketime(folders ...string) (string, error) {
	for _, folder := range folders {
		if found, _ := filepath.Glob(filepath.Join(folder, "libfaketime.so.1")); len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("redistest: no libfaketime.so.1 in %q: `apt-get install faketime`, or `make test`, which installs it", folders)
}

// StepClock puts the server's clock forward by d, or back if d is negative, and returns when the
// server shows it.
func (s *Server) StepClock(d time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead += d
	if err := s.writeClock(); err != nil {
		return err
	}
	before := time.Now().Add(s.ahead - time.Millisecond)
	micros, err := s.Do("TIME").AsIntSlice()
	if err != nil {
		return err
	}
	after := time.Now().Add(s.ahead + time.Millisecond)
	if shown := time.Unix(micros[0], micros[1]*1000); shown.Before(before) || shown.After(after) {
		return fmt.Errorf("redistest: a step to %v has no effect, the server shows %v", after, shown)
	}
	return nil
}

// StopClock has the server's clock stand still at this microsecond, until the next StopClock or StepClock.
// The next command sees it.
func (s *Server) StopClock(at time.Time) error {
	// Half a microsecond more: libfaketime computes with a float, and the server cuts it off.
	return s.setClock(at.UTC().Format("2006-01-02 15:04:05.000000") + "5")
}

// SpeedClock has the server's clock run faster than ours by this factor. It first jumps by what that makes
// of the time since the server's start. The next command sees it.
func (s *Server) SpeedClock(factor float64) error {
	return s.setClock(fmt.Sprintf("+0 x%.6f", factor))
}

func (s *Server) writeClock() error {
	return s.setClock(fmt.Sprintf("%+.3f", s.ahead.Seconds()))
}

// setClock replaces the file, so that it is never read by half.
func (s *Server) setClock(to string) error {
	file := filepath.Join(s.dir, clockFile)
	err := os.WriteFile(file+".new", []byte(to+"\n"), 0o600)
	return errors.Join(err, os.Rename(file+".new", file))
}

// unlinkShared removes the names of the memory that libfaketime would share with child processes. It
// only does so itself when the process ends in good order, and a name left behind is a failure for
// the next process of that id.
func unlinkShared(pid int) {
	for _, name := range []string{"faketime_shm_", "sem.faketime_sem_"} {
		_ = os.Remove("/dev/shm/" + name + itoa(pid))
	}
}
