package redislock

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

var _ = Describe("the loader by itself", func() {
	It("begins no round for a call from before one that has just ended", func(ctx SpecContext) {
		l := newLoader(nil, LoadIfNeeded, nil) // without a client a round panics
		l.rounds.Store(2)
		Expect(l.missing(ctx, 1)).To(BeEquivalentTo(2))
	})
})
