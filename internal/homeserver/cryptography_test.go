package homeserver_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
)

// Keys for the conformance suite. After `cryptography alice` there are
//
//	{alice.device}                              the keys of the device, signed by itself
//	{alice.master} {alice.self} {alice.user}    those of cross-signing, the others signed by the first
//	{alice.renewed}                             another master key
//	{alice.masterkey} ...                       the public keys of all
//	{bob.master+alice.user}                     an object signed by one more

type signingKey struct {
	owner string // user id
	id    string
	ed25519.PrivateKey
}

func (s *script) makeKeys(t *testing.T, name string) {
	userID, deviceID := s.vars[name], strings.ToUpper(name)
	public := map[string]string{}
	for _, use := range []string{"device", "master", "self", "user", "renewed"} {
		seed := sha256.Sum256([]byte(name + use))
		private := ed25519.NewKeyFromSeed(seed[:])
		public[use] = base64.RawStdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))
		key := signingKey{userID, "ed25519:" + public[use], private}
		if use == "device" {
			key.id = "ed25519:" + deviceID
		}
		s.keys[name+"."+use] = key
		s.name(name+"."+use+"key", public[use])
	}
	put := func(use, signer string, object map[string]any) {
		object["user_id"] = userID
		raw, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		s.vars[name+"."+use] = string(raw)
		if signer != "" {
			s.vars[name+"."+use] = s.signed(name+"."+use, name+"."+signer)
		}
	}
	put("device", "device", map[string]any{
		"device_id": deviceID, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2"},
		"keys": map[string]string{"curve25519:" + deviceID: "c", "ed25519:" + deviceID: public["device"]},
	})
	for use, usage := range map[string]string{"master": "master", "renewed": "master"} {
		put(use, "", map[string]any{"usage": []string{usage}, "keys": map[string]string{"ed25519:" + public[use]: public[use]}})
	}
	for use, usage := range map[string]string{"self": "self_signing", "user": "user_signing"} {
		put(use, "master", map[string]any{"usage": []string{usage}, "keys": map[string]string{"ed25519:" + public[use]: public[use]}})
	}
}

// signed is an object with one signature more.
func (s *script) signed(object, signer string) string {
	var fields map[string]any
	if err := json.Unmarshal([]byte(s.vars[object]), &fields); err != nil {
		return err.Error()
	}
	made, _ := fields["signatures"].(map[string]any)
	if made == nil {
		made = map[string]any{}
	}
	delete(fields, "signatures")
	delete(fields, "unsigned")
	canonical, err := json.Marshal(fields) // there is nothing in it that JSON has two forms of
	if err != nil {
		return err.Error()
	}
	key := s.keys[signer]
	by, _ := made[key.owner].(map[string]any)
	if by == nil {
		by = map[string]any{}
	}
	by[key.id] = base64.RawStdEncoding.EncodeToString(ed25519.Sign(key.PrivateKey, canonical))
	made[key.owner] = by
	fields["signatures"] = made
	raw, err := json.Marshal(fields)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}
