// Command otel shows what OpenTelemetry sees of a lock: the calls to Redis by rueidisotel, and how long
// the lock was waited for and held, or that it was lost, by redislock.Options.Observe. What to copy
// is in observe.go.
//
// It starts a private redis-server. Spans and metrics stay in memory, and are printed at the end.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/redis/rueidis"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
)

const (
	scope   = "github.com/seed-ee05a192/redislock/examples/otel" // whose spans and metrics: your package
	workers = 3
	turns   = 2
)

// telemetry is what an app sets up once, with exporters in place of these.
type telemetry struct {
	spans   *tracetest.InMemoryExporter
	metrics *sdkmetric.ManualReader
	tracers *sdktrace.TracerProvider
	meters  *sdkmetric.MeterProvider
}

func newTelemetry() *telemetry {
	t := &telemetry{spans: tracetest.NewInMemoryExporter(), metrics: sdkmetric.NewManualReader()}
	t.tracers = sdktrace.NewTracerProvider(sdktrace.WithSyncer(t.spans))
	t.meters = sdkmetric.NewMeterProvider(sdkmetric.WithReader(t.metrics))
	return t
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "otel:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	server, err := redistest.Start()
	if err != nil {
		return err
	}
	defer func() { _ = server.Stop() }()
	t := newTelemetry()
	if err := work(ctx, server.Addr(), t); err != nil {
		return err
	}
	return t.print(ctx, os.Stdout)
}

// work has workers take turns with one lock. Then one loses another lock.
func work(ctx context.Context, addr string, t *telemetry) error {
	client, err := connect(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true}, t.tracers, t.meters)
	if err != nil {
		return err
	}
	defer client.Close()
	tracer := t.tracers.Tracer(scope)
	hook, err := observe(tracer, t.meters.Meter(scope))
	if err != nil {
		return err
	}
	locker, err := redislock.New(client, redislock.Options{Observe: hook})
	if err != nil {
		return err
	}
	defer locker.Close()

	turn := func() error {
		ctx, span := tracer.Start(ctx, "turn")
		defer span.End()
		lock, err := acquire(ctx, tracer, locker, "orders")
		if err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond) // the work
		return lock.Release(ctx)
	}
	var all sync.WaitGroup
	failed := make([]error, workers)
	for i := range workers {
		all.Go(func() {
			for range turns {
				failed[i] = errors.Join(failed[i], turn())
			}
		})
	}
	all.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}

	lock, err := acquire(ctx, tracer, locker, "report")
	if err != nil {
		return err
	}
	if _, err := locker.Reset(ctx, "report"); err != nil { // an operator, say
		return err
	}
	if err := lock.Release(ctx); !errors.Is(err, redislock.ErrNotHeld) {
		return fmt.Errorf("the lock was taken away, and Release said %w", err)
	}
	return nil
}
