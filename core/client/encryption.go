package client

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"time"

	"libmatrixrtc/core/client/olm"
	"libmatrixrtc/core/session"
	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// Encryption of the managed client. With a store it is there before the first sync, since others
// may have encrypted for this device meanwhile; without one it begins when a call first needs it.

// encryption is the Olm machine, or why there is none.
type encryption struct {
	wanted  bool          // without a store: it has begun
	machine *olm.Machine  // takes in what comes, from before this device is published
	opened  chan struct{} // closed when machine or failure is there
	settled chan struct{} // closed when this device is published, or failure is there
	ready   bool
	failure string
}

// wantEncryption begins to open the machine that lives in memory, once. The lock is held.
func (c *Client) wantEncryption() {
	if c.crypt.wanted || c.cfg.StorePath != "" || c.HostDriven() || c.info.DeviceID == "" || c.state != started {
		return
	}
	c.crypt.wanted = true
	c.spawn(func() {
		for failures := 0; ; failures++ {
			e := c.openEncryption()
			if e == nil || c.ctx.Err() != nil {
				return
			}
			c.log(1, "encryption keys could not be published", map[string]any{"error": e.Message})
			if e.Status == ErrInvalidArgument {
				_ = c.do(func(session.Time) error {
					c.crypt.failure = e.Message
					if c.crypt.machine == nil {
						close(c.crypt.opened)
					}
					close(c.crypt.settled)
					c.tellSync(c.info.SyncState, e)
					return nil
				})
				return
			}
			pause := min(retryMin<<min(failures, 10), retryMax)
			if !c.pause(pause/2+time.Duration(rand.Float64()*float64(pause/2)), nil) {
				return
			}
		}
	})
}

// openEncryption loads the store, if that is not done yet, and publishes this device. An
// ErrInvalidArgument is a setting that has to be mended.
func (c *Client) openEncryption() *Error {
	c.mu.Lock()
	machine, ready, user, device := c.crypt.machine, c.crypt.ready, c.info.UserID, c.info.DeviceID
	c.mu.Unlock()
	if ready {
		return nil
	}
	if machine == nil {
		var err error
		if machine, err = olm.Open(c.ctx, c.olmConfig(user, device)); err != nil {
			return olmError(err)
		}
		c.mu.Lock()
		c.crypt.machine = machine
		close(c.crypt.opened)
		c.mu.Unlock()
	}
	if e := c.publish(machine); e != nil {
		return e
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.crypt.ready = true
	close(c.crypt.settled)
	return nil
}

func (c *Client) publish(machine *olm.Machine) *Error {
	ctx, cancel := context.WithTimeout(c.ctx, 2*defaultTimeout)
	defer cancel()
	if err := machine.Start(ctx); err != nil {
		return olmError(err)
	}
	return nil
}

// publishAgain publishes this device once more after a new login: with the old one the homeserver may
// have forgotten it.
func (c *Client) publishAgain() *Error {
	c.mu.Lock()
	machine, ready := c.crypt.machine, c.crypt.ready
	c.mu.Unlock()
	if !ready {
		return nil // it is still to be published for the first time
	}
	return c.publish(machine)
}

func (c *Client) olmConfig(user id.UserID, device id.DeviceID) olm.Config {
	return olm.Config{
		UserID: user, DeviceID: device, StorePath: c.cfg.StorePath,
		PickleKey: olm.Secret(c.cfg.PickleKey), RecoveryKey: olm.Secret(c.cfg.RecoveryKey),
		Do: func(ctx context.Context, h wire.HTTPRequest) wire.HTTPResponse {
			return c.authorized(ctx, h, true, maxAnswer)
		},
		Go: func(f func()) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.spawn(f)
		},
		Log: c.log,
	}
}

func olmError(err error) *Error {
	e := &Error{Status: ErrHomeserver, Message: "encryption: " + err.Error()}
	if setting := (*olm.ConfigError)(nil); errors.As(err, &setting) {
		e.Status, e.Path, e.Message = ErrInvalidArgument, setting.Path, setting.Message
	}
	if request := (*olm.RequestError)(nil); errors.As(err, &request) {
		a := request.Answer
		if a.Network {
			e.Status = ErrNetwork
		}
		e.HTTPStatus, e.Errcode, e.RetryAfterMS = a.Status, a.Code, a.RetryAfter.Milliseconds()
	}
	return e
}

// encrypting waits for the machine that may encrypt; the failure says why there is none.
func (c *Client) encrypting(ctx context.Context) (machine *olm.Machine, failure string) {
	select {
	case <-c.crypt.settled:
	case <-ctx.Done():
		return nil, "no encryption: the keys of this device are not published yet"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.crypt.machine == nil || !c.crypt.ready {
		return nil, "no encryption: " + c.crypt.failure
	}
	return c.crypt.machine, ""
}

// sendEncrypted encrypts with the device's own Olm sessions, and sends, for as long as the call wants
// it. The lock is held.
func (c *Client) sendEncrypted(r wire.Request) {
	c.wantEncryption()
	ctx, cancel := context.WithTimeout(c.ctx, r.Timeout)
	c.sending[r.ID] = cancel
	c.spawn(func() {
		defer cancel()
		machine, failure := c.encrypting(ctx)
		if machine != nil {
			machine.Send(ctx, r.Type, r.Content, r.Recipients, func(d []wire.Delivery) { c.delivered(r.ID, d, false) })
			return
		}
		out := make([]wire.Delivery, len(r.Recipients))
		for i, to := range r.Recipients {
			out[i] = wire.Delivery{Device: to, Reason: failure}
		}
		c.delivered(r.ID, out, true)
	})
}

// cancelUnwanted ends the sending of keys that nobody waits for: those of a call that we have left are
// not sent any more. The lock is held.
func (c *Client) cancelUnwanted() {
	for request, cancel := range c.sending {
		if !c.set.Awaits(request) {
			cancel()
			delete(c.sending, request)
		}
	}
}

func (c *Client) delivered(request uint64, deliveries []wire.Delivery, last bool) {
	if c.ctx.Err() != nil {
		return
	}
	_ = c.do(func(now session.Time) error {
		return c.set.Handle(now, session.Delivered{Request: request, Deliveries: deliveries, Last: last})
	})
}

// sendEvent sends a room event, encrypted where its room is. The lock is held.
func (c *Client) sendEvent(r wire.Request) {
	encrypted, known := c.set.Encryption(r.Room)
	if encrypted {
		c.wantEncryption()
	}
	c.spawn(func() {
		ctx, cancel := context.WithTimeout(c.ctx, r.Timeout)
		defer cancel()
		a := wire.Answer{}
		var lacking []wire.Delivery
		switch {
		case !known:
			a.Err = &wire.Error{Message: "it is not known yet whether the room is encrypted"}
		case encrypted:
			lacking, a.Err = c.encryptEvent(ctx, &r)
		}
		if a.Err == nil {
			a = wire.ParseAnswer(r, c.authorized(ctx, r.HTTP(), true, maxAnswer))
		}
		if c.ctx.Err() != nil {
			return
		}
		_ = c.do(func(now session.Time) error {
			if a.Err == nil && len(lacking) > 0 {
				_ = c.set.Handle(now, session.Delivered{Request: r.ID, Deliveries: lacking})
			}
			return c.set.Handle(now, session.Response{ID: r.ID, Answer: a})
		})
	})
}

// encryptEvent puts the encrypted event in the place of the event, and says which of the recipients
// cannot read it.
func (c *Client) encryptEvent(ctx context.Context, r *wire.Request) ([]wire.Delivery, *wire.Error) {
	machine, failure := c.encrypting(ctx)
	if machine == nil {
		return nil, &wire.Error{Message: failure}
	}
	who := wire.Request{Kind: wire.GetJoinedMembers, Room: r.Room}
	a := wire.ParseAnswer(who, c.authorized(ctx, who.HTTP(), true, maxAnswer))
	if a.Err != nil {
		return nil, a.Err
	}
	content, lacking, err := machine.EncryptEvent(ctx, r.Room, r.TxnID, r.Type, r.Content, a.Joined, r.Recipients)
	if err != nil {
		return nil, &wire.Error{Message: "encrypt_failed: " + err.Error()}
	}
	r.Type, r.Content = "m.room.encrypted", content
	return lacking, nil
}

// devicesChanged tells the Olm machine whose devices have changed, before anybody is sent to who
// the sync brings.
func (c *Client) devicesChanged(body []byte, first bool) {
	c.mu.Lock()
	machine := c.crypt.machine
	c.mu.Unlock()
	if machine == nil {
		return
	}
	if first {
		machine.ForgetDevices()
	}
	lists := gjson.GetBytes(body, "device_lists")
	var users []id.UserID
	for _, list := range []string{"changed", "left"} {
		for _, u := range lists.Get(list).Array() {
			users = append(users, id.UserID(u.String()))
		}
	}
	machine.DevicesChanged(users...)
}

// decryptSync takes in the part of a sync that is for the Olm machine, and passes on what others
// have sent. After an error nothing was taken in.
func (c *Client) decryptSync(body []byte, asked time.Time) *Error {
	c.mu.Lock()
	rooms, opening := c.set.KeyRooms(), c.crypt.wanted
	c.mu.Unlock()
	if opening && len(rooms) > 0 { // room events do not wait for this device to be known
		select {
		case <-c.crypt.opened:
		case <-c.ctx.Done():
		}
	}
	c.mu.Lock()
	machine := c.crypt.machine
	c.mu.Unlock()
	if machine == nil {
		return nil
	}
	root := gjson.ParseBytes(body)
	facts := olm.SyncFacts{Asked: asked, OneTimeKeys: -1}
	if n := root.Get("device_one_time_keys_count"); n.IsObject() {
		facts.OneTimeKeys = int(n.Get("signed_curve25519").Int())
	}
	if types := root.Get("device_unused_fallback_key_types"); types.IsArray() {
		facts.FallbackUsed = true
		for _, t := range types.Array() {
			if t.Str == string(id.KeyAlgorithmSignedCurve25519) {
				facts.FallbackUsed = false
			}
		}
	}
	for _, ev := range root.Get("to_device.events").Array() {
		facts.ToDevice = append(facts.ToDevice, json.RawMessage(ev.Raw))
	}
	if len(rooms) > 0 {
		root.Get("rooms.join").ForEach(func(k, room gjson.Result) bool {
			roomID, ok := roomIDOf(k)
			if !ok || rooms[roomID] == 0 {
				return true
			}
			eachEvent(room.Get("timeline.events"), "m.room.encrypted", func(ev wire.Event) {
				facts.Events = append(facts.Events, olm.RoomEvent{Room: roomID, Event: ev})
			})
			return true
		})
	}
	if err := machine.Sync(c.ctx, facts, c.decrypted); err != nil {
		e := olmError(err)
		e.Message = "the store of encryption keys: " + err.Error()
		return e
	}
	return nil
}

func (c *Client) decrypted(messages []olm.Decrypted) {
	_ = c.do(func(now session.Time) error {
		for _, m := range messages {
			var in session.Input = session.ToDevice{
				Type: m.Type, Sender: m.Sender, SenderDevice: m.SenderDevice, SenderKey: string(m.SenderKey),
				Encrypted: m.Encrypted, CrossSigned: m.CrossSigned, Content: m.Content,
			}
			if m.Room != "" {
				in = session.Timeline{
					Room: m.Room, SenderDevice: m.SenderDevice, CrossSigned: m.CrossSigned,
					Event: wire.Event{Type: m.Type, Sender: m.Sender, OriginServerTS: m.OriginServerTS, Content: m.Content},
				}
			}
			_ = c.set.Handle(now, in)
		}
		return nil
	})
}
