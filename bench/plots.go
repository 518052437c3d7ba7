package main

import (
	"errors"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	plotWidth  = 8 * vg.Inch
	plotHeight = 4.5 * vg.Inch
)

func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.Padding = vg.Points(8)
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.Padding, p.Legend.TextStyle.Font.Size = vg.Points(2), vg.Points(10)
	p.Y.Label.Padding = vg.Points(6)
	p.Add(plotter.NewGrid())
	return p
}

// colors tell twelve lines apart, also for most of the colour-blind; the first is ours.
var colors = []color.Color{
	color.RGBA{R: 213, G: 30, B: 40, A: 255}, color.RGBA{R: 0, G: 114, B: 178, A: 255},
	color.RGBA{R: 86, G: 180, B: 233, A: 255}, color.RGBA{R: 150, G: 90, B: 0, A: 255},
	color.RGBA{R: 230, G: 159, B: 0, A: 255}, color.RGBA{R: 0, G: 140, B: 100, A: 255},
	color.RGBA{R: 190, G: 100, B: 170, A: 255}, color.RGBA{R: 150, G: 150, B: 150, A: 255},
	color.RGBA{R: 50, G: 50, B: 50, A: 255}, color.RGBA{R: 120, G: 170, B: 40, A: 255},
	color.RGBA{R: 90, G: 60, B: 160, A: 255}, color.RGBA{R: 0, G: 190, B: 190, A: 255},
}

// addLine adds one of several; each lock has the same look in all plots.
func addLine(p *plot.Plot, name string, look int, points plotter.XYs) error {
	line, marks, err := plotter.NewLinePoints(points)
	if err != nil {
		return err
	}
	line.Color, line.Width, line.Dashes = colors[look], vg.Points(1.2), nil
	if look == 0 {
		line.Width = vg.Points(2.5)
	}
	marks.Color, marks.Shape, marks.Radius = colors[look], plotutil.Shape(look), vg.Points(2.5)
	p.Add(line, marks)
	p.Legend.Add(name, line, marks)
	return nil
}

// save leaves a margin, so that the outermost labels are not cut off.
func (b *bench) save(p *plot.Plot, name string) error {
	const margin = 12
	c := vgsvg.New(plotWidth, plotHeight)
	canvas := draw.New(c)
	canvas.SetColor(color.White)
	canvas.Fill(canvas.Path())
	p.Draw(draw.Crop(canvas, margin, -2*margin, margin, -margin))
	f, err := os.Create(filepath.Join(b.plan.folder, name))
	if err != nil {
		return err
	}
	_, err = c.WriteTo(f)
	return errors.Join(err, f.Close())
}

// ticks names some values of an axis.
type ticks []plot.Tick

func (t ticks) Ticks(_, _ float64) []plot.Tick { return t }

func (b *bench) contendedPlots(all []*contended) error {
	if err := b.waitPlot(all); err != nil {
		return err
	}
	return b.ratePlot(all)
}

// waitPlot shows which share of the waits were over after how long, 16 contenders and 1 ms of hold.
func (b *bench) waitPlot(all []*contended) error {
	p := newPlot("Wait for the lock: 16 contenders, each holds it for 1 ms", "share of the waits that were not longer", "wait")
	// The distance of a share from 1 on a logarithmic scale, so that the few long waits are seen.
	place := func(percent float64) float64 { return 100 / (100 - percent) }
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.Legend.Top, p.Legend.XOffs = false, vg.Inch*5.2
	p.X.Min, p.X.Max = 1, place(99.9)
	shares := ticks{}
	for _, share := range []float64{0, 50, 90, 99, 99.9} {
		shares = append(shares, plot.Tick{Value: place(share), Label: strconv.FormatFloat(share, 'f', -1, 64) + " %"})
	}
	p.X.Tick.Marker = shares
	times := ticks{}
	for d := 100 * time.Microsecond; d <= 100*time.Second; d *= 10 {
		times = append(times, plot.Tick{Value: d.Seconds(), Label: d.String()})
	}
	p.Y.Tick.Marker = times
	drawn := false
	for i, peer := range peers {
		r := of(all, peer.name, 16, time.Millisecond)
		if r == nil || isRing(peer.name) && peer.name != ringName {
			continue
		}
		var points plotter.XYs
		for _, percent := range []float64{0, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90, 92.5, 95, 97, 98, 99, 99.5, 99.8, 99.9} {
			points = append(points, plotter.XY{X: place(percent), Y: max(quantile(r.waits, percent), 10*time.Microsecond).Seconds()})
		}
		if err := addLine(p, peer.name, i, points); err != nil {
			return err
		}
		drawn = true
	}
	if !drawn {
		return nil
	}
	return b.save(p, "waits.svg")
}

// ratePlot shows grants a second over the number of contenders, without hold.
func (b *bench) ratePlot(all []*contended) error {
	p := newPlot("Grants a second without hold", "contenders", "grants a second")
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.Y.Tick.Marker = plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = false, true
	counts := ticks{}
	drawn := false
	for i, peer := range peers {
		var points plotter.XYs
		for _, r := range all {
			if r.Lock != peer.name || r.Hold != 0 {
				continue
			}
			points = append(points, plotter.XY{X: float64(r.Contenders), Y: max(r.Rate.Median, 0.1)})
			if i == 0 {
				counts = append(counts, plot.Tick{Value: float64(r.Contenders), Label: strconv.Itoa(r.Contenders)})
			}
		}
		if len(points) == 0 {
			continue
		}
		if err := addLine(p, peer.name, i, points); err != nil {
			return err
		}
		drawn = true
	}
	p.X.Tick.Marker = counts
	if !drawn {
		return nil
	}
	return b.save(p, "rate.svg")
}

// handoverPlot shows bars of p50 and p99, in round trips.
func (b *bench) handoverPlot(far []*handedOver) error {
	p := newPlot("Hand-over with a round trip of 10 ms: from release to the next holder", "", "round trips (of a PING)")
	var names []string
	var p50, p99 plotter.Values
	for _, r := range far {
		names = append(names, r.Lock)
		p50 = append(p50, r.Ratio.Median)
		p99 = append(p99, r.P99In)
	}
	const width = 14
	for i, series := range []struct {
		name   string
		values plotter.Values
		fill   color.Color
	}{
		{"p50", p50, color.RGBA{R: 60, G: 110, B: 180, A: 255}},
		{"p99", p99, color.RGBA{R: 200, G: 210, B: 225, A: 255}},
	} {
		bars, err := plotter.NewBarChart(series.values, vg.Points(width))
		if err != nil {
			return err
		}
		bars.Color, bars.LineStyle.Width = series.fill, 0
		bars.Offset = vg.Points(width * (float64(i) - 0.5))
		p.Add(bars)
		p.Legend.Add(series.name, bars)
	}
	limit := plotter.NewFunction(func(float64) float64 { return 1 })
	limit.Color, limit.Dashes = color.Gray{Y: 80}, []vg.Length{vg.Points(4), vg.Points(3)}
	p.Add(limit)
	p.Legend.Add("limit", limit)
	// Polling takes any number of round trips: cut off what would squeeze the rest.
	p.Y.Min, p.Y.Max = 0, min(6, slices.Max(p99)*1.1)
	var cut plotter.XYLabels
	for i, r := range far {
		if r.P99In > p.Y.Max {
			cut.XYs = append(cut.XYs, plotter.XY{X: float64(i), Y: p.Y.Max * 0.93})
			cut.Labels = append(cut.Labels, fmt.Sprintf("%s / %s", digits(r.Ratio.Median), digits(r.P99In)))
		}
	}
	if len(cut.Labels) > 0 {
		labels, err := plotter.NewLabels(cut)
		if err != nil {
			return err
		}
		for i := range labels.TextStyle {
			labels.TextStyle[i].XAlign = draw.XCenter
		}
		p.Add(labels)
	}
	p.NominalX(names...)
	p.X.Tick.Label.Font.Size = vg.Points(9)
	p.X.Padding = vg.Points(10)
	p.X.Max = float64(len(names)) - 0.5
	p.X.Min = -0.5
	return b.save(p, "handover.svg")
}

// fcallPlot shows the time of each function over the length of the queue.
func (b *bench) fcallPlot(costs []*fcallCost) error {
	p := newPlot("Time of each call on the server over the length of the queue", "waiters in the queue", "µs")
	p.X.Scale = plot.LogScale{}
	p.Y.Min = 0
	marks := ticks{}
	for _, d := range b.plan.depths {
		marks = append(marks, plot.Tick{Value: float64(d), Label: strconv.Itoa(d)})
	}
	p.X.Tick.Marker = marks
	lines := make(map[string]plotter.XYs)
	var calls []string
	for _, c := range costs {
		if c.Depth == 0 || c.Call == inspectCall {
			continue
		}
		if lines[c.Call] == nil {
			calls = append(calls, c.Call)
		}
		lines[c.Call] = append(lines[c.Call], plotter.XY{X: float64(c.Depth), Y: c.Usec.Median})
		p.Y.Max = max(p.Y.Max, c.Usec.Median*1.5)
	}
	for i, call := range calls {
		slices.SortFunc(lines[call], func(a, b plotter.XY) int { return int(a.X - b.X) })
		if err := addLine(p, call, i, lines[call]); err != nil {
			return fmt.Errorf("%s: %w", call, err)
		}
	}
	return b.save(p, "cost.svg")
}
