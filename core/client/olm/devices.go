package olm

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"libmatrixrtc/core/wire"

	"github.com/tidwall/gjson"
	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"
)

// Device lists are asked for when they are needed, and remembered until the sync says that they
// have changed. They live in memory, so that what changed while we were away need not be known;
// the store keeps the signing key that a device was first seen with, until its user is seen without
// it. A list that was in use is asked for again at once when it changes: a device that is deleted and
// comes back under its name is a new one. A device is verified when it is first looked at: a user may
// claim to have ten thousand.

const (
	queryTimeout   = 10 * time.Second // that our server grants another
	queriesAtOnce  = 3                // for one need, while lists change under it
	devicesPerUser = 10_000
	deviceBytes    = 16 << 10
	deviceDepth    = 16
	listsKept      = 64 << 20 // bytes, about
	lookAgainEvery = time.Minute
)

var errNotSigned = errors.New("the device's keys are not signed by it")

// device is what a user's server says about a device, and what is true of that.
type device struct {
	wire.Device
	identity id.IdentityKey
	signing  id.SigningKey

	list        *deviceList
	raw         json.RawMessage // to be verified; nil once that is done
	refused     error
	crossSigned bool
}

// deviceList is what a user has.
type deviceList struct {
	byID        map[id.DeviceID]*device
	byKey       map[id.IdentityKey]*device
	selfSigning id.Ed25519 // signed by the master key; empty: none
	size        int        // bytes, about
}

// deviceLists is what is known of all users.
type deviceLists struct {
	mu       sync.Mutex
	users    map[id.UserID]*deviceList
	total    int // bytes, about
	queries  map[id.UserID]*deviceQuery
	lookedAt map[id.UserID]time.Time // when a list that should be right was asked for again
	changed  map[id.UserID]bool      // was in use
}

// deviceQuery is a query under way.
type deviceQuery struct {
	done  chan struct{}
	stale map[id.UserID]bool // have changed since it was asked
}

// DevicesChanged forgets the device lists of users.
func (m *Machine) DevicesChanged(users ...id.UserID) {
	l := &m.lists
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, u := range users {
		if l.users[u] != nil {
			l.changed[u] = true
		}
		l.forget(u)
		if q := l.queries[u]; q != nil {
			q.stale[u] = true
		}
	}
}

// refresh asks for the lists that have changed, unless that is under way.
func (m *Machine) refresh(ctx context.Context) {
	l := &m.lists
	l.mu.Lock()
	some := len(l.changed) > 0
	l.mu.Unlock()
	if !some || !m.refreshing.TryLock() {
		return
	}
	m.cfg.Go(func() {
		defer m.refreshing.Unlock()
		l.mu.Lock()
		users := slices.Collect(maps.Keys(l.changed))
		clear(l.changed)
		l.mu.Unlock()
		m.learn(ctx, users)
	})
}

// ForgetDevices forgets the device lists of everybody: the next sync does not say what changed.
func (m *Machine) ForgetDevices() {
	l := &m.lists
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.users)
	clear(l.changed)
	l.total = 0
	for u, q := range l.queries {
		q.stale[u] = true
	}
}

func (l *deviceLists) forget(u id.UserID) {
	if list := l.users[u]; list != nil {
		l.total -= list.size
		delete(l.users, u)
	}
}

// of is the device list of a user, nil where it must be asked for.
func (l *deviceLists) of(user id.UserID) *deviceList {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.users[user]
}

func (l *deviceLists) remember(user id.UserID, list *deviceList) {
	l.forget(user)
	if l.total+list.size > listsKept {
		clear(l.users)
		l.total = 0
	}
	l.users[user] = list
	l.total += list.size
}

// doubt makes a list unknown that lacks a device which has written to us; not again for a while.
func (l *deviceLists) doubt(user id.UserID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users[user] == nil || time.Since(l.lookedAt[user]) < lookAgainEvery {
		return
	}
	if len(l.lookedAt) >= usersRemembered {
		clear(l.lookedAt)
	}
	l.lookedAt[user] = time.Now()
	l.forget(user)
}

// query learns the devices of users whose lists are not known. Users whose server does not answer
// stay unknown; the error is that ours does not.
func (m *Machine) query(ctx context.Context, users []id.UserID) error {
	for range queriesAtOnce {
		if again, err := m.queryOnce(ctx, users); !again {
			return err
		}
	}
	return nil
}

// queryOnce answers whether a list has changed meanwhile. For each user one query at a time is
// under way.
func (m *Machine) queryOnce(ctx context.Context, users []id.UserID) (again bool, err error) {
	l := &m.lists
	mine := &deviceQuery{done: make(chan struct{}), stale: map[id.UserID]bool{}}
	asked := map[id.UserID]bool{}
	others := map[*deviceQuery]bool{}
	l.mu.Lock()
	for _, u := range users {
		switch q := l.queries[u]; {
		case l.users[u] != nil || asked[u]:
		case q != nil:
			others[q] = true
		default:
			l.queries[u] = mine
			asked[u] = true
		}
	}
	l.mu.Unlock()
	if len(asked) > 0 {
		var found map[id.UserID]*deviceList
		if found, err = m.fetch(ctx, asked); err != nil {
			m.cfg.Log(1, "device lists could not be fetched", map[string]any{"users": len(asked), "error": err.Error()})
		}
		if err := m.forgetGone(ctx, found); err != nil {
			m.cfg.Log(3, "the store of encryption keys failed", map[string]any{"error": err.Error()})
		}
		l.mu.Lock()
		for u := range asked {
			delete(l.queries, u)
			if list := found[u]; list != nil && !mine.stale[u] {
				l.remember(u, list)
			}
		}
		again = len(mine.stale) > 0 && err == nil
		close(mine.done)
		l.mu.Unlock()
	}
	for q := range others {
		select {
		case <-q.done:
			again = again || len(q.stale) > 0
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	return again, err
}

// fetch asks the homeserver. What has not the form of a device is passed over, and harms no other.
func (m *Machine) fetch(ctx context.Context, users map[id.UserID]bool) (found map[id.UserID]*deviceList, err error) {
	defer caught(&err)
	ctx, cancel := context.WithTimeout(ctx, queryTimeout+5*time.Second)
	defer cancel()
	wanted := make(map[id.UserID][]string, len(users))
	for u := range users {
		wanted[u] = []string{}
	}
	answer, err := m.ask(ctx, "POST", "/_matrix/client/v3/keys/query", map[string]any{
		"device_keys": wanted, "timeout": queryTimeout.Milliseconds(),
	})
	if err != nil {
		return nil, err
	}
	found = make(map[id.UserID]*deviceList, len(users))
	down := answer.Get("failures").Map()
	for u := range users {
		if _, failed := down[u.Homeserver()]; !failed {
			found[u] = &deviceList{byID: map[id.DeviceID]*device{}, byKey: map[id.IdentityKey]*device{}, size: 500}
		}
	}
	answer.Get("device_keys").ForEach(func(user, devices gjson.Result) bool {
		u := id.UserID(user.Str)
		list := found[u]
		if list == nil {
			return true
		}
		devices.ForEach(func(name, raw gjson.Result) bool {
			list.add(u, id.DeviceID(name.Str), raw)
			return len(list.byID) < devicesPerUser
		})
		return true
	})
	masters := answer.Get("master_keys").Map()
	answer.Get("self_signing_keys").ForEach(func(user, raw gjson.Result) bool {
		u := id.UserID(user.Str)
		if list := found[u]; list != nil {
			list.selfSigning = selfSigningKey(u, raw, masters[user.Str])
		}
		return true
	})
	return found, nil
}

// forgetGone forgets the signing keys of devices that their users have no more.
func (m *Machine) forgetGone(ctx context.Context, found map[id.UserID]*deviceList) error {
	if len(found) == 0 {
		return nil
	}
	return m.safely(ctx, func(ctx context.Context) error {
		for u, list := range found {
			known, err := m.store.DB.Query(ctx, "SELECT device_id FROM crypto_device WHERE user_id = $1", u)
			devices, err := dbutil.NewRowIterWithError(known, dbutil.ScanSingleColumn[id.DeviceID], err).AsList()
			if err != nil {
				return err
			}
			for _, d := range devices {
				if list.byID[d] != nil {
					continue
				}
				if _, err := m.store.DB.Exec(ctx, "DELETE FROM crypto_device WHERE user_id = $1 AND device_id = $2", u, d); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (l *deviceList) add(user id.UserID, name id.DeviceID, raw gjson.Result) {
	if name == "" || len(raw.Raw) > deviceBytes || wire.DeeperThan([]byte(raw.Raw), deviceDepth) ||
		raw.Get("device_id").Str != string(name) || raw.Get("user_id").Str != string(user) {
		return
	}
	// Read by name and not by path: a device id may hold any character. Copied, so that the answer
	// can be forgotten.
	kept := strings.Clone(raw.Raw)
	keys := gjson.Get(kept, "keys").Map()
	d := &device{
		Device:   wire.Device{UserID: user, DeviceID: id.DeviceID(strings.Clone(string(name)))},
		list:     l,
		identity: id.IdentityKey(keys["curve25519:"+string(name)].Str),
		signing:  id.SigningKey(keys["ed25519:"+string(name)].Str),
		raw:      json.RawMessage(kept),
	}
	if d.identity == "" || d.signing == "" {
		return
	}
	l.byID[d.DeviceID], l.byKey[d.identity] = d, d
	l.size += len(kept) + 500
}

// selfSigningKey is the key that a user signs devices with, if the user's master key signs it.
func selfSigningKey(user id.UserID, raw, master gjson.Result) id.Ed25519 {
	key, by := onlyKey(user, "self_signing", raw), onlyKey(user, "master", master)
	if key == "" || by == "" {
		return ""
	}
	if ok, err := signatures.VerifySignatureJSON(json.RawMessage(raw.Raw), user, string(by), by); err != nil || !ok {
		return ""
	}
	return key
}

func onlyKey(user id.UserID, usage string, raw gjson.Result) (key id.Ed25519) {
	keys := raw.Get("keys").Map()
	if len(raw.Raw) > deviceBytes || wire.DeeperThan([]byte(raw.Raw), deviceDepth) || raw.Get("user_id").Str != string(user) || raw.Get("usage.0").Str != usage || len(keys) != 1 {
		return ""
	}
	for name, k := range keys {
		if name == "ed25519:"+k.Str {
			key = id.Ed25519(strings.Clone(k.Str))
		}
	}
	return key
}

// named is a device as its user's list has it, which may not be verified yet; nil where the list is
// not known or has none.
func (l *deviceLists) named(d wire.Device) *device {
	l.mu.Lock()
	defer l.mu.Unlock()
	if list := l.users[d.UserID]; list != nil {
		return list.byID[d.DeviceID]
	}
	return nil
}

// withKey is the device of a user with an identity key, likewise.
func (l *deviceLists) withKey(user id.UserID, key id.IdentityKey) *device {
	l.mu.Lock()
	defer l.mu.Unlock()
	if list := l.users[user]; list != nil {
		return list.byKey[key]
	}
	return nil
}

// check says why a device must not be used. A device whose signing key has changed is refused. The
// lock is held.
func (m *Machine) check(ctx context.Context, d *device) error {
	if d.raw == nil {
		return d.refused
	}
	err := m.verify(ctx, d)
	if errors.As(err, new(storeError)) {
		return err
	}
	d.raw, d.refused = nil, err
	if err != nil {
		m.cfg.Log(1, "a device is refused", map[string]any{"user_id": string(d.UserID), "device_id": string(d.DeviceID), "error": err.Error()})
	}
	return err
}

func (m *Machine) verify(ctx context.Context, d *device) (err error) {
	defer caught(&err)
	if ok, err := signatures.VerifySignatureJSON(d.raw, d.UserID, string(d.DeviceID), id.Ed25519(d.signing)); err != nil || !ok {
		return errNotSigned
	}
	if key := d.list.selfSigning; key != "" {
		signed, err := signatures.VerifySignatureJSON(d.raw, d.UserID, string(key), key)
		d.crossSigned = err == nil && signed
	}
	before, err := m.store.GetDevice(ctx, d.UserID, d.DeviceID)
	switch {
	case err != nil:
		return stored(err)
	case before != nil && before.SigningKey != d.signing:
		return errors.New("the device's signing key has changed")
	case before != nil && before.IdentityKey == d.identity:
		return nil
	}
	m.written++
	return stored(m.store.PutDevice(ctx, d.UserID, &id.Device{
		UserID: d.UserID, DeviceID: d.DeviceID, IdentityKey: d.identity, SigningKey: d.signing,
	}))
}
