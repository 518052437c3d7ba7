package interop_test

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/seed-ee05a192/redislock/internal/redistest"
)

var _ = Describe("The examples' own tests, each with its language's runner:", func() {
	DescribeTable("", func(ctx SpecContext, dir string, runner []string, passed string) {
		if runner[0] == "python3" {
			runner[0] = python()
		}
		cluster, err := redistest.StartCluster(3, 0, 5*time.Second)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(cluster.Stop)
		output, err := command(ctx, dir, []string{
			"REDIS_URL=redis://" + startServer().Addr(), "REDIS_CLUSTER=" + cluster.Servers[0].Addr(),
		}, runner[0], runner[1:]...).CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), string(output))
		Expect(string(output)).To(MatchRegexp(passed))
		Expect(string(output)).NotTo(MatchRegexp(`# skip |# skipped [1-9]|\d skipped`)) // as each of them says it
	},
		// Limits take their time, so the two halves run side by side.
		Entry("Python: time limits, many waiters", SpecTimeout(10*time.Minute), "clients/python",
			[]string{"python3", "-B", "-m", "pytest", "-q", "tests/test_limits.py", "tests/test_many.py"}, `\d passed in`),
		Entry("Python: the rest", SpecTimeout(10*time.Minute), "clients/python",
			[]string{"python3", "-B", "-m", "pytest", "-q", "--ignore=tests/test_limits.py", "--ignore=tests/test_many.py"}, `\d passed in`),
		Entry("Node.js", SpecTimeout(10*time.Minute), "clients/node", []string{"node", "--test", "--test-concurrency=4"}, `# pass [1-9]\d*\n# fail 0\n`),
		Entry("shell", SpecTimeout(3*time.Minute), "clients/shell", []string{"bats", "--tap", "redislock.bats"}, `\nok [1-9]\d* `),
	)
})
