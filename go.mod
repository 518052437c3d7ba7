module github.com/seed-ee05a192/redislock

go 1.26

require (
	github.com/onsi/ginkgo/v2 v2.34.0
	github.com/redis/rueidis v1.0.79
)

require (
	github.com/Masterminds/semver/v3 v3.4.0 // indirect
	github.com/onsi/gomega v1.44.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
	golang.org/x/tools v0.48.0 // indirect
)
