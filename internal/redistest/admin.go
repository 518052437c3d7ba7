package redistest

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// Do runs one command on a connection of its own and fails after some seconds if nothing answers.
func (s *Server) Do(command ...string) rueidis.RedisResult {
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{s.Addr()}, ForceSingleClient: true, DisableCache: true, PipelineMultiplex: -1,
		Dialer: net.Dialer{Timeout: time.Second}, ConnWriteTimeout: time.Second,
		ReadBufferEachConn: 16 << 10, WriteBufferEachConn: 16 << 10,
	})
	if err != nil {
		return rueidis.NewErrorResult(fmt.Errorf("redistest: %s on %s: %w", command[0], s.Addr(), err))
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return client.Do(ctx, client.B().Arbitrary(command...).Build())
}

// Role is what the server says of itself: "master", or "slave" and whether it is in sync; "" if
// it does not answer.
func (s *Server) Role() (role string, synced bool) {
	reply, err := s.Do("ROLE").ToArray()
	if err != nil || len(reply) == 0 {
		return "", false
	}
	role, _ = reply[0].ToString()
	if role == "slave" && len(reply) > 3 {
		state, _ := reply[3].ToString()
		synced = state == "connected"
	}
	return role, synced
}

func (s *Server) isPrimary() bool {
	role, _ := s.Role()
	return role == "master"
}

// within waits for a condition. If it does not come true, the error says what is missing.
func within(limit time.Duration, missing string, ok func() bool) error {
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("redistest: %s within %v", missing, limit)
		}
	}
	return nil
}

func addresses(servers []*Server) []string {
	list := make([]string, len(servers))
	for i, s := range servers {
		list[i] = s.Addr()
	}
	return list
}

// SlotOf is the cluster slot of a key, see the cluster specification.
func SlotOf(key string) int {
	if _, rest, found := strings.Cut(key, "{"); found {
		if tag, _, closed := strings.Cut(rest, "}"); closed && tag != "" {
			key = tag
		}
	}
	var crc uint16
	for i := range len(key) {
		crc ^= uint16(key[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc % 16384)
}

func itoa(n int) string { return strconv.Itoa(n) }
