package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"libmatrixrtc/core/livekit"
	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/crypto/utils"
	"maunium.net/go/mautrix/id"
)

// Config is how to reach one Matrix account.
//
// Managed mode (the default) needs homeserver_url and either user_id and password, or
// access_token (and device_id, checked against what the homeserver says). Host-driven mode needs
// user_id and device_id, and makes no connection.
type Config struct {
	Mode          string      `json:"mode,omitempty"`  // "managed" or "host_driven"
	Clock         string      `json:"clock,omitempty"` // host-driven: "real" or "manual"
	HomeserverURL string      `json:"homeserver_url,omitempty"`
	UserID        id.UserID   `json:"user_id,omitempty"`
	DeviceID      id.DeviceID `json:"device_id,omitempty"`
	Password      Secret      `json:"password,omitempty"`
	AccessToken   Secret      `json:"access_token,omitempty"`
	RefreshToken  Secret      `json:"refresh_token,omitempty"`
	DeviceName    string      `json:"initial_device_display_name,omitempty"`
	ProxyURL      string      `json:"proxy_url,omitempty"`
	CAFile        string      `json:"ca_file,omitempty"` // PEM, trusted beside the system's
	UserAgent     string      `json:"user_agent,omitempty"`

	// Which authorisation services may have an OpenID token of ours: "members" (whom the members of
	// a call name; the default), "homeserver" (what it offers), or an array of their URLs.
	SFUTrust json.RawMessage `json:"sfu_trust,omitempty"`

	// How long a membership of the state generation counts after its event came, whatever it says.
	MaxMembershipExpiryMS *int64 `json:"max_membership_expiry_ms,omitempty"`

	StorePath   string `json:"store_path,omitempty"`   // Olm sessions, in SQLite; absent: in memory
	PickleKey   Secret `json:"pickle_key,omitempty"`   // encrypts the store
	RecoveryKey Secret `json:"recovery_key,omitempty"` // of the account's secret storage
}

// Secret is a string that no log shows: its printed and JSON forms are a placeholder.
type Secret string

func (Secret) String() string   { return "[redacted]" }
func (Secret) GoString() string { return "[redacted]" }

// MarshalJSON keeps secrets out of JSON logs.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"[redacted]"`), nil }

// sfuTrust reads who may have an OpenID token.
func (c *Config) sfuTrust() (session.SFUTrust, error) {
	v := gjson.ParseBytes(c.SFUTrust)
	switch {
	case len(c.SFUTrust) == 0 || v.Str == "members" || v.Str == "homeserver":
		return session.SFUTrust{Mode: v.Str}, nil
	case !v.IsArray():
		return session.SFUTrust{}, invalid("/sfu_trust", `expected "members", "homeserver" or an array of URLs`)
	}
	t := session.SFUTrust{Mode: "list"}
	for i, u := range v.Array() {
		if err := livekit.CheckURL(u.Str, true); err != nil {
			return t, invalid(fmt.Sprintf("/sfu_trust/%d", i), "%v", err)
		}
		t.Allowed = append(t.Allowed, strings.TrimRight(u.Str, "/"))
	}
	return t, nil
}

func (c *Config) validate() error {
	if _, err := c.sfuTrust(); err != nil {
		return err
	}
	if v := c.MaxMembershipExpiryMS; v != nil && (*v < 60_000 || *v > 604_800_000) {
		return invalid("/max_membership_expiry_ms", "expected 60000 to 604800000, got %d", *v)
	}
	switch c.Mode {
	case "", "managed":
		c.Mode = "managed"
	case "host_driven":
		return c.validateHostDriven()
	default:
		return invalid("/mode", `expected "managed" or "host_driven", got %q`, c.Mode)
	}
	if c.Clock != "" {
		return invalid("/clock", "is for host-driven mode only")
	}
	u, err := url.Parse(c.HomeserverURL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return invalid("/homeserver_url", "expected an http or https URL, got %q", c.HomeserverURL)
	}
	c.HomeserverURL = strings.TrimRight(c.HomeserverURL, "/")
	if c.UserID != "" && !validUserID(c.UserID) {
		return invalid("/user_id", "expected @localpart:server, got %q", c.UserID)
	}
	switch {
	case c.AccessToken == "" && c.Password == "":
		return invalid("/access_token", "expected an access_token, or a user_id and password")
	case c.StorePath != "" && c.PickleKey == "":
		return invalid("/pickle_key", "expected a key for the store at store_path")
	case c.StorePath == "" && c.PickleKey != "":
		return invalid("/store_path", "expected the file that pickle_key is for")
	case c.AccessToken == "" && c.UserID == "":
		return invalid("/user_id", "expected the user to log in as")
	case c.RecoveryKey != "" && utils.DecodeBase58RecoveryKey(string(c.RecoveryKey)) == nil:
		return invalid("/recovery_key", "expected a recovery key as it was shown once: 12 groups of 4 letters and digits")
	}
	return nil
}

func (c *Config) validateHostDriven() error {
	switch c.Clock {
	case "":
		c.Clock = "real"
	case "real", "manual":
	default:
		return invalid("/clock", `expected "real" or "manual", got %q`, c.Clock)
	}
	if !validUserID(c.UserID) {
		return invalid("/user_id", "expected @localpart:server, got %q", c.UserID)
	}
	if c.DeviceID == "" || len(c.DeviceID) > wire.MaxOwnText {
		return invalid("/device_id", "expected the id of this device, of at most %d bytes", wire.MaxOwnText)
	}
	if c.HomeserverURL != "" || c.Password != "" || c.AccessToken != "" || c.RefreshToken != "" || c.ProxyURL != "" || c.CAFile != "" ||
		c.StorePath != "" || c.PickleKey != "" || c.RecoveryKey != "" {
		return invalid("/mode", "host_driven takes no homeserver_url, credentials, proxy_url, ca_file, store_path, pickle_key or recovery_key: it makes no connection")
	}
	return nil
}

func validUserID(u id.UserID) bool {
	local, server, ok := strings.Cut(string(u), ":")
	return ok && strings.HasPrefix(local, "@") && server != "" && len(u) <= 255
}

// HTTP/2 sends everything through one connection. After a sleep or in another network it may be dead
// without a word; together these are less than the delay of a delayed leave.
const (
	pingAfter   = 4 * time.Second // nothing came
	pingTimeout = 4 * time.Second
)

// transport is the HTTP client of the config.
func (c *Config) transport() (*http.Client, error) {
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},

		MaxResponseHeaderBytes: 1 << 20,

		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			d := net.Dialer{Timeout: defaultTimeout}
			if ctx.Value(publicOnly{}) != nil {
				d.Control = refusePrivate
			}
			return d.DialContext(ctx, network, address)
		},
	}
	if c.ProxyURL != "" {
		u, err := url.Parse(c.ProxyURL)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5") {
			return nil, invalid("/proxy_url", "expected an http, https or socks5 URL")
		}
		t.Proxy = http.ProxyURL(u)
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, invalid("/ca_file", "%v", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, invalid("/ca_file", "expected PEM certificates")
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return &http.Client{
		Transport: t,
		// The access token must not follow a redirect to somewhere else.
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if req.URL.Host != via[0].URL.Host || req.URL.Scheme != via[0].URL.Scheme || len(via) > 5 {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}, nil
}

// publicOnly marks a request that a stranger has caused: a name of theirs may resolve to an address
// of our own network.
type publicOnly struct{}

func refusePrivate(_, address string, _ syscall.RawConn) error {
	if a, err := netip.ParseAddrPort(address); err != nil || livekit.PrivateAddress(a.Addr()) {
		return errors.New("the name resolves to an address that is private to our machine or network")
	}
	return nil
}
