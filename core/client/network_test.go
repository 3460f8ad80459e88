package client

import (
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Proxies, certificates and redirects, with real servers.

// proxy forwards everything to one address, whatever host was asked for.
type proxy struct {
	*httptest.Server
	asked, tunnels atomic.Int32
	login          atomic.Value // Proxy-Authorization
}

func newProxy(t *testing.T, target string) *proxy {
	p := &proxy{}
	p.login.Store("")
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.login.Store(r.Header.Get("Proxy-Authorization"))
		if r.Method == http.MethodConnect {
			p.tunnels.Add(1)
			tunnel(w, u.Host)
			return
		}
		p.asked.Add(1)
		if r.URL.Host != "homeserver.invalid" {
			t.Errorf("the proxy was asked for %s", r.URL)
		}
		r.URL.Scheme, r.URL.Host, r.RequestURI = u.Scheme, u.Host, ""
		a, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			w.WriteHeader(502)
			return
		}
		defer func() { _ = a.Body.Close() }()
		w.WriteHeader(a.StatusCode)
		_, _ = io.Copy(w, a.Body)
	}))
	t.Cleanup(p.Close)
	return p
}

func tunnel(w http.ResponseWriter, to string) {
	there, err := net.Dial("tcp", to)
	if err != nil {
		w.WriteHeader(502)
		return
	}
	here, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		_ = there.Close()
		return
	}
	_, _ = here.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	go func() { _, _ = io.Copy(there, here); _ = there.Close() }()
	go func() { _, _ = io.Copy(here, there); _ = here.Close() }()
}

func TestProxy(t *testing.T) {
	f := newFake(t)
	p := newProxy(t, f.URL)
	address := strings.Replace(p.URL, "http://", "http://user:secret@", 1)
	d := newDriver(t, Config{HomeserverURL: "http://homeserver.invalid", AccessToken: "a", ProxyURL: address}).start()
	d.waitSync("syncing")
	if p.asked.Load() < 2 || !strings.HasPrefix(p.login.Load().(string), "Basic ") {
		t.Errorf("%d requests, login %q", p.asked.Load(), p.login.Load())
	}
}

// A proxy that is not there is trouble with the network, and its password stays out of what is told.
func TestProxyThatIsDown(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	d := newDriver(t, Config{HomeserverURL: "http://homeserver.invalid", AccessToken: "a", ProxyURL: "http://user:sesame@" + listener.Addr().String()}).start()
	if e := d.waitSync("reconnecting"); e == nil || e.Status != ErrNetwork || strings.Contains(e.Message, "sesame") {
		t.Fatalf("error: %+v", e)
	}
}

// tlsFake is a fake behind TLS and HTTP/2 with a certificate that only ca trusts.
func tlsFake(t *testing.T) (f *fake, server *httptest.Server, ca string) {
	f = newFake(t)
	server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return f, server, ca
}

func TestCAFile(t *testing.T) {
	_, server, ca := tlsFake(t)
	newDriver(t, Config{HomeserverURL: server.URL, AccessToken: "a", CAFile: ca}).start().waitSync("syncing")
	d := newDriver(t, Config{HomeserverURL: server.URL, AccessToken: "a"}).start()
	if e := d.waitSync("reconnecting"); e == nil || e.Status != ErrNetwork || !strings.Contains(e.Message, "certificate") {
		t.Fatalf("error: %+v", e)
	}
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{HomeserverURL: server.URL, AccessToken: "a", CAFile: empty}, func(Event) {}, nil); AsError(err) == nil || AsError(err).Path != "/ca_file" {
		t.Errorf("%v", err)
	}
}

// TLS goes through a proxy as a tunnel; who is at its end is still checked.
func TestTLSThroughProxy(t *testing.T) {
	_, server, ca := tlsFake(t)
	p := newProxy(t, server.URL)
	newDriver(t, Config{HomeserverURL: "https://example.com", AccessToken: "a", CAFile: ca, ProxyURL: p.URL}).start().waitSync("syncing")
	if p.tunnels.Load() == 0 || p.asked.Load() != 0 {
		t.Errorf("%d tunnels, %d requests", p.tunnels.Load(), p.asked.Load())
	}
	d := newDriver(t, Config{HomeserverURL: "https://somebody.else", AccessToken: "a", CAFile: ca, ProxyURL: p.URL}).start()
	if e := d.waitSync("reconnecting"); e == nil || e.Status != ErrNetwork || !strings.Contains(e.Message, "certificate") {
		t.Fatalf("error: %+v", e)
	}
}

// relay passes bytes on to an address. What goes through connections that are cut falls silent: as
// after a sleep or in another network nobody says that they are dead.
type relay struct {
	net.Listener
	mu  sync.Mutex
	cut []chan struct{}
}

func newRelay(t *testing.T, to string) *relay {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: listener}
	over := make(chan struct{})
	t.Cleanup(func() { close(over); _ = listener.Close() })
	go func() {
		for {
			here, err := listener.Accept()
			if err != nil {
				return
			}
			there, err := net.Dial("tcp", to)
			if err != nil {
				_ = here.Close()
				continue
			}
			cut := make(chan struct{})
			r.mu.Lock()
			r.cut = append(r.cut, cut)
			r.mu.Unlock()
			go func() { <-over; _ = here.Close(); _ = there.Close() }()
			for _, way := range [][2]net.Conn{{here, there}, {there, here}} {
				go func() {
					bytes := make([]byte, 32<<10)
					for {
						n, err := way[0].Read(bytes)
						if err != nil {
							_ = way[1].Close()
							return
						}
						select {
						case <-cut:
						default:
							_, _ = way[1].Write(bytes[:n])
						}
					}
				}()
			}
		}
	}()
	return r
}

func (r *relay) silence() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.cut {
		close(c)
	}
	r.cut = nil
}

// A connection that is dead, and says nothing of it, is given up for another: HTTP/2 sends
// everything through one.
func TestDeadConnection(t *testing.T) {
	t.Parallel()
	f, server, ca := tlsFake(t)
	way := newRelay(t, server.Listener.Addr().String())
	d := newDriver(t, Config{HomeserverURL: "https://" + way.Addr().String(), AccessToken: "a", CAFile: ca}).start()
	s := d.join()
	d.waitCount(1)
	way.silence()
	f.put("@b:x", "org.matrix.msc3401.call.member", "_@b:x_D_m.call",
		`{"application":"m.call","call_id":"","device_id":"D","focus_active":{"type":"livekit"},"foci_preferred":[]}`)
	d.waitCount(2)
	if sent, err := s.LeaveWait(patience); !sent || err != nil {
		t.Errorf("sent %v, %v", sent, err)
	}
}

// The token does not follow a redirect to another host; on the same host it may.
func TestRedirects(t *testing.T) {
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("%s was asked with %q", r.URL, r.Header.Get("Authorization"))
	}))
	t.Cleanup(thief.Close)
	f := newFake(t)
	var moved atomic.Int32
	f.override = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "/whoami") && r.URL.Query().Get("moved") == "":
			http.Redirect(w, r, r.URL.Path+"?moved=1", http.StatusTemporaryRedirect)
			return true
		case strings.HasSuffix(r.URL.Path, "/sync") && moved.Add(1) == 1:
			http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	d := newDriver(t, Config{HomeserverURL: f.URL, AccessToken: "a"}).start()
	if e := d.waitSync("reconnecting"); e == nil || e.HTTPStatus != 307 {
		t.Fatalf("error: %+v", e)
	}
	d.waitSync("syncing")
}
