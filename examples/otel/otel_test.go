package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

func names(spans []tracetest.SpanStub) (names []string) {
	for _, s := range spans {
		names = append(names, s.Name)
	}
	return names
}

func named(spans []tracetest.SpanStub, name string) (found []tracetest.SpanStub) {
	for _, s := range spans {
		if s.Name == name {
			found = append(found, s)
		}
	}
	return found
}

func standalone() (string, func() error, error) {
	s, err := redistest.Start()
	if err != nil {
		return "", nil, err
	}
	return s.Addr(), s.Stop, nil
}

func cluster() (string, func() error, error) {
	c, err := redistest.StartCluster(1, 0, time.Minute)
	if err != nil {
		return "", nil, err
	}
	return c.Servers[0].Addr(), c.Stop, nil
}

// The Locker finds out about the cluster through the client that is wrapped.
func TestSpansAndMetrics(t *testing.T) {
	for name, start := range map[string]func() (string, func() error, error){"standalone": standalone, "cluster": cluster} {
		t.Run(name, func(t *testing.T) {
			g := NewWithT(t)
			addr, stop, err := start()
			g.Expect(err).NotTo(HaveOccurred())
			defer stop()
			seen := newTelemetry()
			g.Expect(work(t.Context(), addr, seen)).To(Succeed())

			all := seen.spans.GetSpans()
			g.Expect(named(all, "turn")).To(HaveLen(workers * turns))
			for _, turn := range named(all, "turn") {
				children := childrenOf(all, turn.SpanContext.SpanID())
				g.Expect(names(children)).To(HaveExactElements("lock.acquire", "FCALL lock_release"))
				below := names(childrenOf(all, children[0].SpanContext.SpanID()))
				g.Expect(below).To(ContainElements("FCALL lock_acquire", "lock.hold"))
			}
			g.Expect(named(all, "BLPOP")).NotTo(BeEmpty())
			for _, s := range named(all, "BLPOP") {
				g.Expect(s.Parent.IsValid()).To(BeFalse(), "of all who wait")
			}
			var lost int
			for _, s := range named(all, "lock.hold") {
				if s.Status.Code == codes.Error {
					lost++
				}
			}
			g.Expect(lost).To(Equal(1))

			var data metricdata.ResourceMetrics
			g.Expect(seen.metrics.Collect(t.Context(), &data)).To(Succeed())
			counts := map[string]uint64{}
			for _, scope := range data.ScopeMetrics {
				for _, m := range scope.Metrics {
					switch points := m.Data.(type) {
					case metricdata.Histogram[float64]:
						for _, p := range points.DataPoints {
							counts[m.Name] += p.Count
						}
						g.Expect(m.Unit).To(Equal("s"))
					case metricdata.Sum[int64]:
						for _, p := range points.DataPoints {
							counts[m.Name] += uint64(p.Value)
						}
					}
				}
			}
			g.Expect(counts).To(HaveKeyWithValue("redislock.wait.duration", uint64(workers*turns+1)))
			g.Expect(counts).To(HaveKeyWithValue("redislock.hold.duration", uint64(workers*turns+1)))
			g.Expect(counts).To(HaveKeyWithValue("redislock.lost", uint64(1)))
			g.Expect(counts).To(HaveKeyWithValue("rueidis_command_duration_seconds", BeNumerically(">=", 2*(workers*turns+1))))

			var out bytes.Buffer
			g.Expect(seen.print(t.Context(), &out)).To(Succeed())
			readme, err := os.ReadFile("README.md")
			g.Expect(err).NotTo(HaveOccurred())
			for _, line := range []string{
				`(?m)^turn +[\d.]+ ms`, `(?m)^  lock\.acquire +[\d.]+ ms +name=orders handed_over=\w+ fence=\d+$`,
				`(?m)^    FCALL lock_acquire +[\d.]+ ms`, `(?m)^  lock.hold +[\d.]+ ms +name=report error: .*not held$`,
				`(?m)^redislock\.lost +1 +redislock.name=report$`,
				`(?m)^redislock\.hold\.duration +6 +[\d.]+ ms +[\d.]+ ms +redislock.name=orders$`,
			} {
				g.Expect(out.String()).To(MatchRegexp(line))
				g.Expect(string(readme)).To(MatchRegexp(line))
			}
		})
	}
}

func TestAWaitThatEndsAndADedicatedConnection(t *testing.T) {
	g := NewWithT(t)
	addr, stop, err := standalone()
	g.Expect(err).NotTo(HaveOccurred())
	defer stop()
	seen := newTelemetry()
	client, err := connect(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true}, seen.tracers, seen.meters)
	g.Expect(err).NotTo(HaveOccurred())
	defer client.Close()
	tracer := seen.tracers.Tracer(scope)
	hook, err := observe(tracer, seen.meters.Meter(scope))
	g.Expect(err).NotTo(HaveOccurred())
	locker, err := redislock.New(client, redislock.Options{Observe: hook})
	g.Expect(err).NotTo(HaveOccurred())
	defer locker.Close()

	_, err = acquire(t.Context(), tracer, locker, "x", redislock.WithReplicas(1, 10*time.Millisecond))
	g.Expect(err).To(MatchError(redislock.ErrNotReplicated))
	all := seen.spans.GetSpans()
	tried := named(all, "lock.acquire")
	g.Expect(tried).To(HaveLen(1))
	g.Expect(names(childrenOf(all, tried[0].SpanContext.SpanID()))).To(ContainElements("FCALL lock_acquire", "FCALL lock_extend", "WAIT"))
	g.Expect(tried[0].Status.Code).To(Equal(codes.Error))

	lock, err := locker.Acquire(t.Context(), "x")
	g.Expect(err).NotTo(HaveOccurred())
	seen.spans.Reset()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = acquire(ctx, tracer, locker, "x")
	g.Expect(errors.Is(err, redislock.ErrNotAcquired)).To(BeTrue())
	g.Expect(named(seen.spans.GetSpans(), "lock.acquire")[0].Status.Code).To(Equal(codes.Error))
	g.Expect(lock.Release(t.Context())).To(Succeed())
}
