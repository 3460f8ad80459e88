package olm

import (
	"context"
	"errors"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"
)

// What this device publishes: its keys once, one-time keys as others use them up, and a fallback
// key for when there are none left.

const oneTimeKeysWanted = 50 // on the server

// deviceKeys describes this device, signed by itself.
func (m *Machine) deviceKeys() (*mautrix.DeviceKeys, error) {
	keys := &mautrix.DeviceKeys{
		UserID: m.cfg.UserID, DeviceID: m.cfg.DeviceID,
		Algorithms: []id.Algorithm{id.AlgorithmMegolmV1, id.AlgorithmOlmV1},
		Keys: mautrix.KeyMap{
			id.NewDeviceKeyID(id.KeyAlgorithmCurve25519, m.cfg.DeviceID): string(m.identity),
			id.NewDeviceKeyID(id.KeyAlgorithmEd25519, m.cfg.DeviceID):    string(m.signing),
		},
	}
	signature, err := m.account.SignJSON(keys)
	if err != nil {
		return nil, err
	}
	keys.Signatures = signatures.NewSingleSignature(m.cfg.UserID, id.KeyAlgorithmEd25519, string(m.cfg.DeviceID), signature)
	return keys, nil
}

// published is the identity key that the homeserver has of this device.
func (m *Machine) published(ctx context.Context) (id.IdentityKey, error) {
	answer, err := m.ask(ctx, "POST", "/_matrix/client/v3/keys/query", map[string]any{
		"device_keys": map[id.UserID][]id.DeviceID{m.cfg.UserID: {m.cfg.DeviceID}},
	})
	if err != nil {
		return "", err
	}
	device := answer.Get("device_keys").Map()[string(m.cfg.UserID)].Map()[string(m.cfg.DeviceID)]
	return id.IdentityKey(device.Get("keys").Map()["curve25519:"+string(m.cfg.DeviceID)].Str), nil
}

// replenish uploads keys where the server lacks them. asked is when the sync began that said so:
// what it says of the time before the last upload is no longer true.
func (m *Machine) replenish(ctx context.Context, asked time.Time, have int, fallback bool) {
	low := have >= 0 && have < oneTimeKeysWanted/2
	if !low && !fallback || !m.uploading.TryLock() {
		return
	}
	m.cfg.Go(func() {
		defer m.uploading.Unlock()
		if asked.Before(m.uploaded) {
			return
		}
		if !low {
			have = oneTimeKeysWanted
		}
		if err := m.upload(ctx, false, have, fallback); err != nil {
			m.cfg.Log(1, "one-time keys could not be uploaded", map[string]any{"error": err.Error()})
		}
	})
}

// fallbackKeys is what mautrix's interface of an account leaves out.
type fallbackKeys interface {
	GenFallbackKey() error
	FallbackKeyUnpublished() map[string]id.Curve25519
}

// upload publishes what is wanted: the device itself, one-time keys beside those that the server
// has, a new fallback key. uploading is locked.
func (m *Machine) upload(ctx context.Context, device bool, have int, fallback bool) error {
	body := map[string]any{}
	if device {
		body["device_keys"] = m.own
	}
	// Stored before they are sent: an answer that is lost must not lose the private parts.
	err := m.safely(ctx, func(ctx context.Context) error { return m.prepareUpload(ctx, body, have, fallback) })
	if err != nil {
		return err
	}
	_, err = m.ask(ctx, "POST", "/_matrix/client/v3/keys/upload", body)
	if e := (*RequestError)(nil); errors.As(err, &e) && e.Answer.Status == 400 {
		// It has other keys under these names: they are given up, and the next ones have other names.
		m.cfg.Log(2, "the homeserver refuses one-time keys", map[string]any{"error": err.Error()})
	} else if err != nil {
		return err
	}
	m.uploaded = time.Now()
	return errors.Join(err, m.safely(ctx, func(ctx context.Context) error {
		m.account.Internal.MarkKeysAsPublished()
		m.account.Shared = true
		return m.store.PutAccount(ctx, m.account)
	}))
}

func (m *Machine) prepareUpload(ctx context.Context, body map[string]any, have int, fallback bool) error {
	account := m.account
	if have < oneTimeKeysWanted {
		unpublished, err := account.Internal.OneTimeKeys()
		if err != nil {
			return err
		}
		if missing := oneTimeKeysWanted - have - len(unpublished); missing > 0 {
			if err := account.Internal.GenOneTimeKeys(uint(missing)); err != nil {
				return err
			}
			if unpublished, err = account.Internal.OneTimeKeys(); err != nil {
				return err
			}
		}
		if body["one_time_keys"], err = m.signed(account, unpublished, false); err != nil {
			return err
		}
	}
	if internal, ok := account.Internal.(fallbackKeys); ok && fallback {
		if len(internal.FallbackKeyUnpublished()) == 0 {
			if err := internal.GenFallbackKey(); err != nil {
				return err
			}
		}
		var err error
		if body["fallback_keys"], err = m.signed(account, internal.FallbackKeyUnpublished(), true); err != nil {
			return err
		}
	}
	return m.store.PutAccount(ctx, account)
}

func (m *Machine) signed(account *crypto.OlmAccount, keys map[string]id.Curve25519, fallback bool) (map[id.KeyID]*mautrix.OneTimeKey, error) {
	out := make(map[id.KeyID]*mautrix.OneTimeKey, len(keys))
	for keyID, key := range keys {
		k := &mautrix.OneTimeKey{Key: key, Fallback: fallback, IsSigned: true}
		signature, err := account.SignJSON(k)
		if err != nil {
			return nil, err
		}
		k.Signatures = signatures.NewSingleSignature(m.cfg.UserID, id.KeyAlgorithmEd25519, string(m.cfg.DeviceID), signature)
		out[id.NewKeyID(id.KeyAlgorithmSignedCurve25519, keyID)] = k
	}
	return out, nil
}
