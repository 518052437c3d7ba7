module github.com/seed-ee05a192/redislock/chaos

go 1.25.0

replace github.com/seed-ee05a192/redislock => ../

require (
	github.com/anishathalye/porcupine v1.3.1
	github.com/redis/rueidis v1.0.79
	github.com/seed-ee05a192/redislock v0.0.0
	golang.org/x/sys v0.47.0
)
