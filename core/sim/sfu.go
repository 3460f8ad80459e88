package sim

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"
)

// An SFU and its authorisation service, as far as delayed leaves that are handed over concern it
// (MSC4195): the service restarts one while its owner is connected to the SFU, and sends it when the
// SFU has noticed that the owner is gone.

const (
	sfuNotices = 15 * time.Second // that a connection is dead
	sfuEnters  = 2 * time.Second  // how long it takes a client to connect
)

// sfuSide is a client's connection, as the SFU has it.
type sfuSide struct {
	connected bool
	since     int    // counts connections
	told      bool   // what the process was told last
	handedID  string // the delayed leave that the service has
}

// connect is called every virtual second.
func (w *world) connect() {
	for _, c := range w.clients {
		if w.plan.Delegated && c.usable() && c.offlineUntil <= w.now {
			c.followCall()
		}
	}
}

// followCall is the user's media engine: it follows the membership.
func (c *client) followCall() {
	switch in := c.joined && c.status == session.Connected; {
	case in && !c.sfu.told:
		c.sfu.told = true
		life := c.life
		c.w.after(sfuEnters, func() {
			if c.life == life {
				c.awake(c.connected)
			}
		})
	case !in && c.sfu.told && !c.joined:
		c.sfu.told = false
		c.sfuGone() // it hangs up itself
		c.tellSFU(false)
	}
}

func (c *client) connected() {
	if !c.joined || c.offlineUntil > c.w.now {
		c.sfu.told = false
		return
	}
	if c.sfu.connected {
		c.sfuGone() // of two with one identity the SFU keeps the later
	}
	c.sfu.connected = true
	c.sfu.since++
	c.w.trace(c.name(), "is connected to the SFU")
	c.tellSFU(true)
}

func (c *client) tellSFU(connected bool) {
	if err := c.set.SFUConnected(c.now(), c.session, session.SFUConnection{ServiceURL: theSFU, Connected: connected}); err != nil {
		c.w.trace(c.name(), "%v", err) // not joined any more
	}
	c.drain()
}

// silent is a connection from which nothing comes any more. The SFU notices, unless it lives again
// by then; the process, when it can.
func (c *client) silent(until time.Duration) {
	if !c.sfu.connected {
		return
	}
	since := c.sfu.since
	c.w.after(sfuNotices, func() {
		if c.sfu.since != since || !c.sfu.connected || c.running && c.sfu.told && c.w.now >= until {
			return
		}
		c.sfuGone()
		life := c.life
		c.w.at(until, func() {
			if c.life == life && c.sfu.told {
				c.awake(func() {
					c.sfu.told = false
					c.tellSFU(false)
				})
			}
		})
	})
}

// dropped is a connection that both ends know to be dead.
func (c *client) dropped() {
	if !c.sfu.connected || !c.usable() {
		return
	}
	c.sfuGone()
	c.sfu.told = false
	c.tellSFU(false)
}

// sfuGone: the SFU tells the service, which sends the leave that it has.
func (c *client) sfuGone() {
	if !c.sfu.connected {
		return
	}
	c.sfu.connected = false
	c.w.trace(c.name(), "is gone from the SFU")
	handed := c.sfu.handedID
	c.sfu.handedID = ""
	if handed != "" {
		c.trouble(c.w.now)
		c.w.sendHanded(handed)
	}
}

func (w *world) sendHanded(delayID string) {
	if w.server.down {
		w.after(time.Second, func() { w.sendHanded(delayID) })
	} else if d := w.server.delayed[delayID]; d != nil {
		w.trace("service", "sends %s", delayID)
		w.server.fire(d)
	}
}

// takeOver is the service's answer to a delayed leave that is handed over.
func (w *world) takeOver(c *client, r wire.Request) wire.Answer {
	var in struct {
		DelayID string `json:"delay_id"`
	}
	if json.Unmarshal(r.Ready.Body, &in) != nil || in.DelayID == "" {
		return failed(400, "M_BAD_JSON")
	}
	c.sfu.handedID = in.DelayID
	if d := w.server.delayed[in.DelayID]; d != nil && c.sfu.connected {
		d.due = w.now + d.delay
		w.at(d.due, func() { w.server.fireIfDue(d) })
	}
	claims := fmt.Sprintf(`{"sub":"%s:%s","video":{"room":"R"},"exp":%d}`, c.user, c.device, w.server.clock()/1000+86400)
	jwt := "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".sig"
	return wire.Answer{Body: json.RawMessage(fmt.Sprintf(`{"url":"wss://sfu.x","jwt":%q}`, jwt))}
}
