package redislock_test

import (
	"errors"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock"
)

var _ = Describe("a VersionError", func() {
	DescribeTable("says how to reach the node", func(node, how string) {
		err := &redislock.VersionError{Node: node, Want: "1.0.0", Reason: "the library is missing"}
		Expect(err).To(MatchError("node " + node + `: the library is missing (need version 1.0.0 of the function library "lock"; ` +
			"to load it: redis-cli " + how + " -x FUNCTION LOAD REPLACE < lua/lock.lua)"))
	},
		Entry("by name", "redis.example:6380", "-h redis.example -p 6380"),
		Entry("by IPv6", "[::1]:6379", "-h ::1 -p 6379"),
		Entry("by a socket", "/run/redis:1/redis.sock", "-s /run/redis:1/redis.sock"),
	)

	It("unwraps to what Redis said", func() {
		said := errors.New("NOPERM this user has no permissions")
		var err error = &redislock.VersionError{Node: "h:1", Reason: "this user may not load it", Err: said}
		Expect(err).To(MatchError(said))
		Expect(err).To(MatchError(ContainSubstring("may not load it: NOPERM")))
	})
})
