package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"charm.land/bubbles/v2/textinput"
	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/redis/rueidis"
)

const (
	frame   = 5 // lines around the rows: two of title, one of headings, status, help
	listHas = "↑↓ move  enter queue  / filter  s sort  S reverse  r reset  q quit"
	oneHas  = "↑↓ move  esc back  r reset  q quit"
)

var (
	bold = lipgloss.NewStyle().Bold(true)
	dim  = lipgloss.NewStyle().Faint(true)
	bad  = lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Red)
	here = lipgloss.NewStyle().Reverse(true)
)

// model is the screen: a list of locks, or (open) the queue of one.
type model struct {
	ctx      context.Context //nolint:containedctx // bubbletea's commands take none
	c        *collector
	server   string
	interval time.Duration

	width, height int
	snap          Snapshot
	order         order
	rows          []Lock // of snap, as ordered
	list, queue   cursor
	chosen        string // the tagged name under the list's cursor: it stays there when the order changes

	open    *Lock // whose queue is shown
	waiters []Waiter
	asked   *Lock // whose reset awaits a yes
	typing  bool  // the filter
	input   textinput.Model
	status  string
}

// cursor is a place in a list, and the first line of it that is on the screen.
type cursor struct{ at, top int }

type (
	snapshotMsg Snapshot
	tickMsg     struct{}
	lockMsg     struct { // one lock, read anew
		lock    Lock
		waiters []Waiter
		err     error
	}
	resetMsg struct {
		lock   Lock
		taken  bool
		err    error
		tokens bool
	}
)

func newModel(ctx context.Context, c *collector, list order, server string, interval time.Duration) *model {
	input := textinput.New()
	input.Prompt = "/"
	input.SetVirtualCursor(true)
	return &model{ctx: ctx, c: c, order: list, server: server, interval: interval, width: 80, height: 24, input: input}
}

func (m *model) Init() tea.Cmd { return m.refresh }

// refresh runs alone: its end asks for the next one.
func (m *model) refresh() tea.Msg { return snapshotMsg(m.c.refresh(m.ctx, m.interval)) }

func (m *model) read(l Lock) tea.Cmd {
	return func() tea.Msg {
		lock, waiters, err := m.c.read(m.ctx, l.tagged)
		return lockMsg{lock, waiters, err}
	}
}

func (m *model) reset(l Lock) tea.Cmd {
	return func() tea.Msg {
		taken, err := m.c.reset(m.ctx, l.tagged, l.Token)
		return resetMsg{l, taken, err, m.c.tokens}
	}
}

func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	var cmd tea.Cmd
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tickMsg:
		cmd = m.refresh
	case snapshotMsg:
		m.snap = Snapshot(msg)
		cmd = tea.Tick(m.interval, func(time.Time) tea.Msg { return tickMsg{} })
		if m.open != nil {
			cmd = tea.Batch(cmd, m.read(*m.open))
		}
	case lockMsg:
		m.update(msg)
	case resetMsg:
		m.status = outcome(msg)
		cmd = m.read(msg.lock)
	case tea.PasteMsg:
		if m.typing {
			m.input, cmd = m.input.Update(msg)
			m.order.filter = m.input.Value()
		}
	case tea.KeyPressMsg:
		switch {
		case msg.String() == "ctrl+c":
			return m, tea.Quit
		case m.asked != nil:
			cmd = m.answer(msg)
		case m.typing:
			cmd = m.typed(msg)
		default:
			cmd = m.pressed(msg)
		}
	default: // the blinking of the input's cursor
		m.input, cmd = m.input.Update(msg)
	}
	m.arrange()
	return m, cmd
}

// update shows the last reading in the rows and the open queue.
func (m *model) update(msg lockMsg) {
	if msg.err != nil {
		msg.lock.Error = msg.err.Error()
	}
	i := slices.IndexFunc(m.snap.Locks, func(l Lock) bool { return l.tagged == msg.lock.tagged })
	if i >= 0 && msg.err == nil {
		m.snap.Locks[i] = msg.lock
	}
	if m.open == nil || m.open.tagged != msg.lock.tagged {
		return
	}
	if msg.err != nil {
		m.open.Error = msg.lock.Error
		return
	}
	m.open, m.waiters = &msg.lock, msg.waiters
}

func outcome(msg resetMsg) string {
	name, holder := quote(msg.lock.Name), holderOf(&msg.lock, msg.tokens)
	if _, said := rueidis.IsRedisErr(msg.err); said {
		return fmt.Sprintf("not reset: %s", oneLine(msg.err))
	}
	switch {
	case msg.err != nil:
		return fmt.Sprintf("look again whether %s was reset, the answer did not come: %s", name, oneLine(msg.err))
	case msg.taken:
		return fmt.Sprintf("%s was taken away from %s", name, holder)
	}
	return fmt.Sprintf("%s was not held by %s any more: nothing was reset", name, holder)
}

// arrange runs after every change: it sorts the rows and moves the cursors inside them.
func (m *model) arrange() {
	m.rows = m.order.apply(m.snap.Locks)
	if i := slices.IndexFunc(m.rows, func(l Lock) bool { return l.tagged == m.chosen }); i >= 0 {
		m.list.at = i
	}
	m.list.keep(len(m.rows), m.lines())
	if m.chosen = ""; len(m.rows) > 0 {
		m.chosen = m.rows[m.list.at].tagged
	}
	m.queue.keep(len(m.waiters), m.lines())
}

func (m *model) lines() int { return max(1, m.height-frame) }

// keep makes the cursor stay on an element and on the screen.
func (c *cursor) keep(n, lines int) {
	c.at = max(0, min(c.at, n-1))
	c.top = max(0, min(c.top, c.at, n-lines), c.at-lines+1)
}

// answer: only y is a yes.
func (m *model) answer(key tea.KeyPressMsg) tea.Cmd {
	lock := *m.asked
	m.asked = nil
	if key.String() != "y" {
		m.status = "not reset"
		return nil
	}
	m.status = "resetting " + quote(lock.Name)
	return m.reset(lock)
}

func (m *model) typed(key tea.KeyPressMsg) (cmd tea.Cmd) {
	switch key.String() {
	case "enter":
		m.typing = false
	case "esc":
		m.typing = false
		m.input.Reset()
	default:
		m.input, cmd = m.input.Update(key)
	}
	if !m.typing {
		m.input.Blur()
	}
	m.order.filter = m.input.Value()
	return cmd
}

func (m *model) pressed(key tea.KeyPressMsg) tea.Cmd {
	m.status = ""
	switch key.String() {
	case "q":
		return tea.Quit
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "pgup", "ctrl+b":
		m.move(-m.lines())
	case "pgdown", "ctrl+f", "space":
		m.move(m.lines())
	case "home", "g":
		m.move(-len(m.rows) - len(m.waiters))
	case "end", "G":
		m.move(len(m.rows) + len(m.waiters))
	case "r":
		m.ask()
	case "esc":
		if m.open == nil {
			m.order.filter = ""
		}
		m.open, m.waiters, m.queue = nil, nil, cursor{}
	default:
		if m.open == nil {
			return m.pressedInList(key)
		}
	}
	return nil
}

// move may leave the list: arrange corrects that.
func (m *model) move(by int) {
	if m.open != nil {
		m.queue.at += by
		return
	}
	m.list.at += by
	m.chosen = "" // from now on the cursor stays at its place
}

func (m *model) pressedInList(key tea.KeyPressMsg) tea.Cmd {
	switch key.String() {
	case "enter":
		if len(m.rows) > 0 {
			lock := m.rows[m.list.at]
			m.open = &lock
			return m.read(lock)
		}
	case "/":
		m.typing = true
		m.input.SetValue(m.order.filter)
		return m.input.Focus()
	case "s":
		m.order.column = (m.order.column + 1) % len(columns)
		m.order.reverse = false
	case "S":
		m.order.reverse = !m.order.reverse
	}
	return nil
}

// ask remembers the lock as shown: the user's yes means this holder.
func (m *model) ask() {
	lock := m.open
	if lock == nil && len(m.rows) > 0 {
		lock = &m.rows[m.list.at]
	}
	switch {
	case lock == nil:
	case lock.Token == "":
		m.status = "nobody holds " + quote(lock.Name)
	default:
		asked := *lock
		m.asked = &asked
	}
}

func (m *model) View() tea.View {
	content := m.listView()
	if m.open != nil {
		content = m.queueView()
	}
	lines := strings.Split(content, "\n")
	for len(lines) < m.lines()+frame-2 {
		lines = append(lines, "")
	}
	lines = append(lines, m.statusLine())
	help := listHas
	if m.open != nil {
		help = oneHas
	}
	lines = append(lines, dim.Render(help))
	for i := range lines {
		lines[i] = ansi.Truncate(lines[i], m.width, "…")
	}
	v := tea.NewView(strings.Join(lines[:min(len(lines), m.height)], "\n"))
	v.AltScreen = true
	v.WindowTitle = "redislock top"
	return v
}

func (m *model) listView() string {
	var waiting int64
	for i := range m.snap.Locks {
		waiting += m.snap.Locks[i].Waiting
	}
	sorted := columns[m.order.column].sort
	if m.order.reverse {
		sorted += " reversed"
	}
	about := fmt.Sprintf("%s locks, %s waiting, by %s", thousands(len(m.snap.Locks)), thousands(waiting), sorted)
	if m.order.filter != "" {
		about += fmt.Sprintf(", %s with %s", thousands(len(m.rows)), quote(m.order.filter))
	}
	if !m.snap.Complete {
		about += fmt.Sprintf(" (%s keys looked at so far)", thousands(m.snap.Looked))
	}
	lines := []string{bold.Render("redislock top  ") + m.server, about}

	rows := [][]string{titles()}
	for i := range m.rows {
		rows = append(rows, cells(&m.rows[i], m.c.tokens))
	}
	widths := fit(rows, m.width-2)
	lines = append(lines, bold.Render("  "+line(rows[0], widths, right)))
	for i := m.list.top; i < len(m.rows) && i < m.list.top+m.lines(); i++ {
		lines = append(lines, marked(i == m.list.at, line(rows[i+1], widths, right)))
	}
	return strings.Join(lines, "\n")
}

func (m *model) queueView() string {
	l := m.open
	shown := cells(l, m.c.tokens)
	about := "nobody holds it"
	if l.Token != "" {
		about = fmt.Sprintf("held by %s for %s, lease left %s", shown[2], shown[3], shown[4]) // 80 columns, with 128 random bits
	}
	title := bold.Render(shown[0]) + "  fence " + shown[7] + ", " + strconv.FormatInt(l.Waiting, 10) + " waiting"
	if int(l.Waiting) > len(m.waiters) && len(m.waiters) > 0 {
		title += fmt.Sprintf(", the first %s are shown", thousands(len(m.waiters)))
	}
	lines := []string{title, about}
	widths := []int{5, max(8, m.width-2-5-3*9-4), 9, 9, 9}
	right := func(column int) bool { return column != 1 }
	lines = append(lines, bold.Render("  "+line([]string{"PLACE", "OWNER", "WAITED", "LAPSES IN", "LEASE"}, widths, right)))
	for i := m.queue.top; i < len(m.waiters) && i < m.queue.top+m.lines(); i++ {
		w := m.waiters[i]
		lease := "never"
		if w.Lease > 0 {
			lease = span(w.Lease)
		}
		lines = append(lines, marked(i == m.queue.at,
			line([]string{strconv.Itoa(i + 1), ownerOrToken(w.Owner, w.Token, m.c.tokens), span(w.Waited), span(w.LapsesIn), lease}, widths, right)))
	}
	return strings.Join(lines, "\n")
}

func marked(yes bool, row string) string {
	if yes {
		return here.Render("> " + row)
	}
	return "  " + row
}

func (m *model) statusLine() string {
	switch {
	case m.asked != nil:
		room := max(8, (m.width-44)/2) // for each of the two, so the question is readable to its end
		return bad.Render(fmt.Sprintf("Take %s away from %s? It may be at work. y/N",
			ansi.Truncate(quote(m.asked.Name), room, "…"), ansi.Truncate(holderOf(m.asked, m.c.tokens), room, "…")))
	case m.typing:
		return m.input.View()
	}
	// The answer to a key stays until the next key. It must not hide that the list is old.
	var parts []string
	if m.status != "" {
		parts = append(parts, bold.Render(m.status))
	}
	switch {
	case m.open != nil && m.open.Error != "":
		parts = append(parts, bad.Render(quote(m.open.Error)))
	case len(m.snap.Errors) > 0:
		parts = append(parts, bad.Render(quote(strings.Join(m.snap.Errors, "; "))))
	}
	return strings.Join(parts, "; ")
}
