package sim

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// Media keys travel as to-device messages. Of Olm only this is modelled: a message is encrypted for
// the identity that its recipient has when it is sent, and a device that lost its store has another
// one; some devices have no one-time key for a while.

// mail is a to-device message on the server.
type mail struct {
	at       int // counts the messages of the device
	from     *client
	stranger id.UserID // or a user who is none of the clients
	identity int       // of the recipient, that it is encrypted for
	content  []byte
}

// keyed is what the invariants remember of a client's keys.
type keyed struct {
	identity int // grows when the store is lost
	inbox    []mail
	mails    int
	read     int                      // the last that the client has seen
	current  string                   // fingerprint of the own key in use
	lacking  []time.Duration          // since when this client lacks the key in use of each other
	made     map[string]time.Duration // when own keys were, by fingerprint
	gets     map[string]bool          // every key that ever reached its inbox, by fingerprint
	outSince time.Duration            // not in the call; -1: it is
}

// sendKeys is the driver of EncryptAndSendToDevice.
func (c *client) sendKeys(r wire.Request) {
	w := c.w
	c.checkRecipients(r)
	var failed, ready []wire.Delivery
	for _, to := range r.Recipients {
		d := wire.Delivery{Device: to}
		if w.now < faultsEnd && w.chance(w.plan.NoOneTimeKeys) {
			d.Reason = "no_one_time_key"
			failed = append(failed, d)
		} else {
			ready = append(ready, d)
		}
	}
	if len(failed) > 0 {
		_ = c.set.Handle(c.now(), session.Delivered{Request: r.ID, Deliveries: failed, Last: len(ready) == 0})
	}
	if len(ready) == 0 {
		c.drain()
		return
	}
	answer := c.once(func(a wire.Answer) {
		if a.Err != nil {
			for i := range ready {
				ready[i].Reason = "send_failed"
			}
		}
		c.w.trace(c.name(), "is answered %d %s", r.ID, describe(a))
		_ = c.handle(session.Delivered{Request: r.ID, Deliveries: ready, Last: true})
	})
	w.exchange(c, 20*time.Second, func(done func(wire.Answer)) {
		done(w.server.guarded(c.user, func() wire.Answer {
			for _, d := range ready {
				for _, to := range w.clients {
					if to.user == d.UserID {
						to.gets[c.checkKeyFor(to, r)] = true
						to.post(mail{from: c, identity: to.identity, content: r.Content})
					}
				}
			}
			return ok
		}))
	}, answer)
}

// post puts a message into the inbox of a client.
func (c *client) post(m mail) {
	c.mails++
	m.at = c.mails
	c.inbox = append(c.inbox, m)
	c.w.server.wake(c)
}

// storm is a stranger's: junk for a client, of all kinds, and key messages that are well-formed, of
// members that never come.
func (c *client) storm() {
	for i := range stormOf {
		user := id.UserID(fmt.Sprintf("@s%d:x", i%40))
		key := base64.RawStdEncoding.EncodeToString(c.newKey(wire.KeyLength))
		contents := []string{
			`{"keys":{"index":%d,"key":%q},"member":{"id":"m","claimed_device_id":"DEV"},"room_id":"!call:x","session":{"application":"m.call","call_id":""}}`,
			`{"keys":{"index":%d.5,"key":%q},"member":{"id":"m","claimed_device_id":"DEV"},"room_id":"!call:x"}`,
			`{"keys":{"index":%d,"key":%q},"member":{"id":"m","claimed_device_id":"OTHER"},"room_id":"!call:x"}`,
			`{"keys":{"index":%d,"key":%q},"member":{"id":"m","claimed_device_id":"DEV"},"room_id":"!other:x"}`,
			`{"index":%d,"format":%q}`,
		}
		content := contents[0]
		if c.w.chance(0.5) {
			content = contents[c.w.random.IntN(len(contents))]
		}
		c.post(mail{stranger: user, identity: c.identity, content: fmt.Appendf(nil, content, i%256, key)})
	}
}

// fetchMail answers what a sync brings, and forgets what the client has seen.
func (c *client) fetchMail(seen int) []mail {
	for len(c.inbox) > 0 && c.inbox[0].at <= seen {
		c.inbox = c.inbox[1:]
	}
	return append([]mail{}, c.inbox...)
}

func (c *client) readMail(letters []mail) {
	for _, m := range letters {
		c.read = m.at
		if m.identity != c.identity {
			continue // encrypted for a store that is lost
		}
		sender, device := m.stranger, id.DeviceID("DEV")
		if m.from != nil {
			sender, device = m.from.user, m.from.device
		}
		_ = c.handle(session.ToDevice{
			Type: wire.TypeEncryptionKeys, Sender: sender, SenderDevice: device, SenderKey: "curve",
			Encrypted: true, CrossSigned: true, Content: m.content,
		})
	}
}

// checkRecipients: a key goes to members of the call alone.
func (c *client) checkRecipients(r wire.Request) {
	here := map[wire.Device]bool{}
	for _, m := range c.set.Memberships(c.session) {
		here[wire.Device{UserID: m.UserID, DeviceID: m.DeviceID}] = true
	}
	for _, to := range r.Recipients {
		if !here[to] {
			c.w.fail(c, "keys to members alone", "one is sent to %s", to.UserID)
		}
	}
	switch {
	case !c.joined:
		c.w.fail(c, "keys to members alone", "one is sent after leave")
	case c.probably:
		c.w.fail(c, "keys to members alone", "one is sent by who may be out, and so does not know who is in")
	}
}

// checkKeyFor: a device that left gets no key that was made after that, once the sender can know. It
// answers the key's fingerprint.
func (c *client) checkKeyFor(to *client, r wire.Request) string {
	raw, err := wire.DecodeBase64(gjson.GetBytes(r.Content, "keys.key").Str)
	if err != nil {
		c.w.fail(c, "no key for who left", "what is sent is no key: %v", err)
	}
	sum := sha256.Sum256(raw)
	key := hex.EncodeToString(sum[:4])
	if made := c.made[key]; to.outSince >= 0 && made > to.outSince+newsWithin && c.quiet(newsWithin) {
		c.w.fail(c, "no key for who left", "client %d left at %v and is sent key %s, made at %v", to.index, to.outSince, key, made)
	}
	return key
}

// noteMembers is called at every step.
func (w *world) noteMembers() {
	for _, c := range w.clients {
		if m := w.server.member(c.key); m != nil && m.UserID == c.user {
			c.outSince = -1
		} else if c.outSince < 0 {
			c.outSince = w.now
		}
	}
}

// checkListeners: who left does not know the key in use.
func (c *client) checkListeners() {
	if !c.usable() || !c.wants || !c.quiet(newsWithin) || c.current == "" {
		return
	}
	for _, other := range c.w.clients {
		if other.outSince >= 0 && c.w.now > other.outSince+newsWithin+rotatedWithin && other.gets[c.current] {
			c.w.fail(c, "no key for who left", "client %d left at %v and knows key %s, which is in use", other.index, other.outSince, c.current)
		}
	}
}

// checkMemory: neither what strangers send nor what others do not take makes it grow.
func (c *client) checkMemory() {
	if !c.running {
		return
	}
	s, _ := c.set.DebugSnapshot(c.now(), c.session)
	for what, n := range map[string][2]int{
		"keys held":      {s.Keys.Held, 256},
		"reasons":        {len(s.Keys.Refused), 64},
		"requests":       {s.Keys.InFlight, 16},
		"keys to retry":  {s.Keys.Retrying, 4 * len(c.w.clients)},
		"peers":          {s.Keys.Peers, len(c.w.clients)},
		"refused events": {len(s.Refused), 32},
	} {
		if n[0] > n[1] {
			c.w.fail(c, "memory is bounded", "%d %s", n[0], what)
		}
	}
}

const (
	newsWithin    = rosterWithin                    // who left is known by then
	rotatedWithin = 5 * time.Second                 // a new key is in use, and one more if that was owed
	stormOf       = 400                             // messages
	keysWithin    = 2*settleWithin + 30*time.Second // a device without one-time keys is retried every minute
)

// compareKeys is called every five virtual seconds: every present pair has the key that is in use.
func (w *world) compareKeys() {
	if !w.plan.Keys {
		return
	}
	settled := w.plan.NoOneTimeKeys == 0 || w.now > faultsEnd+keysWithin
	for _, c := range w.clients {
		if c.lacking == nil {
			c.lacking = make([]time.Duration, len(w.clients))
		}
		var has map[string]bool
		for i, other := range w.clients {
			in := func(x *client) bool { return x.usable() && x.wants && x.quiet(keysWithin) }
			if i == c.index || !settled || !in(c) || !in(other) {
				c.lacking[i] = w.now
				continue
			}
			if has == nil {
				has = map[string]bool{}
				keys, _ := c.set.EncryptionKeys(c.session)
				for _, k := range keys {
					has[k.Fingerprint] = true
				}
			}
			if has[other.current] {
				c.lacking[i] = w.now
			} else if w.now > c.lacking[i]+rosterWithin {
				w.fail(c, "keys are shared", "it lacks key %s of client %d, which is in use", other.current, i)
			}
		}
		c.checkListeners()
		if c.running && !c.joined {
			if keys, _ := c.set.EncryptionKeys(c.session); len(keys) > 0 {
				w.fail(c, "keys are forgotten", "it left and has %d", len(keys))
			}
		}
		c.checkMemory()
	}
}

func describeKeys(r wire.Request) string {
	var to []string
	for _, d := range r.Recipients {
		to = append(to, string(d.UserID))
	}
	return fmt.Sprintf("for %s", strings.Join(to, " "))
}
