module github.com/seed-ee05a192/redislock/lua/model

go 1.25.0

replace github.com/seed-ee05a192/redislock => ../..

require (
	github.com/redis/rueidis v1.0.79
	github.com/seed-ee05a192/redislock v0.0.0-00010101000000-000000000000
	pgregory.net/rapid v1.3.0
)

require golang.org/x/sys v0.47.0 // indirect
