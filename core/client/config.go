package client

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

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
}

// Secret is a string that no log shows: its printed and JSON forms are a placeholder.
type Secret string

func (Secret) String() string   { return "[redacted]" }
func (Secret) GoString() string { return "[redacted]" }

// MarshalJSON keeps secrets out of JSON logs.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"[redacted]"`), nil }

func (c *Config) validate() error {
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
	case c.AccessToken == "" && c.UserID == "":
		return invalid("/user_id", "expected the user to log in as")
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
	if c.DeviceID == "" {
		return invalid("/device_id", "expected the id of this device")
	}
	if c.HomeserverURL != "" || c.Password != "" || c.AccessToken != "" || c.RefreshToken != "" || c.ProxyURL != "" || c.CAFile != "" {
		return invalid("/mode", "host_driven takes no homeserver_url, credentials, proxy_url or ca_file: it makes no connection")
	}
	return nil
}

func validUserID(u id.UserID) bool {
	local, server, ok := strings.Cut(string(u), ":")
	return ok && strings.HasPrefix(local, "@") && server != "" && len(u) <= 255
}

// transport is the HTTP client of the config.
func (c *Config) transport() (*http.Client, error) {
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
		ForceAttemptHTTP2:   true,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
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
