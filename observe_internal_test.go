package redislock

import (
	"context"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

var _ = Describe("Options.Observe by itself", func() {
	It("costs nothing when off: a nil watch, on which all calls return at once", func(ctx SpecContext) {
		l, r, lock := &Locker{}, &request{}, &Lock{}
		Expect(l.watch(ctx, r, time.Time{})).To(BeNil())
		Expect(testing.AllocsPerRun(10_000, func() {
			w := l.watch(ctx, r, time.Time{})
			_ = w.fail(nil)
			w.got(lock, true)
			w.tell(Event{Kind: EventLost})
		})).To(BeZero())
	})

	It("tells the end after the beginning also if it came first, and not if the call fails then", func(ctx SpecContext) {
		var told []EventKind
		l := &Locker{opts: Options{Observe: func(_ context.Context, e Event) { told = append(told, e.Kind) }}}
		for _, fails := range []bool{false, true} {
			w := l.watch(ctx, &request{}, time.Now())
			w.tell(Event{Kind: EventLost, Err: ErrLost})
			if fails {
				Expect(w.fail(ErrLost)).To(BeIdenticalTo(ErrLost))
			} else {
				w.got(&Lock{}, false)
			}
		}
		Expect(told).To(HaveExactElements(EventAcquired, EventLost, EventNotAcquired))
	})
})
