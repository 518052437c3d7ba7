package redislock

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock/internal/redistest"
	"github.com/seed-ee05a192/redislock/internal/wire"
)

// What clients in all languages read and write: see clients/vectors.
var _ = Describe("the texts of clients/vectors", func() {
	var texts struct {
		Keys []struct {
			Prefix, Name, Lock, Queue, State, Signals string
			All                                       string `json:"all_signals"`
			Error                                     bool
		}
		Prefixes []struct {
			Prefix string
			OK     bool
		}
		Orders  []struct{ Names, Locks []string }
		Signals []struct {
			Text, Token     string
			Fence, Deadline int64
			Error           bool
		}
		Errors []struct {
			Reply  string
			Passes bool
		}
		Owners []struct{ Owner, Label string }
	}
	BeforeEach(func() {
		text, err := os.ReadFile("clients/vectors/texts.json")
		Expect(err).NotTo(HaveOccurred())
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.DisallowUnknownFields()
		Expect(decoder.Decode(&texts)).To(Succeed())
	})

	It("keys", func() {
		Expect(texts.Keys).NotTo(BeEmpty())
		for _, want := range texts.Keys {
			k, err := keysOf(want.Prefix, want.Name)
			if want.Error {
				Expect(err).To(HaveOccurred(), want.Name)
				continue
			}
			Expect(err).NotTo(HaveOccurred(), want.Name)
			Expect([]string{k.Lock, k.Queue, k.State}).To(Equal([]string{want.Lock, want.Queue, want.State}))
			f := &functions{prefix: want.Prefix, id: "CLIENT", all: want.All}
			Expect(f.list(k)).To(Equal(want.All))
			f.perLock.Store(true)
			Expect(f.list(k)).To(Equal(want.Signals))
		}
	})
	It("prefixes", func() {
		Expect(texts.Prefixes).NotTo(BeEmpty())
		for _, want := range texts.Prefixes {
			_, err := Options{Prefix: want.Prefix}.withDefaults()
			Expect(err == nil).To(Equal(want.OK), want.Prefix)
		}
	})
	It("the order of several names", func() {
		Expect(texts.Orders).NotTo(BeEmpty())
		for _, want := range texts.Orders {
			order, err := (&Locker{opts: Options{Prefix: "lock"}}).inOrder("acquire", want.Names)
			Expect(err).NotTo(HaveOccurred())
			var locks []string
			for _, k := range order {
				locks = append(locks, k.Lock)
			}
			Expect(locks).To(Equal(want.Locks))
		}
	})
	It("signals", func() {
		Expect(texts.Signals).NotTo(BeEmpty())
		for _, want := range texts.Signals {
			s, ok := parseSignal(want.Text)
			Expect(ok).To(Equal(!want.Error), want.Text)
			if ok {
				Expect(s).To(Equal(wire.Signal{Fence: want.Fence, Deadline: want.Deadline, Token: want.Token}))
			}
		}
	})
	It("errors", func(ctx SpecContext) {
		server, err := redistest.Start()
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(server.Stop)
		client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server.Addr()}, DisableCache: true, DisableRetry: true})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(client.Close)
		Expect(texts.Errors).NotTo(BeEmpty())
		for _, want := range texts.Errors {
			err := reply(ctx, client, want.Reply)
			Expect(err).To(MatchError(strings.TrimPrefix(want.Reply, "ERR ")))
			failed := classify(err)
			Expect(wire.Passes(failed)).To(Equal(want.Passes), want.Reply)
			Expect(wire.MayArrive(failed)).To(BeFalse(), want.Reply)
		}
	})
	It("owners", func() {
		Expect(texts.Owners).NotTo(BeEmpty())
		for _, want := range texts.Owners {
			r := Options{Lease: defaultLease}.request("", WithOwner(want.Owner))
			Expect(r.complete("lock", "x")).To(Succeed())
			Expect(r.token[:strings.LastIndex(r.token, ":")]).To(Equal(want.Label))
		}
	})
})

// reply has the server answer with an error.
func reply(ctx context.Context, client rueidis.Client, text string) error {
	return client.Do(ctx, client.B().Eval().Script("return redis.error_reply(ARGV[1])").Numkeys(0).Arg(text).Build()).Error()
}
