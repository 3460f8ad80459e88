package session

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"libmatrixrtc/core/livekit"
	"libmatrixrtc/core/wire"
)

// Where the homeserver offers to have the media (MSC4143): its endpoint, unstable or stable, else
// .well-known. It is asked when somebody first needs to know, at every join, and every hour since:
// sooner where nothing was offered and a .well-known did not answer.
type offers struct {
	set    *Set
	wanted bool
	known  bool
	list   []json.RawMessage

	place   int           // that is asked next
	silent  bool          // a .well-known did not answer, this time
	doubts  int           // times in a row that because of this nothing is known for sure
	learned time.Duration // Boot
	again   time.Duration // Boot: when to ask once more
	task    task
	timer   timer
}

const (
	offersGoodFor = time.Hour
	offersFresh   = time.Minute // a join does not ask again what is so young
	offersDoubt   = time.Minute // at first, doubled each time
)

// places are where a homeserver may say what it offers.
func (f *offers) places() []wire.HTTPRequest {
	return []wire.HTTPRequest{
		{Method: "GET", Path: "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports"},
		{Method: "GET", Path: "/_matrix/client/v1/rtc/transports"},
		{Method: "GET", Path: "/.well-known/matrix/client"},
		{Method: "GET", Path: "/.well-known/matrix/client", BaseURL: "https://" + f.set.cfg.UserID.Homeserver()},
	}
}

// want has the offers asked for, once more if what is known is older than that.
func (f *offers) want(now Time, age time.Duration) {
	f.wanted = true
	if f.known && now.Boot-f.learned > age {
		f.again = now.Boot
	}
	f.step(now)
}

func (f *offers) step(now Time) {
	if !f.wanted || f.set.cfg.UserID == "" {
		return
	}
	if f.known && f.place == 0 && f.task.inflight == 0 && now.Boot < f.again {
		f.set.timers.set(&f.timer, f.again)
		return
	}
	places := f.places()
	place := places[f.place]
	request := wire.Request{Kind: wire.GetTransports, Ready: &place, Anonymous: f.place > 1}
	again, _ := f.set.ask(now, nil, &f.task, request, func(now Time, a wire.Answer, _ bool) {
		found, e := livekit.Transports(a.Body), a.Err
		silent := e != nil && (e.Network || e.Status == 401 || e.Status == 429 || e.Status >= 500)
		if silent && f.place < 2 {
			f.set.backOff(now, &f.task, e)
			f.step(now)
			return
		}
		f.silent = f.silent || silent
		if len(found) > 0 || f.place == len(places)-1 {
			f.learn(now, found)
		} else {
			f.place++
		}
		f.step(now)
	})
	f.set.timers.set(&f.timer, again)
}

func (f *offers) learn(now Time, list []json.RawMessage) {
	goodFor := offersGoodFor
	if f.silent && len(list) == 0 {
		list = f.list
		goodFor = min(offersDoubt<<min(f.doubts, 10), offersGoodFor)
		goodFor = goodFor/2 + time.Duration(f.set.random()*float64(goodFor/2))
		f.doubts++
	} else {
		f.doubts = 0
	}
	changed := !f.known || !slices.EqualFunc(f.list, list, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) })
	f.known, f.list, f.place, f.silent = true, list, 0, false
	f.learned, f.again = now.Boot, now.Boot+goodFor
	if !changed {
		return
	}
	f.set.tell(Event{Name: EventTransportsChanged, Data: TransportsChanged{f.transports()}})
	for _, o := range f.set.inOrder() {
		o.sfus.judge()
		f.set.timers.set(&o.timer, now.Boot)
	}
}

func (f *offers) transports() []json.RawMessage { return append([]json.RawMessage{}, f.list...) }

// Transports are what the homeserver offers; known says whether it has been asked with success.
func (s *Set) Transports(now Time) (list []json.RawMessage, known bool) {
	s.offers.want(now, offersGoodFor)
	return s.offers.transports(), s.offers.known
}

// SFUTrust says which authorisation services may have an OpenID token of ours.
type SFUTrust struct {
	Mode    string   // "members" (whom the members of a call name), "homeserver" (what ours offers), "list"
	Allowed []string // with "list": URLs
}

// distrust says why an SFU is not to be talked to; "" where it may be. Whom we name ourselves, as
// our own transport or in the list, may be on a private address.
func (s *Set) distrust(o *own, sfu string) string {
	offered, listed, named := s.vouchers(o, sfu)
	if err := livekit.CheckURL(sfu, s.mayBePrivate(o, sfu)); err != nil {
		return err.Error()
	}
	switch {
	case named || s.cfg.SFUTrust.Mode == "" || s.cfg.SFUTrust.Mode == "members":
	case s.cfg.SFUTrust.Mode == "homeserver" && !offered:
		return "our homeserver does not offer it, and sfu_trust is \"homeserver\""
	case s.cfg.SFUTrust.Mode == "list" && !listed:
		return "it is not in the list of sfu_trust"
	}
	return ""
}

// vouchers are those, beside members, who name an SFU: our homeserver, sfu_trust, and we ourselves.
func (s *Set) vouchers(o *own, sfu string) (offered, listed, named bool) {
	is := func(t json.RawMessage) bool { return livekit.SFU(t) == sfu }
	return slices.ContainsFunc(s.offers.list, is), slices.Contains(s.cfg.SFUTrust.Allowed, sfu),
		o.joined && slices.ContainsFunc(o.transports, is)
}

// mayBePrivate: members cannot send us to an address of our own network.
func (s *Set) mayBePrivate(o *own, sfu string) bool {
	offered, listed, named := s.vouchers(o, sfu)
	return s.cfg.PrivateSFUs || offered || listed || named
}

// ownTransport is the first transport that the homeserver offers, as ours.
func (f *offers) ownTransport(roomID string) (json.RawMessage, error) {
	for _, t := range f.list {
		if livekit.SFU(t) != "" {
			return wire.OwnTransport(t, roomID)
		}
	}
	doubt := ""
	if f.doubts > 0 {
		doubt = ", as far as is known without its .well-known/matrix/client, which does not answer"
	}
	return nil, fmt.Errorf("the homeserver offers no LiveKit transport%s: name one in foci_preferred, or have the homeserver offer one (MSC4143)", doubt)
}
