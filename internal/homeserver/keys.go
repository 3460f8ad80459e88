package homeserver

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/id"
)

// The keys of end-to-end encryption: of devices, those that are claimed once each, and those that
// sign others' (cross-signing); and whose have changed, of those that one shares a room with.

// oneTimeKey is claimed once, or, a fallback, whenever there is no other.
type oneTimeKey struct {
	algorithm string
	id        string // with the algorithm
	key       json.RawMessage
	used      bool // of a fallback: somebody has claimed it
}

// signedKey names a key by what it signs or what it is signed as: a device id, or a public key of cross-signing.
type signedKey struct{ user, name string }

// crossSigning is the keys of a user that sign others.
var crossSigning = []string{"master", "self_signing", "user_signing"}

const maxOneTimeKeys = 500 // of a device and an algorithm

var keyRoutes = []route{
	{"keys_upload", "POST", "/v3/keys/upload", needsToken, (*Server).uploadKeys},
	{"keys_query", "POST", "/v3/keys/query", needsToken, (*Server).queryKeys},
	{"keys_claim", "POST", "/v3/keys/claim", needsToken, (*Server).claimKeys},
	{"keys_changes", "GET", "/v3/keys/changes", needsToken, (*Server).keyChanges},
	{"cross_signing", "POST", "/v3/keys/device_signing/upload", needsToken, (*Server).uploadCrossSigning},
	{"cross_signing", "POST", "/v3/keys/signatures/upload", needsToken, (*Server).uploadSignatures},
}

// announce tells those who share a room with the user that its devices or their keys have changed.
func (s *Server) announce(u *user) {
	s.pos++
	u.keysChanged = s.pos
	u.wake()
	for r := range u.rooms {
		if r.member(u.id).membership() != "join" {
			continue
		}
		for id, m := range r.members {
			if other := s.users[id]; other != nil && m.membership() == "join" {
				other.wake()
			}
		}
	}
}

func (s *Server) uploadKeys(r *request) (any, error) {
	var in struct {
		DeviceKeys   json.RawMessage            `json:"device_keys"`
		OneTimeKeys  map[string]json.RawMessage `json:"one_time_keys"`
		FallbackKeys map[string]json.RawMessage `json:"fallback_keys"`
	}
	if err := r.json(&in); err != nil {
		return nil, err
	}
	d := r.device
	var deviceKeys json.RawMessage
	if in.DeviceKeys != nil {
		var err error
		if deviceKeys, err = checkDeviceKeys(in.DeviceKeys, d); err != nil {
			return nil, err
		}
	}
	oneTime, err := readOneTimeKeys("one_time_keys", in.OneTimeKeys)
	if err != nil {
		return nil, err
	}
	fallback, err := readOneTimeKeys("fallback_keys", in.FallbackKeys)
	if err != nil {
		return nil, err
	}
	if deviceKeys != nil && !bytes.Equal(d.keys, deviceKeys) {
		d.keys = deviceKeys
		s.announce(d.user)
	}
	if err := d.addOneTimeKeys(oneTime); err != nil {
		return nil, err
	}
	for _, k := range fallback {
		if old := d.fallback[k.algorithm]; old == nil || !bytes.Equal(old.key, k.key) {
			d.fallback[k.algorithm] = k
		}
	}
	return map[string]any{"one_time_key_counts": d.oneTimeCounts()}, nil
}

// checkDeviceKeys is a device's keys in one form, or what is wrong with them.
func checkDeviceKeys(raw json.RawMessage, d *device) (json.RawMessage, error) {
	var in struct {
		Algorithms []string                     `json:"algorithms"`
		UserID     string                       `json:"user_id"`
		DeviceID   string                       `json:"device_id"`
		Keys       map[string]string            `json:"keys"`
		Signatures map[string]map[string]string `json:"signatures"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, fail(400, "M_BAD_JSON", "device_keys: %v", err)
	}
	var given map[string]json.RawMessage
	_ = json.Unmarshal(raw, &given) // it is an object, or null
	if given == nil {
		return nil, fail(400, "M_INVALID_PARAM", "device_keys: must be an object")
	}
	var missing []string
	for _, name := range []string{"algorithms", "user_id", "device_id", "keys", "signatures"} {
		if given[name] == nil {
			missing = append(missing, name)
		}
	}
	switch {
	case len(missing) == 1:
		return nil, fail(400, "M_MISSING_PARAM", "device_keys: %s is missing", missing[0])
	case missing != nil:
		return nil, fail(400, "M_BAD_JSON", "device_keys: %s are missing", strings.Join(missing, ", "))
	}
	if in.UserID != d.user.id || in.DeviceID != d.id {
		return nil, fail(400, "M_BAD_JSON", "device_keys: are of %s %s and must be of %s %s", in.UserID, in.DeviceID, d.user.id, d.id)
	}
	return checkContent(raw)
}

// readOneTimeKeys has them in the order of their ids.
func readOneTimeKeys(field string, in map[string]json.RawMessage) ([]*oneTimeKey, error) {
	var keys []*oneTimeKey
	for _, name := range slices.Sorted(maps.Keys(in)) {
		algorithm, rest, ok := strings.Cut(name, ":")
		if !ok || strings.Contains(rest, ":") {
			return nil, fail(400, "M_BAD_JSON", "%s: expected algorithm:id, got %q", field, name)
		}
		var plain string
		var signed struct {
			Key        *string                      `json:"key"`
			Signatures map[string]map[string]string `json:"signatures"`
		}
		raw := in[name]
		switch {
		case json.Unmarshal(raw, &plain) == nil && string(raw) != "null":
		case json.Unmarshal(raw, &signed) != nil || signed.Key == nil || signed.Signatures == nil:
			return nil, fail(400, "M_BAD_JSON", "%s: %s must be a string or an object with key and signatures", field, name)
		default:
			var err error
			if raw, err = checkContent(raw); err != nil {
				return nil, err
			}
		}
		keys = append(keys, &oneTimeKey{algorithm: algorithm, id: name, key: raw})
	}
	return keys, nil
}

// addOneTimeKeys adds all or none.
func (d *device) addOneTimeKeys(keys []*oneTimeKey) error {
	counts := d.oneTimeCounts()
	var fresh []*oneTimeKey
	for _, k := range keys {
		i := slices.IndexFunc(d.oneTime, func(there *oneTimeKey) bool { return there.id == k.id })
		switch {
		case i < 0:
			fresh = append(fresh, k)
			counts[k.algorithm]++
		case !bytes.Equal(withoutSignatures(d.oneTime[i].key), withoutSignatures(k.key)):
			return fail(400, "M_UNKNOWN", "one_time_keys: %s is there with another key", k.id)
		}
	}
	for algorithm, n := range counts {
		if n > maxOneTimeKeys {
			return fail(400, "M_TOO_LARGE", "one_time_keys: the device would have %d of %s, at most %d are kept", n, algorithm, maxOneTimeKeys)
		}
	}
	d.oneTime = append(d.oneTime, fresh...)
	return nil
}

func (d *device) oneTimeCounts() map[string]int {
	counts := map[string]int{"signed_curve25519": 0}
	for _, k := range d.oneTime {
		counts[k.algorithm]++
	}
	return counts
}

func (d *device) unusedFallbacks() []string {
	algorithms := []string{}
	for _, a := range slices.Sorted(maps.Keys(d.fallback)) {
		if !d.fallback[a].used {
			algorithms = append(algorithms, a)
		}
	}
	return algorithms
}

// claim takes the oldest key, or the fallback.
func (d *device) claim(algorithm string) *oneTimeKey {
	i := slices.IndexFunc(d.oneTime, func(k *oneTimeKey) bool { return k.algorithm == algorithm })
	if i >= 0 {
		k := d.oneTime[i]
		d.oneTime = slices.Delete(d.oneTime, i, i+1)
		return k
	}
	k := d.fallback[algorithm]
	if k != nil {
		k.used = true
	}
	return k
}

// isLocal says whether a user would be one of this server.
func (s *Server) isLocal(userID string) bool {
	_, domain, _ := strings.Cut(userID, ":")
	return domain == s.ServerName
}

// unreachable is what is told of another server: there is no other.
func unreachable(failures map[string]any, userID string) {
	_, domain, _ := strings.Cut(userID, ":")
	failures[domain] = map[string]any{"status": 503, "message": "there is no other server"}
}

func (s *Server) queryKeys(r *request) (any, error) {
	var in struct {
		DeviceKeys map[string][]string `json:"device_keys"`
	}
	if err := r.json(&in); err != nil {
		return nil, err
	}
	if in.DeviceKeys == nil {
		return nil, fail(400, "M_BAD_JSON", "device_keys is missing")
	}
	for _, devices := range in.DeviceKeys {
		if devices == nil {
			return nil, fail(400, "M_BAD_JSON", "device_keys: must be lists of device ids")
		}
	}
	found, failures := map[string]map[string]any{}, map[string]any{}
	crossKeys := map[string]map[string]any{"master": {}, "self_signing": {}, "user_signing": {}}
	for userID, wanted := range in.DeviceKeys {
		if checkUserID(userID) != nil {
			continue
		}
		if !s.isLocal(userID) {
			unreachable(failures, userID)
			continue
		}
		found[userID] = map[string]any{}
		u := s.users[userID]
		if u == nil {
			continue
		}
		for id, d := range u.devices {
			if d.keys != nil && (len(wanted) == 0 || slices.Contains(wanted, id)) {
				keys := u.withSignatures(d.keys, id, u)
				keys["unsigned"] = mustJSON(struct{}{})
				found[userID][id] = keys
			}
		}
		for _, kind := range crossSigning {
			if key := u.crossSigning[kind]; key != nil && (kind != "user_signing" || u == r.user) {
				crossKeys[kind][userID] = u.withSignatures(key.raw, key.public, r.user)
			}
		}
	}
	return map[string]any{
		"device_keys": found, "failures": failures,
		"master_keys": crossKeys["master"], "self_signing_keys": crossKeys["self_signing"], "user_signing_keys": crossKeys["user_signing"],
	}, nil
}

func (s *Server) claimKeys(r *request) (any, error) {
	var in struct {
		OneTimeKeys map[string]map[string]string `json:"one_time_keys"`
	}
	if err := r.json(&in); err != nil {
		return nil, err
	}
	for userID := range in.OneTimeKeys {
		if err := checkUserID(userID); err != nil {
			return nil, fail(400, "M_INVALID_PARAM", "one_time_keys: %v", err)
		}
	}
	claimed, failures := map[string]map[string]any{}, map[string]any{}
	for userID, devices := range in.OneTimeKeys {
		u := s.users[userID]
		if u == nil {
			if !s.isLocal(userID) {
				unreachable(failures, userID)
			}
			continue
		}
		for id, algorithm := range devices {
			d := u.devices[id]
			if d == nil {
				continue
			}
			if k := d.claim(algorithm); k != nil {
				if claimed[userID] == nil {
					claimed[userID] = map[string]any{}
				}
				claimed[userID][id] = map[string]json.RawMessage{k.id: k.key}
			}
		}
	}
	return map[string]any{"one_time_keys": claimed, "failures": failures}, nil
}

// keyChanges tells of all since a position, whatever the end that is asked for.
func (s *Server) keyChanges(r *request) (any, error) {
	from := r.URL.Query().Get("from")
	if from == "" {
		return nil, fail(400, "M_MISSING_PARAM", "from is missing")
	}
	since, _, err := parseSyncToken(from)
	if err != nil {
		return nil, err
	}
	met := newMeetings()
	for room := range r.user.rooms {
		me := room.member(r.user.id)
		was, is := me.at(since).membership(), me.membership()
		switch {
		case is == "join":
			for _, e := range room.log[room.after(since):] {
				met.seen(e, e.prev.membership() == "join" || e.prev.membership() == "invite")
			}
			if me.leftSince(since) {
				met.joined(room)
			}
		case was == "join" || me.pos > since && me.prev.membership() == "join":
			met.left(room)
		}
	}
	lists := met.deviceLists(s, r.user, since)
	return map[string][]string{"changed": append([]string{}, lists.Changed...), "left": append([]string{}, lists.Left...)}, nil
}

// leftSince says whether its user was not always in the room since a position.
func (e *event) leftSince(since int64) bool {
	for ; e != nil && e.pos > since; e = e.prev {
		if e.prev.membership() != "join" {
			return true
		}
	}
	return false
}

// meetings is whom a user has met in rooms, and whom it may have lost sight of.
type meetings struct{ came, gone map[string]bool }

func newMeetings() meetings { return meetings{map[string]bool{}, map[string]bool{}} }

// seen takes in an event of a room that the user is in; was says that its user was there before.
func (m meetings) seen(e *event, was bool) {
	if e.key == nil || e.typ != "m.room.member" {
		return
	}
	switch e.membership() {
	case "join", "invite":
		m.came[*e.key] = true
		delete(m.gone, *e.key)
	default:
		delete(m.came, *e.key)
		if was {
			m.gone[*e.key] = true
		}
	}
}

func (m meetings) joined(r *room) { m.all(r, m.came) }
func (m meetings) left(r *room)   { m.all(r, m.gone) }

func (m meetings) all(r *room, into map[string]bool) {
	for id, e := range r.members {
		if e.membership() == "join" {
			into[id] = true
		}
	}
}

// deviceLists is whose devices a client has to ask for anew, and whose no more.
type deviceLists struct {
	Changed []string `json:"changed,omitempty"`
	Left    []string `json:"left,omitempty"`
}

// deviceLists adds to whom a user has met those whose keys have changed since.
func (m meetings) deviceLists(s *Server, of *user, since int64) *deviceLists {
	if of.keysChanged > since {
		m.came[of.id] = true
	}
	for target, pos := range of.signed {
		if pos > since {
			m.came[target] = true
		}
	}
	for r := range of.rooms {
		if r.member(of.id).membership() != "join" {
			continue
		}
		for id, e := range r.members {
			if e.membership() != "join" {
				continue
			}
			delete(m.gone, id)
			if u := s.users[id]; u != nil && u.keysChanged > since {
				m.came[id] = true
			}
		}
	}
	return &deviceLists{slices.Sorted(maps.Keys(m.came)), slices.Sorted(maps.Keys(m.gone))}
}

// crossSigningKey is one of a user's keys that sign others.
type crossSigningKey struct {
	raw    json.RawMessage
	keyID  string // ed25519:public
	public string
}

// readCrossSigningKey reads a key and checks its signature by the master key, if one is given.
func readCrossSigningKey(raw json.RawMessage, u *user, kind string, master *crossSigningKey) (*crossSigningKey, error) {
	invalid := fail(400, "M_INVALID_PARAM", "this is no %s key of %s", kind, u.id)
	var in struct {
		UserID string            `json:"user_id"`
		Usage  []string          `json:"usage"`
		Keys   map[string]string `json:"keys"`
	}
	canonical, err := checkContent(raw)
	if err != nil || json.Unmarshal(raw, &in) != nil || in.UserID != u.id || !slices.Contains(in.Usage, kind) || len(in.Keys) != 1 {
		return nil, invalid
	}
	key := &crossSigningKey{raw: canonical}
	for keyID, public := range in.Keys { // the only one
		key.keyID, key.public = keyID, public
	}
	if !isEd25519(key.keyID, key.public) {
		return nil, invalid
	}
	if master != nil && !verify(raw, u, master.keyID, master.public) {
		return nil, fail(400, "M_INVALID_SIGNATURE", "the %s key is not signed by the master key", kind)
	}
	return key, nil
}

func isEd25519(keyID, public string) bool {
	raw, err := base64.RawStdEncoding.DecodeString(public)
	return err == nil && len(raw) == 32 && strings.HasPrefix(keyID, "ed25519:")
}

// verify checks the signature of a user's key on an object.
func verify(object json.RawMessage, u *user, keyID, public string) bool {
	if !isEd25519(keyID, public) {
		return false
	}
	ok, err := signatures.VerifySignatureJSON(object, id.UserID(u.id), strings.TrimPrefix(keyID, "ed25519:"), id.Ed25519(public))
	return ok && err == nil
}

// uploadCrossSigning sets keys; what replaces others needs the password.
func (s *Server) uploadCrossSigning(r *request) (any, error) {
	in := map[string]json.RawMessage{}
	if err := r.json(&in); err != nil {
		return nil, err
	}
	u := r.user
	differs := false
	for _, kind := range crossSigning {
		if raw, given := in[kind+"_key"]; given {
			canonical, err := checkContent(raw)
			old := u.crossSigning[kind]
			differs = differs || err != nil || old == nil || !bytes.Equal(old.raw, canonical)
		}
	}
	if !differs {
		return struct{}{}, nil
	}
	if u.crossSigning["master"] != nil {
		if err := u.authorizeReset(in["auth"]); err != nil {
			return nil, err
		}
	}
	master := u.crossSigning["master"]
	fresh := map[string]*crossSigningKey{}
	for _, kind := range crossSigning {
		signedBy := master
		if kind == "master" {
			signedBy = nil
		}
		if raw, given := in[kind+"_key"]; given {
			if kind != "master" && master == nil {
				return nil, fail(400, "M_MISSING_PARAM", "there is no master key")
			}
			key, err := readCrossSigningKey(raw, u, kind, signedBy)
			if err != nil {
				return nil, err
			}
			fresh[kind] = key
			if kind == "master" {
				master = key
			}
		}
	}
	maps.Copy(u.crossSigning, fresh)
	if fresh["user_signing"] != nil {
		s.noteSigned(u, u.id)
	}
	if fresh["master"] != nil || fresh["self_signing"] != nil {
		s.announce(u)
	}
	return struct{}{}, nil
}

// authorizeReset is the one stage of the flow in which keys are replaced.
func (u *user) authorizeReset(raw json.RawMessage) error {
	var auth struct {
		Type     string  `json:"type"`
		Password *string `json:"password"`
	}
	if raw != nil && json.Unmarshal(raw, &auth) != nil {
		return fail(400, "M_BAD_JSON", "auth must be an object")
	}
	if auth.Type == "m.login.password" && auth.Password != nil && *auth.Password == u.password {
		return nil
	}
	e := fail(401, "", "")
	if auth.Type == "m.login.password" {
		e = fail(401, "M_FORBIDDEN", "wrong password")
	}
	e.more = map[string]any{
		"session": random(24), "params": struct{}{}, "flows": []any{map[string][]string{"stages": {"m.login.password"}}},
	}
	return e
}

// noteSigned tells a user's own devices that a signature of theirs on another user's key is new.
func (s *Server) noteSigned(by *user, target string) {
	s.pos++
	by.signed[target] = s.pos
	by.wake()
}

// withSignatures adds to a key of the user the signatures that by has uploaded.
func (u *user) withSignatures(raw json.RawMessage, name string, by *user) map[string]json.RawMessage {
	var object map[string]json.RawMessage
	_ = json.Unmarshal(raw, &object) // checked when it was uploaded
	made := by.signatures[signedKey{u.id, name}]
	if len(made) == 0 {
		return object
	}
	all := map[string]map[string]json.RawMessage{}
	_ = json.Unmarshal(object["signatures"], &all)
	if all[by.id] == nil {
		all[by.id] = map[string]json.RawMessage{}
	}
	for keyID, signature := range made {
		all[by.id][keyID] = mustJSON(signature)
	}
	object["signatures"] = mustJSON(all)
	return object
}

// uploadSignatures takes signatures on the user's own devices and master key, and on the master
// keys of others. Each is taken or fails for itself.
func (s *Server) uploadSignatures(r *request) (any, error) {
	if err := r.json(nil); err != nil {
		return nil, err
	}
	var in map[string]map[string]map[string]json.RawMessage
	if err := json.Unmarshal(r.body, &in); err != nil {
		return nil, fail(400, "M_INVALID_PARAM", "expected users, their keys, and those signed")
	}
	failures := map[string]map[string]any{}
	taken := map[string]bool{}
	for userID, keys := range in {
		for name, object := range keys {
			fresh, err := s.takeSignature(r.user, signedKey{userID, name}, mustJSON(object))
			if err == nil {
				taken[userID] = taken[userID] || fresh
				continue
			}
			if failures[userID] == nil {
				failures[userID] = map[string]any{}
			}
			failures[userID][name] = map[string]any{"status": err.status, "errcode": err.code, "message": err.message}
		}
	}
	for userID, fresh := range taken {
		switch {
		case !fresh:
		case userID == r.user.id:
			s.announce(r.user)
		default:
			s.noteSigned(r.user, userID)
		}
	}
	return map[string]any{"failures": failures}, nil
}

var errInvalidSignature = fail(400, "M_INVALID_SIGNATURE", "the signature is missing or wrong")

func (s *Server) takeSignature(by *user, on signedKey, raw json.RawMessage) (fresh bool, _ *apiError) {
	var in struct {
		Signatures map[string]map[string]string `json:"signatures"`
	}
	if json.Unmarshal(raw, &in) != nil {
		return false, errInvalidSignature
	}
	signer, known := by.crossSigning["user_signing"], by.crossSigning["user_signing"] != nil
	own := on.user == by.id
	if own {
		signer, known = by.crossSigning["self_signing"], by.crossSigning["self_signing"] != nil && by.crossSigning["master"] != nil
	}
	if !known {
		return false, fail(404, "M_NOT_FOUND", "there is no cross-signing key of %s", by.id)
	}
	target := s.users[on.user]
	if target == nil || target.crossSigning["master"] == nil {
		return false, fail(404, "M_NOT_FOUND", "%s has no master key", on.user)
	}
	master := target.crossSigning["master"]
	var stored json.RawMessage
	signers := map[string]string{signer.keyID: signer.public}
	switch {
	case own && on.name == master.public:
		stored, signers = master.raw, by.deviceSigners(in.Signatures[by.id])
	case own && by.devices[on.name] != nil && by.devices[on.name].keys != nil:
		stored = by.devices[on.name].keys
	case !own && on.name == master.public:
		stored = master.raw
	default:
		return false, fail(404, "M_NOT_FOUND", "there is no key %s of %s", on.name, on.user)
	}
	if len(signers) == 0 {
		return false, errInvalidSignature
	}
	for keyID, public := range signers {
		signature := in.Signatures[by.id][keyID]
		if signature == "" {
			return false, errInvalidSignature
		}
		if by.signatures[on][keyID] != "" {
			continue
		}
		if !bytes.Equal(withoutSignatures(raw), withoutSignatures(stored)) {
			return false, fail(400, "M_UNKNOWN", "the key signed is not the one that is there")
		}
		if !verify(raw, by, keyID, public) {
			return false, errInvalidSignature
		}
	}
	for keyID := range signers {
		if by.signatures[on] == nil {
			by.signatures[on] = map[string]string{}
		}
		fresh = fresh || by.signatures[on][keyID] == ""
		by.signatures[on][keyID] = in.Signatures[by.id][keyID]
	}
	return fresh, nil
}

// deviceSigners is the keys of the user's devices that have made these signatures. A device that is
// not there has no key, with which nothing verifies.
func (u *user) deviceSigners(made map[string]string) map[string]string {
	signers := map[string]string{}
	for keyID := range made {
		signers[keyID] = ""
		if d := u.devices[strings.TrimPrefix(keyID, "ed25519:")]; d != nil {
			var device struct {
				Keys map[string]string `json:"keys"`
			}
			_ = json.Unmarshal(d.keys, &device) // checked when it was uploaded
			signers[keyID] = device.Keys[keyID]
		}
	}
	return signers
}

// withoutSignatures is an object in canonical form without its signatures and what no signature is on.
func withoutSignatures(raw json.RawMessage) json.RawMessage {
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil {
		return raw
	}
	delete(object, "signatures")
	delete(object, "unsigned")
	canonical, err := checkContent(mustJSON(object))
	if err != nil {
		return raw
	}
	return canonical
}
