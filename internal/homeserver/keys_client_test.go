package homeserver_test

import (
	"fmt"
	"testing"
	"time"

	"libmatrixrtc/core/client"
	"libmatrixrtc/internal/homeserver"
)

// Media keys by real Olm between managed clients on the embedded homeserver, whatever the fault.

// uses is the key that a participant encrypts with, "" none.
func (p *participant) uses() string {
	p.t.Helper()
	keys, err := p.session.EncryptionKeys()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, k := range keys {
		if k.Own && k.InUse {
			return fmt.Sprintf("%d %s", k.Index, k.Fingerprint)
		}
	}
	return ""
}

// hears says whether a participant holds the key that the other one encrypts with.
func (p *participant) hears(other *participant) bool {
	p.t.Helper()
	keys, err := p.session.EncryptionKeys()
	if err != nil {
		p.t.Fatal(err)
	}
	used := other.uses()
	for _, k := range keys {
		if !k.Own && used == fmt.Sprintf("%d %s", k.Index, k.Fingerprint) {
			return true
		}
	}
	return false
}

// waitHears waits until p holds the other's key. An event of its own tells when that comes, one of the
// other when it comes into use.
func (p *participant) waitHears(other *participant) {
	p.t.Helper()
	if !p.hears(other) {
		p.waitEither(other, "the key of the other", func(ev client.Event) bool { return ev.Name == "encryption_key_changed" && p.hears(other) })
	}
}

func TestKeysUnderEachFault(t *testing.T) {
	ofBob := `,"user":"@bob:example.test"}`
	for name, faults := range map[string][]string{
		"none":           nil,
		"slow query":     {`{"kind":"latency","delay_ms":1500,"class":"keys_query","count":2` + ofBob},
		"query fails":    {`{"kind":"error","status":502,"class":"keys_query","count":2` + ofBob},
		"query is HTML":  {`{"kind":"html","class":"keys_query","count":2` + ofBob},
		"slow claim":     {`{"kind":"latency","delay_ms":1500,"class":"keys_claim","count":2` + ofBob},
		"claim fails":    {`{"kind":"error","status":500,"errcode":"M_UNKNOWN","class":"keys_claim","count":2` + ofBob},
		"claim is lost":  {`{"kind":"drop","when":"after","class":"keys_claim"` + ofBob},
		"half a claim":   {`{"kind":"truncate","class":"keys_claim"` + ofBob},
		"upload fails":   {`{"kind":"error","status":500,"class":"keys_upload","count":2` + ofBob},
		"upload is lost": {`{"kind":"drop","when":"after","class":"keys_upload"` + ofBob},
		"slow upload":    {`{"kind":"latency","delay_ms":1500,"class":"keys_upload"` + ofBob},
		"send fails":     {`{"kind":"error","status":500,"class":"send_to_device","count":3` + ofBob},
		"send is lost":   {`{"kind":"drop","when":"after","class":"send_to_device","count":2` + ofBob},
		"send too often": {`{"kind":"rate_limit","retry_after_ms":300,"class":"send_to_device","count":3` + ofBob},
		"sync is lost":   {`{"kind":"drop","when":"after","class":"sync","count":3` + ofBob},
		"half a sync":    {`{"kind":"truncate","class":"sync","count":3` + ofBob},
		"expired token":  {`{"kind":"expire_tokens","soft":true` + ofBob},
		"restart":        {`{"kind":"restart","down_ms":300}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEmbedded(t, homeserver.Options{})
			a, b := e.register("alice"), e.register("bob")
			room := e.room(a, b)
			e.must(a.AccessToken, "PUT", "/rooms/"+room+"/state/m.room.encryption", `{"algorithm":"m.megolm.v1.aes-sha2"}`, nil)
			alice := newParticipant(t, e, a, room)
			alice.waitSync("syncing")
			alice.join(late)
			alice.waitCount(1)
			for _, f := range faults {
				e.fault(f)
			}
			bob := newParticipant(t, e, b, room)
			bob.join(late)
			alice.waitHears(bob)
			bob.waitHears(alice)

			// Who leaves has no key that is in use afterwards.
			before := alice.uses()
			bob.leave()
			alice.wait("a new key in use", func(ev client.Event) bool { return ev.Name == "encryption_key_changed" && alice.uses() != before })
		})
	}
}

// Who is in the room but not in the call is sent nothing.
func TestKeysAreForMembersOfTheCall(t *testing.T) {
	t.Parallel()
	e := newEmbedded(t, homeserver.Options{})
	a, b, c := e.register("alice"), e.register("bob"), e.register("carol")
	room := e.room(a, b, c)
	e.must(a.AccessToken, "PUT", "/rooms/"+room+"/state/m.room.encryption", `{"algorithm":"m.megolm.v1.aes-sha2"}`, nil)
	carol := newParticipant(t, e, c, room)
	carol.waitSync("syncing")
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) { // until her keys are there
		var there struct {
			Keys map[string]map[string]any `json:"device_keys"`
		}
		e.must(a.AccessToken, "POST", "/keys/query", fmt.Sprintf(`{"device_keys":{%q:[]}}`, c.UserID), &there)
		if len(there.Keys[c.UserID]) == 1 {
			break
		}
		if time.Since(began) > patience {
			t.Fatal("carol could not be sent anything")
		}
	}
	carol.Close()
	alice, bob := newParticipant(t, e, a, room), newParticipant(t, e, b, room)
	alice.join(late)
	bob.join(late)
	alice.waitHears(bob)
	bob.waitHears(alice)
	var synced struct {
		ToDevice struct{ Events []any } `json:"to_device"`
	}
	e.must(c.AccessToken, "GET", "/sync", "", &synced)
	if len(synced.ToDevice.Events) != 0 {
		t.Errorf("carol was sent %v", synced.ToDevice.Events)
	}
}
