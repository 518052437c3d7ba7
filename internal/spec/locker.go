package spec

import (
	"bytes"
	"context"
	"errors"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
)

// MustAcquire takes a lock, and waits for it if need be.
func MustAcquire(ctx context.Context, l *redislock.Locker, name string, opts ...redislock.Option) *redislock.Lock {
	GinkgoHelper()
	lock, err := l.Acquire(ctx, name, opts...)
	Expect(err).NotTo(HaveOccurred())
	return lock
}

// Acquiring starts an Acquire, and returns when it is in the queue at that place.
func Acquiring(ctx context.Context, l *redislock.Locker, name string, place int, opts ...redislock.Option) <-chan *redislock.Lock {
	GinkgoHelper()
	got := make(chan *redislock.Lock, 1)
	go func() {
		defer GinkgoRecover()
		defer close(got)
		lock, err := l.Acquire(ctx, name, opts...)
		if err == nil {
			got <- lock
		} else if ctx.Err() == nil {
			Expect(err).To(MatchError(redislock.ErrClosed))
		}
	}()
	Eventually(WaitingFor(l, name)).Should(BeNumerically(">=", place))
	return got
}

// WaitingFor counts those that wait for a name.
func WaitingFor(l *redislock.Locker, name string) func() (int, error) {
	return func() (int, error) {
		state, err := l.Inspect(context.Background(), name)
		return state.Waiting, err
	}
}

// StateOf is what Inspect tells of a name.
func StateOf(l *redislock.Locker, name string) redislock.State {
	GinkgoHelper()
	state, err := l.Inspect(context.Background(), name)
	Expect(err).NotTo(HaveOccurred())
	return state
}

// PTTL is the rest of a key's life, in milliseconds.
func PTTL(client rueidis.Client, key string) int64 {
	GinkgoHelper()
	ms, err := Redis(client, "PTTL", key).ToInt64()
	Expect(err).NotTo(HaveOccurred())
	return ms
}

// Second is the error of a call with two results.
func Second[T any](_ T, err error) error { return err }

// OfVersion is the library with another version number. 1.-1.0 is older than 1.0.0, of the same major
// version: no real one is.
func OfVersion(version string) string {
	GinkgoHelper()
	text := strings.Replace(redislock.Source(), "VERSION = '"+redislock.Version+"'", "VERSION = '"+version+"'", 1)
	if version != redislock.Version {
		Expect(text).NotTo(Equal(redislock.Source()))
	}
	return text
}

// Put loads a library in place of the one that is there.
func Put(client rueidis.Client, library string) {
	GinkgoHelper()
	Expect(Redis(client, "FUNCTION", "LOAD", "REPLACE", library).Error()).NotTo(HaveOccurred())
}

// AsVersion is errors.As for a VersionError.
func AsVersion(err error, version **redislock.VersionError) bool { return errors.As(err, version) }

// Containing tells the requests that have this word.
func Containing(word string) func([]byte) bool {
	return func(request []byte) bool { return bytes.Contains(request, []byte(word)) }
}
