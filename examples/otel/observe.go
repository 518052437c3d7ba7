package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidisotel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-ee05a192/redislock"
)

// connect makes a client whose every call is a span, and counts in rueidis_command_duration_seconds.
func connect(option rueidis.ClientOption, tracers trace.TracerProvider, meters metric.MeterProvider) (rueidis.Client, error) {
	return rueidisotel.NewClient(option,
		rueidisotel.WithTracerProvider(tracers), rueidisotel.WithMeterProvider(meters),
		rueidisotel.WithOpNameResolver(opNames{}), rueidisotel.WithOperationMetricAttr())
}

// opNames calls an FCALL by its function: "FCALL lock_acquire". It would be "FCALL".
type opNames struct {
	rueidisotel.DefaultOpNameResolver
}

func (o opNames) OpName(ctx context.Context, cmd rueidis.Completed) string {
	if words := cmd.Commands(); len(words) > 1 && strings.HasPrefix(words[0], "FCALL") {
		return words[0] + " " + words[1]
	}
	return o.DefaultOpNameResolver.OpName(ctx, cmd)
}

// observe is for redislock.Options.Observe. It makes metrics of the events, and adds them to the span in
// which Acquire was called. The time that a lock was held is a child span.
func observe(tracer trace.Tracer, meter metric.Meter) (func(context.Context, redislock.Event), error) {
	buckets := metric.WithExplicitBucketBoundaries(.001, .005, .01, .05, .1, .5, 1, 5, 10, 30, 60, 300)
	waited, err1 := meter.Float64Histogram("redislock.wait.duration", metric.WithUnit("s"), buckets,
		metric.WithDescription("How long a call took to get a lock, or to give up."))
	held, err2 := meter.Float64Histogram("redislock.hold.duration", metric.WithUnit("s"), buckets,
		metric.WithDescription("How long a lock was held."))
	lost, err3 := meter.Int64Counter("redislock.lost", metric.WithDescription("Locks that their holders have lost."))

	return func(ctx context.Context, e redislock.Event) {
		name := attribute.String("redislock.name", e.Name) // leave it out if there are many names
		span := trace.SpanFromContext(ctx)
		switch e.Kind {
		case redislock.EventAcquired:
			handed := attribute.Bool("redislock.handed_over", e.HandedOver)
			span.SetAttributes(name, handed, attribute.Int64("redislock.fence", e.Fence))
			waited.Record(ctx, e.Waited.Seconds(), metric.WithAttributes(name, handed, attribute.Bool("redislock.acquired", true)))
		case redislock.EventNotAcquired:
			span.SetAttributes(name)
			span.SetStatus(codes.Error, e.Err.Error())
			waited.Record(ctx, e.Waited.Seconds(), metric.WithAttributes(name, attribute.Bool("redislock.acquired", false)))
		case redislock.EventReleased, redislock.EventLost:
			_, span := tracer.Start(ctx, "lock.hold", trace.WithTimestamp(time.Now().Add(-e.Held)), trace.WithAttributes(name))
			if e.Err != nil {
				span.SetStatus(codes.Error, e.Err.Error())
			}
			span.End()
			held.Record(ctx, e.Held.Seconds(), metric.WithAttributes(name))
			if e.Kind == redislock.EventLost {
				lost.Add(ctx, 1, metric.WithAttributes(name))
			}
		}
	}, errors.Join(err1, err2, err3)
}

// acquire is locker.Acquire in a span of its own, above those of the calls to Redis.
func acquire(ctx context.Context, tracer trace.Tracer, locker *redislock.Locker, name string, opts ...redislock.Option) (*redislock.Lock, error) {
	ctx, span := tracer.Start(ctx, "lock.acquire")
	defer span.End()
	return locker.Acquire(ctx, name, opts...)
}
