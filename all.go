package redislock

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed-ee05a192/redislock/internal/wire"
)

// AcquireAll takes several locks, one after the other in bytewise order of their keys. This order is the
// same in every language, so callers never wait for each other in a circle. The locks may be in several
// slots of a cluster.
//
// The lock of names[i] is at index i of the result. Two names of one lock, such as "x" and "{x}", have the
// same *Lock. Release each lock once. Each has a Fence and a Context of its own.
//
// After an error, the caller holds none of the locks. If AcquireAll cannot get a lock, or may have lost one
// while it waits for the next, it releases all in reverse order, without a minimum hold. If Redis does not
// answer within a second, the release goes on in the background. Errors are those of Acquire; errors.Is
// finds ErrLost if a lock was lost.
//
// The options are for each lock. Only WithWait limits all waits together. WithToken gives all of them one
// token.
func (l *Locker) AcquireAll(ctx context.Context, names []string, opts ...Option) ([]*Lock, error) {
	_, locks, err := l.obtainAll(ctx, "acquire", names, false, opts)
	return locks, err
}

// DoAll is Do with the locks of AcquireAll. The context of fn ends when ctx ends, or when any of the locks
// is released or may be lost. DoAll returns nil only if fn returned nil and every lock was held until DoAll
// gave it back. Other errors are joined as in Do.
func (l *Locker) DoAll(ctx context.Context, names []string, fn func(ctx context.Context, locks []*Lock) error, opts ...Option) (err error) {
	taken, locks, err := l.obtainAll(ctx, "do", names, true, opts)
	if err != nil {
		return err
	}
	held, end := context.WithCancelCause(ctx)
	stop := context.AfterFunc(ctx, func() {
		for _, lock := range taken {
			lock.end(context.Cause(ctx))
		}
	})
	defer func() {
		stop()
		err = join(err, backward(taken, func(lock *Lock) error { return lock.finish(ctx) }))
		end(nil)
	}()
	for _, lock := range taken {
		context.AfterFunc(lock.Context(), func() { end(context.Cause(lock.Context())) })
	}
	return fn(held, locks)
}

// obtainAll returns the locks twice: in the order in which it took them, and in the order of names.
func (l *Locker) obtainAll(ctx context.Context, op string, names []string, inDo bool, opts []Option) (taken, locks []*Lock, err error) {
	order, err := l.inOrder(op, names)
	if err != nil {
		return nil, nil, err
	}
	r := l.opts.request(op, opts...)
	if err = r.check(); err != nil {
		return nil, nil, wrap(op, order[0].Name, err)
	}
	if r.limited && !r.try() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.limit)
		defer cancel()
	}
	if taken, err = l.takeAll(ctx, op, order, inDo, opts); err != nil {
		abandonAll(ctx, taken)
		return nil, nil, err
	}
	for _, name := range names {
		k, _ := keysOf(l.opts.Prefix, name)
		i, _ := slices.BinarySearchFunc(order, k, byKey)
		locks = append(locks, taken[i])
	}
	return taken, locks, nil
}

// takeAll takes one lock after the other. With an error, it returns the locks that it has got.
func (l *Locker) takeAll(ctx context.Context, op string, order []wire.Keys, inDo bool, opts []Option) (taken []*Lock, err error) {
	ctx, lost := context.WithCancelCause(ctx) // ends the waits once a lock is lost
	defer lost(nil)
	for _, k := range order {
		lock, err := l.obtain(ctx, k.Name, l.opts.request(op, opts...), inDo)
		if err != nil {
			return taken, err
		}
		taken = append(taken, lock)
		context.AfterFunc(lock.Context(), func() { lost(context.Cause(lock.Context())) })
	}
	for _, lock := range taken { // lost while the last one was granted?
		if cause := context.Cause(lock.Context()); cause != nil {
			return taken, lock.wrap(op, cause)
		}
	}
	return taken, nil
}

// abandonAll releases the locks. It waits undoWait at most; then the release goes on in the background.
func abandonAll(ctx context.Context, locks []*Lock) {
	through := make(chan struct{})
	go func() {
		defer close(through)
		_ = backward(locks, func(lock *Lock) error { return lock.abandon(ctx) })
	}()
	select {
	case <-through:
	case <-time.After(undoWait):
	}
}

// backward ends all locks, the last one first: one after the other while Redis answers, otherwise the rest
// at once. It returns the first error, joined with ErrLost if any lock was lost. All errors would be long.
func backward(locks []*Lock, end func(*Lock) error) (verdict error) {
	var mu sync.Mutex
	var rest sync.WaitGroup
	one := func(lock *Lock) {
		err := end(lock)
		mu.Lock()
		defer mu.Unlock()
		if verdict == nil || errors.Is(err, ErrLost) && !errors.Is(verdict, ErrLost) {
			verdict = join(verdict, err)
		}
	}
	unanswered := false
	for _, lock := range slices.Backward(locks) {
		if unanswered {
			rest.Go(func() { one(lock) })
			continue
		}
		one(lock)
		unanswered = errors.Is(verdict, ErrUnavailable)
	}
	rest.Wait()
	return verdict
}

func byKey(a, b wire.Keys) int { return strings.Compare(a.Lock, b.Lock) }

// inOrder returns the keys of the locks in the order of AcquireAll, each once.
func (l *Locker) inOrder(op string, names []string) ([]wire.Keys, error) {
	if len(names) == 0 {
		return nil, errors.New("redislock: " + op + ": no names of locks")
	}
	all := make([]wire.Keys, len(names))
	for i, name := range names {
		var err error
		if all[i], err = keysOf(l.opts.Prefix, name); err != nil {
			return nil, wrap(op, name, err)
		}
	}
	slices.SortStableFunc(all, byKey)
	return slices.CompactFunc(all, func(a, b wire.Keys) bool { return byKey(a, b) == 0 }), nil
}
