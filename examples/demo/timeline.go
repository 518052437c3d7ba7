package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

type style string

const (
	plain style = ""
	bold  style = "1"
	dim   style = "2"
	red   style = "31"
	green style = "32"
)

// timeline prints what happens, as it happens.
type timeline struct {
	out   io.Writer
	color bool
}

// newTimeline prints in colour only on a terminal, without NO_COLOR.
func newTimeline(out *os.File) *timeline {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &timeline{out, terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

func (t *timeline) print(s style, format string, args ...any) {
	line := strings.TrimRight(fmt.Sprintf(format, args...), " ")
	if t.color && s != plain {
		line = "\x1b[" + string(s) + "m" + line + "\x1b[0m"
	}
	_, _ = fmt.Fprintln(t.out, line) // a broken pipe comes as a signal
}

const columns = "%7s  %-6s %-7s %-48s %-17s %s"

func (t *timeline) head() {
	t.print(bold, columns, "ms", "worker", "place", "what happens", "fencing token", "hand-over")
}

func (t *timeline) scene(title string) { t.print(bold, "-- %s", title) }

// row is one line; a zero field stays empty.
type row struct {
	style    style
	at       time.Duration
	who      string
	place    string
	what     string
	fence    int64
	handOver string
}

func (t *timeline) add(r row) {
	fence := ""
	if r.fence != 0 {
		fence = strconv.FormatInt(r.fence, 10)
	}
	t.print(r.style, columns, strconv.FormatInt(r.at.Milliseconds(), 10), r.who, r.place, r.what, fence, r.handOver)
}

func ms(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.2f ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}
