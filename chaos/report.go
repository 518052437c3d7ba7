package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"
)

// timelineLines is how much of the history a violation shows.
const timelineLines = 30

// merge adds the verdict of one more episode.
func (v *verdict) merge(o *verdict) {
	v.violations = append(v.violations, o.violations...)
	for _, pair := range []struct{ to, from map[string]int }{
		{v.checked, o.checked}, {v.excused, o.excused}, {v.faults, o.faults},
	} {
		for key, n := range pair.from {
			pair.to[key] += n
		}
	}
	v.ops += o.ops
	v.grants += o.grants
	v.pending += o.pending
	v.refused += o.refused
	v.writes += o.writes
	if o.worst > v.worst {
		v.worst, v.worstBound, v.worstAt, v.worstName = o.worst, o.worstBound, o.worstAt, o.worstName
	}
}

func (v *verdict) print(w io.Writer, title string, took time.Duration) {
	fmt.Fprintf(w, "\n%s: %v\n", title, took.Round(time.Second))
	fmt.Fprintf(w, "  operations  %d, of them %d grants (%.0f/s), %d unanswered at the end\n",
		v.ops, v.grants, float64(v.grants)/took.Seconds(), v.pending)
	fmt.Fprintf(w, "  register    %d writes accepted, %d calls with an old token refused\n", v.writes, v.refused)
	fmt.Fprintf(w, "  faults      %s\n", counts(v.faults))
	fmt.Fprintf(w, "  violations  %d\n", len(v.violations))
	for _, name := range judgeNames {
		fmt.Fprintf(w, "    %-28s %4d of %d checked\n", name, v.found(name), v.checked[name])
	}
	fmt.Fprintln(w, "  excused, or not to be judged")
	for _, why := range slices.Sorted(maps.Keys(v.excused)) {
		fmt.Fprintf(w, "    %4d %s\n", v.excused[why], why)
	}
	if len(v.excused) == 0 {
		fmt.Fprintln(w, "       0")
	}
	fmt.Fprintf(w, "  worst stall %v", v.worst.Round(time.Millisecond))
	if v.worstBound > 0 {
		fmt.Fprintf(w, " (allowed there: %v)", v.worstBound.Round(time.Millisecond))
	}
	fmt.Fprintln(w)
}

func counts(m map[string]int) string {
	if len(m) == 0 {
		return "none"
	}
	keys := slices.Sorted(maps.Keys(m))
	parts := make([]string, len(keys))
	for i, key := range keys {
		parts[i] = fmt.Sprintf("%s %d", key, m[key])
	}
	return strings.Join(parts, ", ")
}

// printViolation shows a violation with what happened around it.
func printViolation(w io.Writer, h *history, x violation) {
	fmt.Fprintf(w, "\nVIOLATION %s, lock %q, at %s: %s\n", x.judge, x.name, h.clock(x.at), x.text)
	from, to := x.since-int64(200*time.Millisecond), x.at+int64(300*time.Millisecond)
	type entry struct {
		at   int64
		text string
	}
	var lines []entry
	h.mu.Lock()
	defer h.mu.Unlock()
	ended := map[string]int64{}
	for _, o := range h.ops() {
		if end := max(o.release, o.end); !o.held || o.release != 0 {
			ended[o.id] = end
		}
	}
	for _, e := range h.events {
		if e.Name != x.name || e.T < from || e.T > to {
			continue
		}
		text := fmt.Sprintf("client   %-14s %s", e.Op, e.Kind)
		if e.Fence != 0 {
			text += fmt.Sprintf(" token %d", e.Fence)
		}
		if e.Deadline != 0 {
			text += " until " + h.clock(e.Deadline)
		}
		if e.Err != "" {
			text += ": " + e.Err
		}
		lines = append(lines, entry{e.T, text})
	}
	for _, e := range h.server {
		at := h.wall(e.at)
		if e.name != x.name && e.kind != srvGap || at < from || at > to {
			continue
		}
		text := fmt.Sprintf("server   %-14s %s", labelOf(e.token), e.kind)
		if e.number != 0 {
			text += fmt.Sprintf(" %d", e.number)
		}
		if e.fn != "" {
			text += fmt.Sprintf(" (%s of %s at %s)", e.fn, labelOf(e.caller), e.node)
		}
		if end := ended[labelOf(e.token)]; e.kind == srvGrant && end != 0 && end < at {
			text += ": a ghost, it was through at " + h.clock(end)
		}
		lines = append(lines, entry{at, text})
	}
	for _, e := range h.register {
		if e.name != x.name || e.t < from || e.t > to {
			continue
		}
		what := fmt.Sprintf("read %d", e.value)
		if e.write {
			what = fmt.Sprintf("write %d over %d", e.base+1, e.value)
		}
		if e.refused {
			what += " REFUSED"
		}
		lines = append(lines, entry{e.t, fmt.Sprintf("register %-14s %s, token %d", e.op, what, e.fence)})
	}
	sort.SliceStable(lines, func(i, j int) bool { return lines[i].at < lines[j].at })
	// Of a long story, the begin and the end are told, and all that is about those concerned.
	if cut := len(lines) - timelineLines; cut > 0 {
		middle := lines[timelineLines/2 : timelineLines/2+cut]
		var about []entry
		for _, line := range middle {
			// In a stall, who was granted the lock meanwhile is the point.
			grant := x.judge == judgeWaiting && strings.Contains(line.text, " "+srvGrant+" ")
			near := grant || line.at > x.at-int64(5*time.Millisecond) && line.at < x.at+int64(2*time.Millisecond)
			if near || slices.ContainsFunc(x.ops, func(op string) bool { return strings.Contains(line.text, op+" ") }) {
				about = append(about, line)
			}
		}
		about = append(about, entry{middle[cut-1].at, fmt.Sprintf("... %d lines about others are left out", cut-len(about))})
		lines = slices.Concat(lines[:timelineLines/2], about, lines[timelineLines/2+cut:])
	}
	for _, f := range h.faults {
		if f.overlaps(from-int64(5*time.Second), to) {
			lines = append(lines, entry{f.from, "FAULT    " + f.describe(h)})
		}
	}
	sort.SliceStable(lines, func(i, j int) bool { return lines[i].at < lines[j].at })
	for _, line := range lines {
		fmt.Fprintf(w, "  %s  %s\n", h.clock(line.at), line.text)
	}
}

func (f *fault) describe(h *history) string {
	text := f.kind
	if f.worker != everyone {
		text += fmt.Sprintf(" of w%d", f.worker)
	}
	if f.name != "" {
		text += fmt.Sprintf(" %s of %s", f.key, f.name)
	}
	if f.to < h.end {
		text += " until " + h.clock(f.to)
	}
	if f.note != "" {
		text += " (" + f.note + ")"
	}
	return text
}

// clock is a time since the begin of the episode.
func (h *history) clock(t int64) string {
	return fmt.Sprintf("%10.4fs", time.Duration(t-h.start).Seconds())
}
