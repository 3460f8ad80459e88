// Package olm encrypts to-device messages for many devices at once and decrypts those that come.
// The ratchets, the store and the signing of our own device are mautrix's; what is sent to whom,
// what is claimed where and what happens on a failure is decided here, so that one slow server or
// one broken device delays nobody else and nothing that a stranger sends starts a goroutine.
package olm

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"libmatrixrtc/core/wire"

	_ "github.com/mattn/go-sqlite3" // the store
	"github.com/tidwall/gjson"
	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/ssss"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Config says whose device this is and how to reach its homeserver.
type Config struct {
	UserID      id.UserID
	DeviceID    id.DeviceID
	StorePath   string // a SQLite file; empty: memory, for a device that is used once
	PickleKey   Secret // encrypts what is secret in the store
	RecoveryKey Secret // of the account's secret storage: makes this device a verified one

	// Do makes a request with our access token.
	Do func(context.Context, wire.HTTPRequest) wire.HTTPResponse
	// Go starts a goroutine.
	Go func(func())
	// Log takes what a developer may want to know; it never holds a secret.
	Log func(level int, msg string, fields map[string]any)
}

// Secret is a string that is printed as a placeholder.
type Secret string

func (Secret) String() string   { return "[redacted]" }
func (Secret) GoString() string { return "[redacted]" }

// MarshalJSON keeps secrets out of JSON logs.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"[redacted]"`), nil }

// ConfigError is a setting that does not fit the store or the account. Path is its JSON pointer.
type ConfigError struct{ Path, Message string }

func (e *ConfigError) Error() string { return e.Path + ": " + e.Message }

// Machine is the Olm side of one device. Every method may be called from any goroutine, Sync from
// one at a time.
type Machine struct {
	cfg      Config
	db       *sql.DB
	store    *crypto.SQLCryptoStore // without a path it is in memory
	identity id.IdentityKey
	signing  id.SigningKey
	own      *mautrix.DeviceKeys // signed by this device

	mu       sync.Mutex // ratchets, account and store, and what follows
	account  *crypto.OlmAccount
	wedged   map[id.IdentityKey]bool
	unwedged map[id.IdentityKey]time.Time // when a broken session was replaced last
	parked   []*incoming                  // room events whose key has not come, the oldest first
	written  int                          // rows since the store was trimmed

	lists        deviceLists
	rooms        roomSessions
	inbox        inbox
	listedAtLast time.Duration // how long a message waits for its device to be listed
	asking       places        // to find out how to reach others
	heard        places        // to find out whose messages came
	home         places        // both, of our own server
	repair       places        // of broken sessions

	refreshing sync.Mutex
	uploading  sync.Mutex
	uploaded   time.Time // when an upload was answered last; uploading is its lock
}

const (
	usersRemembered = 20_000
	askingAtOnce    = 64 // servers
	heardAtOnce     = 32 // servers
	repairsAtOnce   = 16
	hashesKeptFor   = 30 * 24 * time.Hour
)

// Open loads the store, or makes one. A wrong pickle key and a store of another device are told.
func Open(ctx context.Context, cfg Config) (*Machine, error) {
	if cfg.Log == nil {
		cfg.Log = func(int, string, map[string]any) {}
	}
	m := &Machine{
		cfg: cfg, wedged: map[id.IdentityKey]bool{}, unwedged: map[id.IdentityKey]time.Time{},
		lists: deviceLists{
			users: map[id.UserID]*deviceList{}, queries: map[id.UserID]*deviceQuery{}, lookedAt: map[id.UserID]time.Time{},
			changed: map[id.UserID]bool{},
		},
		rooms:        roomSessions{byRoom: map[id.RoomID]*room{}},
		listedAtLast: listedAtLast,
		inbox:        inbox{servers: map[string][]*incoming{}, users: map[id.UserID]int{}, places: map[string]int{}},
		asking:       make(places, askingAtOnce), heard: make(places, heardAtOnce), home: make(places, askingAtOnce), repair: make(places, repairsAtOnce),
	}
	if err := m.load(ctx); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Machine) load(ctx context.Context) (err error) {
	defer caught(&err)
	if err := m.openStore(ctx); err != nil {
		return err
	}
	if m.account, err = m.store.GetAccount(ctx); err != nil {
		return &ConfigError{"/pickle_key", "does not open the store at store_path: " + err.Error()}
	}
	if m.account == nil {
		m.account = crypto.NewOlmAccount()
		if err := m.store.PutAccount(ctx, m.account); err != nil {
			return &ConfigError{"/store_path", err.Error()}
		}
	}
	m.signing, m.identity = m.account.Keys()
	if m.own, err = m.deviceKeys(); err != nil {
		return err
	}
	if err := m.openInbox(ctx); err != nil {
		return &ConfigError{"/store_path", err.Error()}
	}
	return nil
}

func (m *Machine) openStore(ctx context.Context) error {
	cfg := m.cfg
	uri, key := "file::memory:?_foreign_keys=on", []byte(cfg.PickleKey)
	if cfg.StorePath != "" {
		if len(key) == 0 {
			return &ConfigError{"/pickle_key", "expected a key for the store at store_path"}
		}
		file, err := os.OpenFile(cfg.StorePath, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return &ConfigError{"/store_path", err.Error()}
		}
		_ = file.Close()
		// One connection that keeps the file to itself: two that used one store would break its ratchets.
		uri = "file:" + strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(cfg.StorePath) +
			"?_foreign_keys=on&_busy_timeout=3000&_locking_mode=EXCLUSIVE&_journal_mode=WAL&_synchronous=FULL&_txlock=immediate"
	} else {
		key = make([]byte, 32)
		rand.Read(key) // never fails
	}
	unusable := func(err error) error {
		if text := err.Error(); strings.Contains(text, "locked") {
			return &ConfigError{"/store_path", "is in use by another process, or by another client of this one"}
		}
		return &ConfigError{"/store_path", err.Error()}
	}
	raw, err := sql.Open("sqlite3", uri)
	if err != nil {
		return unusable(err)
	}
	raw.SetMaxOpenConns(1)
	m.db = raw
	db, err := dbutil.NewWithDB(raw, "sqlite3")
	if err != nil {
		return unusable(err)
	}
	m.store = crypto.NewSQLCryptoStore(db, dbutil.NoopLogger, string(cfg.UserID), cfg.DeviceID, key)
	if err := m.store.DB.Upgrade(ctx); err != nil {
		return unusable(err)
	}
	var user, device string
	switch err := raw.QueryRowContext(ctx, "SELECT account_id, device_id FROM crypto_account").Scan(&user, &device); {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return unusable(err)
	case user != string(cfg.UserID) || device != string(cfg.DeviceID):
		return &ConfigError{"/store_path", fmt.Sprintf("is the store of device %s of %s, and this is %s of %s", device, user, cfg.DeviceID, cfg.UserID)}
	}
	if err := m.store.DeleteOldOlmHashes(ctx, time.Now().Add(-hashesKeptFor)); err != nil {
		return unusable(err)
	}
	return nil
}

// Close ends the use of the store.
func (m *Machine) Close() {
	if m.db != nil {
		_ = m.db.Close()
	}
}

// Start publishes this device, and with a recovery key its signature. One-time keys of a device
// that is published already come with the first sync, which says how many are left. After a
// failure other than a ConfigError it may be called again.
func (m *Machine) Start(ctx context.Context) error {
	published, err := m.published(ctx)
	if err != nil {
		return err
	}
	switch published {
	case m.identity:
	case "":
		m.uploading.Lock()
		err = m.upload(ctx, true, 0, true)
		m.uploading.Unlock()
	default:
		err = &ConfigError{"/store_path", fmt.Sprintf(
			"device %s has published encryption keys that are not in this store: give the store it was used with, or log in as a new device", m.cfg.DeviceID)}
	}
	if err != nil || m.cfg.RecoveryKey == "" {
		return err
	}
	return m.signOwn(ctx)
}

// signOwn signs this device with the keys of the account's secret storage, unless it is signed.
func (m *Machine) signOwn(ctx context.Context) (err error) {
	defer caught(&err)
	m.DevicesChanged(m.cfg.UserID) // it may be published for the second time
	defer m.DevicesChanged(m.cfg.UserID)
	if signed, err := m.ownSigned(ctx); err != nil || signed {
		return err
	}
	client, err := mautrix.NewClient("http://homeserver.invalid", m.cfg.UserID, "unused")
	if err != nil {
		return err
	}
	client.DeviceID, client.Client = m.cfg.DeviceID, &http.Client{Transport: transport{m.cfg.Do}}
	client.DefaultHTTPRetries, client.IgnoreRateLimit = 0, true
	mach := crypto.NewOlmMachine(client, nil, m.store, noRooms{})
	if err := m.safely(ctx, mach.Load); err != nil {
		return err
	}
	if _, err := mach.FetchKeys(ctx, []id.UserID{m.cfg.UserID}, true); err != nil {
		return err
	}
	err = mach.VerifyWithRecoveryKey(ctx, string(m.cfg.RecoveryKey))
	for _, final := range []error{ssss.ErrInvalidRecoveryKey, ssss.ErrIncorrectSSSSKey, ssss.ErrNoDefaultKeyID, ssss.ErrKeyDataMACMismatch, mautrix.MNotFound} {
		if errors.Is(err, final) {
			return &ConfigError{"/recovery_key", err.Error()}
		}
	}
	signed := false
	if err == nil {
		m.DevicesChanged(m.cfg.UserID)
		signed, err = m.ownSigned(ctx)
	}
	if err == nil && !signed || errors.Is(err, crypto.ErrSignatureUploadFail) {
		return &ConfigError{"/recovery_key", "does not make this device a verified one: the signing keys in the account's secret storage are not those that it has published"}
	}
	return err
}

// ownSigned says whether this device is signed by its user.
func (m *Machine) ownSigned(ctx context.Context) (signed bool, err error) {
	if err := m.query(ctx, []id.UserID{m.cfg.UserID}); err != nil {
		return false, err
	}
	err = m.safely(ctx, func(ctx context.Context) error {
		d := m.lists.named(wire.Device{UserID: m.cfg.UserID, DeviceID: m.cfg.DeviceID})
		if d == nil {
			return errors.New("the homeserver does not show this device yet")
		}
		err := m.check(ctx, d)
		signed = err == nil && d.crossSigned
		return err
	})
	return signed, err
}

// safely runs what uses ratchets, account or store, alone, and makes a panic an error. What f
// writes to the store is one transaction; after an error memory and store are as they were.
func (m *Machine) safely(ctx context.Context, f func(context.Context) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	// Without the cancelling: a driver that watches for it starts a goroutine for every statement.
	ctx = context.WithoutCancel(ctx)
	err := m.store.DB.DoTxn(ctx, nil, func(ctx context.Context) (err error) {
		defer caught(&err)
		if err := f(ctx); err != nil {
			return err
		}
		return m.trim(ctx)
	})
	if err != nil {
		m.store.InitFields()
		m.store.Account = nil
		if account, err := m.store.GetAccount(ctx); err == nil && account != nil {
			m.account = account
		}
	}
	return err
}

// trim keeps the store within bounds: what was written longest ago goes.
func (m *Machine) trim(ctx context.Context) error {
	if m.written < trimEvery {
		return nil
	}
	m.written = 0
	for table, rows := range rowsKept {
		if _, err := m.store.DB.Exec(ctx, "DELETE FROM "+table+" WHERE rowid <= (SELECT max(rowid) FROM "+table+") - $1", rows); err != nil {
			return err
		}
	}
	m.store.InitFields() // the cache of sessions
	return nil
}

const trimEvery = 1000

var rowsKept = map[string]int{
	"crypto_olm_session":            50_000,
	"crypto_olm_message_hash":       100_000,
	"crypto_megolm_inbound_session": 10_000,
	"crypto_message_index":          10_000,
	"crypto_device":                 100_000,
}

// storeError is a failure of the store and not of the message that was at hand.
type storeError struct{ error }

func (e storeError) Unwrap() error { return e.error }

func stored(err error) error {
	if err == nil {
		return nil
	}
	return storeError{err}
}

// caught makes a panic an error.
func caught(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("panic: %v", p)
	}
}

// ask makes a request of JSON and reads the answer, a JSON object.
func (m *Machine) ask(ctx context.Context, method, path string, body any) (gjson.Result, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return gjson.Result{}, err
	}
	h := m.cfg.Do(ctx, wire.HTTPRequest{Method: method, Path: path, Body: raw})
	if a := wire.ParseAnswer(wire.Request{}, h); a.Err != nil {
		return gjson.Result{}, &RequestError{*a.Err}
	}
	return gjson.ParseBytes(h.Body), nil
}

// RequestError is an answer of the homeserver that is not a success, or that none came.
type RequestError struct{ Answer wire.Error }

func (e *RequestError) Error() string {
	switch a := e.Answer; {
	case a.Network || a.Status == 200:
		return a.Message
	case a.Code != "":
		return fmt.Sprintf("HTTP %d %s", a.Status, a.Code)
	default:
		return fmt.Sprintf("HTTP %d", a.Status)
	}
}

// places bounds how much is done at the same time.
type places chan struct{}

// in runs f when there is a place for it, and makes a panic an error.
func (p places) in(ctx context.Context, f func()) (err error) {
	select {
	case p <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-p }()
	defer caught(&err)
	f()
	return nil
}

// at is where there has to be a place to ask for devices of a server: those of our own wait for
// nobody else's.
func (m *Machine) at(server string, others places) places {
	if server == m.cfg.UserID.Homeserver() {
		return m.home
	}
	return others
}

// transport lets mautrix make requests by way of Config.Do.
type transport struct {
	do func(context.Context, wire.HTTPRequest) wire.HTTPResponse
}

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	h := wire.HTTPRequest{Method: r.Method, Path: r.URL.EscapedPath(), Query: map[string]string{}}
	for name := range r.URL.Query() {
		h.Query[name] = r.URL.Query().Get(name)
	}
	if r.Body != nil {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		h.Body = body
	}
	a := t.do(r.Context(), h)
	if a.NetworkError != "" {
		return nil, errors.New(a.NetworkError)
	}
	return &http.Response{
		StatusCode: a.Status, Status: http.StatusText(a.Status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(a.Body)),
		ContentLength: int64(len(a.Body)), Request: r,
	}, nil
}

// noRooms is a state store for a machine whose rooms are none of mautrix's business.
type noRooms struct{}

func (noRooms) IsEncrypted(context.Context, id.RoomID) (bool, error) { return false, nil }
func (noRooms) GetEncryptionEvent(context.Context, id.RoomID) (*event.EncryptionEventContent, error) {
	return nil, nil
}
func (noRooms) GetHistoryVisibility(context.Context, id.RoomID) (*event.HistoryVisibilityEventContent, error) {
	return nil, nil
}
func (noRooms) FindSharedRooms(context.Context, id.UserID) ([]id.RoomID, error) { return nil, nil }
