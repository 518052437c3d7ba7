package spec

import (
	"bufio"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"
)

// Monitored is what a server was asked, line by line, see MONITOR.
type Monitored struct {
	client rueidis.Client
	mu     sync.Mutex
	conn   net.Conn
	lines  *bufio.Scanner
	seen   []string
}

// Monitor notes all that a server is asked from now on.
func Monitor(addr string) *Monitored {
	GinkgoHelper()
	conn, err := net.Dial("tcp", addr)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(conn.Close)
	_, err = io.WriteString(conn, "MONITOR\r\n")
	Expect(err).NotTo(HaveOccurred())
	lines := bufio.NewScanner(conn)
	Expect(lines.Scan()).To(BeTrue())
	Expect(lines.Text()).To(Equal("+OK"))
	return &Monitored{client: Connect(addr), conn: conn, lines: lines}
}

// Count is how many requests with these words the server has had until now.
func (m *Monitored) Count(words ...string) (n int) {
	GinkgoHelper()
	m.mu.Lock()
	defer m.mu.Unlock()
	now := strconv.Itoa(len(m.seen)) + " lines"
	Expect(Redis(m.client, "ECHO", now).Error()).NotTo(HaveOccurred())
	Expect(m.conn.SetReadDeadline(time.Now().Add(Soon))).To(Succeed())
	for line := ""; !strings.Contains(line, strconv.Quote(now)); m.seen = append(m.seen, line) {
		Expect(m.lines.Scan()).To(BeTrue())
		line = m.lines.Text()
	}
	for _, line := range m.seen {
		all := true
		for _, word := range words {
			all = all && strings.Contains(line, strconv.Quote(word))
		}
		if all {
			n++
		}
	}
	return n
}
