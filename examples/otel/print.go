package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// print shows the trace of the longest turn, that of the lock that was lost, and the metrics.
func (t *telemetry) print(ctx context.Context, w io.Writer) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	spans := t.spans.GetSpans()
	var longest, lost tracetest.SpanStub
	for _, s := range spans {
		if s.Name == "turn" && length(s) > length(longest) {
			longest = s
		}
		if s.Name == "lock.acquire" && !s.Parent.IsValid() {
			lost = s
		}
	}
	fmt.Fprintln(out, "SPAN\tTOOK\t")
	for _, root := range []tracetest.SpanStub{longest, lost} {
		printTree(out, spans, root, 0)
		fmt.Fprintln(out, "\t\t")
	}
	if err := out.Flush(); err != nil {
		return err
	}

	var data metricdata.ResourceMetrics
	if err := t.metrics.Collect(ctx, &data); err != nil {
		return err
	}
	var lines []string
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch points := m.Data.(type) {
			case metricdata.Histogram[float64]:
				for _, p := range points.DataPoints {
					most, _ := p.Max.Value()
					lines = append(lines, fmt.Sprintf("%s\t%d\t%s\t%s\t%s", m.Name, p.Count,
						seconds(p.Sum/float64(p.Count)), seconds(most), p.Attributes.Encoded(attributes)))
				}
			case metricdata.Sum[int64]:
				for _, p := range points.DataPoints {
					lines = append(lines, fmt.Sprintf("%s\t%d\t\t\t%s", m.Name, p.Value, p.Attributes.Encoded(attributes)))
				}
			}
		}
	}
	slices.Sort(lines)
	fmt.Fprintf(out, "METRIC\tCOUNT\tMEAN\tMOST\t\n%s\n", strings.Join(lines, "\n"))
	return out.Flush()
}

func printTree(w io.Writer, all []tracetest.SpanStub, s tracetest.SpanStub, depth int) {
	var more []string
	for _, a := range s.Attributes {
		if key, ours := strings.CutPrefix(string(a.Key), "redislock."); ours {
			more = append(more, key+"="+a.Value.String())
		}
	}
	if s.Status.Code == codes.Error {
		more = append(more, "error: "+s.Status.Description)
	}
	fmt.Fprintf(w, "%s%s\t%s\t%s\n", strings.Repeat("  ", depth), s.Name, seconds(length(s).Seconds()), strings.Join(more, " "))
	for _, child := range childrenOf(all, s.SpanContext.SpanID()) {
		printTree(w, all, child, depth+1)
	}
}

func childrenOf(all []tracetest.SpanStub, parent trace.SpanID) (children []tracetest.SpanStub) {
	for _, s := range all {
		if s.Parent.SpanID() == parent {
			children = append(children, s)
		}
	}
	slices.SortFunc(children, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
	return children
}

var attributes = attribute.DefaultEncoder()

func length(s tracetest.SpanStub) time.Duration { return s.EndTime.Sub(s.StartTime) }

func seconds(s float64) string { return fmt.Sprintf("%.1f ms", s*1000) }
