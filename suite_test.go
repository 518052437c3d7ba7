package redislock_test

import (
	"testing"

	. "github.com/seed-ee05a192/redislock/internal/spec"
)

func TestRedislock(t *testing.T) { Run(t, "redislock") }
