package systemtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/redis/rueidis"

	"github.com/seed-ee05a192/redislock"
	"github.com/seed-ee05a192/redislock/internal/redistest"
	. "github.com/seed-ee05a192/redislock/internal/spec"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// signed is a new certificate, for 127.0.0.1; nil signs itself, as an authority.
func (a *authority) signed(serial int64) *authority {
	GinkgoHelper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	Expect(err).NotTo(HaveOccurred())
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: "redislock test " + strconv.FormatInt(serial, 10)},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if a == nil {
		template.IsCA, template.BasicConstraintsValid = true, true
		a = &authority{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	Expect(err).NotTo(HaveOccurred())
	cert, err := x509.ParseCertificate(der)
	Expect(err).NotTo(HaveOccurred())
	return &authority{cert, key}
}

// files writes certificate and key to a folder of the spec.
func (a *authority) files() (cert, key string) {
	GinkgoHelper()
	der, err := x509.MarshalECPrivateKey(a.key)
	Expect(err).NotTo(HaveOccurred())
	dir := GinkgoT().TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: a.cert.Raw}, key: {Type: "EC PRIVATE KEY", Bytes: der}} {
		Expect(os.WriteFile(file, pem.EncodeToMemory(block), 0o600)).To(Succeed())
	}
	return cert, key
}

// trusted is a client's configuration that trusts this authority and shows these certificates.
func (a *authority) trusted(own ...*authority) *tls.Config {
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	config.RootCAs.AddCert(a.cert)
	for _, o := range own {
		config.Certificates = append(config.Certificates, tls.Certificate{Certificate: [][]byte{o.cert.Raw}, PrivateKey: o.key})
	}
	return config
}

var _ = Describe("TLS, with certificates for both sides", func() {
	var (
		own    *redistest.Server
		addr   string // of the TLS port
		ca     *authority
		client *authority
	)
	// serve has the server show this certificate from now on.
	serve := func(cert *authority) {
		GinkgoHelper()
		certFile, keyFile := cert.files()
		Expect(own.Do("CONFIG", "SET", "tls-cert-file", certFile, "tls-key-file", keyFile).Error()).NotTo(HaveOccurred())
	}
	over := func(config *tls.Config) func(*rueidis.ClientOption) {
		return func(o *rueidis.ClientOption) { o.TLSConfig = config }
	}
	BeforeEach(func() {
		ca = (*authority)(nil).signed(1)
		client = ca.signed(2)
		caFile, _ := ca.files()
		own = OwnServer("--tls-auth-clients", "yes", "--tls-ca-cert-file", caFile)
		serve(ca.signed(3))
		port := own.Port() + 10_000 // was free as well, see redistest
		addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		Expect(own.Do("CONFIG", "SET", "tls-port", strconv.Itoa(port)).Error()).NotTo(HaveOccurred())
		Put(Connect(own.Addr()), redislock.Source())
	})

	It("carries the whole life of a lock", func(ctx SpecContext) {
		Expect(life(ctx, Connect(addr, over(ca.trusted(client))), "x")).To(Succeed())
	})

	It("is refused at once if one side does not trust the other", func() {
		stranger := (*authority)(nil).signed(4)
		dial := func(config *tls.Config) error {
			option := ClientOption(addr)
			over(config)(&option)
			return Second(rueidis.NewClient(option))
		}
		err := dial(stranger.trusted(client))
		var unknown x509.UnknownAuthorityError
		Expect(errors.As(err, &unknown)).To(BeTrue())
		Expect(err).To(MatchError(ContainSubstring("x509: certificate signed by unknown authority")))
		for _, config := range []*tls.Config{ca.trusted(), ca.trusted(stranger.signed(5)), nil} {
			Expect(dial(config)).NotTo(Succeed())
		}
	})

	It("may turn bad: that is told, and those who wait go on when it is good again", func(ctx SpecContext) {
		lock := MustAcquire(ctx, NewLocker(own.Addr()), "x")
		l, err := redislock.New(Connect(addr, over(ca.trusted(client))), redislock.Options{})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(l.Close)
		next := Acquiring(ctx, l, "x", 1)
		serve((*authority)(nil).signed(6).signed(7))
		Expect(own.Do("CLIENT", "KILL", "TYPE", "normal").Error()).NotTo(HaveOccurred())
		Eventually(func() error { return Second(l.TryAcquire(ctx, "y")) }).Should(MatchError(And(ContainSubstring("x509"), ContainSubstring(`"y"`))))
		Eventually(func() error {
			waiting, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			return Second(l.Acquire(waiting, "y"))
		}).Should(And(MatchError(redislock.ErrUnavailable), MatchError(context.DeadlineExceeded), MatchError(ContainSubstring("x509"))))
		Expect(next).NotTo(Receive())
		serve(ca.signed(8))
		Expect(lock.Release(ctx)).To(Succeed())
		Expect((<-next).Release(ctx)).To(Succeed())
	})
})
