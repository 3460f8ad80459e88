// Package livekit is how one finds and enters a LiveKit SFU (MSC4195): the identities there, the
// requests that get a token, and what their answers mean. Pure functions.
package livekit

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/crypto/canonicaljson"
	"maunium.net/go/mautrix/id"
)

// Member is who asks for a token.
type Member struct {
	UserID   id.UserID
	DeviceID id.DeviceID
	MemberID string
}

// Identity is the participant identity of a membership on its SFU: in the state generation in
// clear, later a hash that tells the SFU nothing.
func Identity(m *wire.Membership) string {
	who := Member{m.UserID, m.DeviceID, m.MemberID}
	if m.Dialect == wire.DialectState || m.Dialect == "" {
		return who.clear()
	}
	return who.hashed()
}

func (m Member) clear() string { return string(m.UserID) + ":" + string(m.DeviceID) }

func (m Member) hashed() string { return hash(string(m.UserID), string(m.DeviceID), m.MemberID) }

// Room is the name of the LiveKit room of a call: its alias (MSC4195).
func Room(room id.RoomID, slotID string) string { return hash(string(room), slotID) }

// hash is the unpadded base64 of the SHA-256 of a list of strings in canonical JSON.
func hash(list ...string) string {
	raw, err := canonicaljson.Marshal(list)
	if err != nil {
		return "" // strings can be written
	}
	sum := sha256.Sum256(raw)
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

// SFU names the SFU of a transport: the URL of its authorisation service, or, where the homeserver
// hands out the tokens, its own websocket URL. Empty: it is not LiveKit's, or names none.
func SFU(transport json.RawMessage) string {
	t := gjson.ParseBytes(transport)
	if t.Get("type").Str != "livekit" {
		return ""
	}
	named := t.Get("livekit_service_url")
	if named.Type != gjson.String {
		named = t.Get("url")
	}
	if len(named.Str) > maxURL {
		return ""
	}
	return strings.Clone(strings.TrimRight(named.Str, "/"))
}

const maxURL = 2048

// CheckURL says why an SFU may not be talked to: whoever we send an OpenID token to can act as us,
// so TLS is required except on loopback, and private addresses are for those who name them
// themselves (private).
func CheckURL(sfu string, private bool) error {
	u, err := url.Parse(sfu)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "":
		return fmt.Errorf("expected a URL of scheme and host")
	case u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "wss" && u.Scheme != "ws":
		return fmt.Errorf("expected an https URL, got scheme %q", u.Scheme)
	}
	loopback, local := locality(u.Hostname())
	if (u.Scheme == "http" || u.Scheme == "ws") && !loopback {
		return fmt.Errorf("expected an https URL: without TLS only loopback is allowed")
	}
	if local && !private {
		return fmt.Errorf("an address that is private to the machine or network of whoever reads it")
	}
	return nil
}

// Private says whether the host of a URL is private to a machine or network.
func Private(rawURL string) bool {
	u, err := url.Parse(rawURL)
	if err != nil {
		return false
	}
	_, local := locality(u.Hostname())
	return local
}

func locality(host string) (loopback, local bool) {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true, true
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		// Forms of addresses that only some resolvers take are nobody's public name.
		last := host[strings.LastIndexByte(host, '.')+1:]
		return false, last == "" || last[0] >= '0' && last[0] <= '9'
	}
	return a.Unmap().IsLoopback(), PrivateAddress(a)
}

// PrivateAddress says whether an address is of a machine or network of whoever dials it.
func PrivateAddress(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return a.IsPrivate() || !a.IsGlobalUnicast() || slices.ContainsFunc(shared, func(p netip.Prefix) bool { return p.Contains(a) })
}

// shared are addresses of providers' and of translating networks (RFC 6598, RFC 6052).
var shared = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("64:ff9b::/96")}

// Transports reads what a homeserver offers, from its endpoint or from .well-known (MSC4143).
func Transports(body json.RawMessage) (list []json.RawMessage) {
	b := gjson.ParseBytes(body)
	for _, name := range []string{"rtc_transports", `org\.matrix\.msc4143\.rtc_foci`} {
		b.Get(name).ForEach(func(_, t gjson.Result) bool {
			if t.IsObject() && t.Get("type").Type == gjson.String && len(list) < maxTransports {
				list = append(list, json.RawMessage(strings.Clone(t.Raw)))
			}
			return true
		})
		if len(list) > 0 {
			break
		}
	}
	return list
}

const maxTransports = 32
