// Package authservice is an authorisation service for a LiveKit SFU (MSC4195), for the demo and the
// tests. It behaves as lk-jwt-service 0.5 does: POST /sfu/get and /get_token give tokens to whoever
// proves by an OpenID token who they are, /delegate_delayed_leave takes over delayed leaves, and
// /sfu_webhook hears from LiveKit who is connected.
package authservice

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/livekit/protocol/auth"
	"github.com/livekit/protocol/livekit"
	"github.com/livekit/protocol/webhook"
	"github.com/twitchtv/twirp"
)

// Config says for which SFU, and for whom.
type Config struct {
	LiveKitURL  string // ws or wss
	Key, Secret string
	// FullAccess are the homeservers whose users may create rooms, "*" all. Others only enter rooms
	// that exist.
	FullAccess []string
	// Homeservers are the base URLs of server names; others are asked at https://{name}.
	Homeservers map[string]string
	Log         func(format string, args ...any)
}

// Service answers requests. Every method may be called from any goroutine.
type Service struct {
	cfg  Config
	mux  *http.ServeMux
	http *http.Client
	sfu  livekit.RoomService

	ctx    context.Context
	cancel context.CancelFunc

	mu   sync.Mutex
	jobs map[participant]*job
}

// participant is somebody in a LiveKit room.
type participant struct{ room, identity string }

const validFor = time.Hour // a token

// New makes a service. Close ends it.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg, mux: http.NewServeMux(), http: &http.Client{Timeout: 10 * time.Second}, jobs: map[participant]*job{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if s.cfg.Log == nil {
		s.cfg.Log = func(string, ...any) {}
	}
	s.sfu = livekit.NewRoomServiceProtobufClient("http"+strings.TrimPrefix(cfg.LiveKitURL, "ws"), s.http)
	s.mux.HandleFunc("/sfu/get", post(s.legacyToken))
	s.mux.HandleFunc("/get_token", post(s.token))
	s.mux.HandleFunc("/delegate_delayed_leave", post(s.delegate))
	s.mux.HandleFunc("/sfu_webhook", s.webhook)
	s.mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	return s
}

func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Close forgets the leaves that were handed over: they fire unless their owners take them back.
func (s *Service) Close() { s.cancel() }

// refusal is an answer that is not a success.
type refusal struct {
	status  int
	Errcode string `json:"errcode"`
	Error   string `json:"error"`
}

func refuse(status int, errcode, format string, args ...any) *refusal {
	return &refusal{status, errcode, fmt.Sprintf(format, args...)}
}

// post answers POST requests of JSON that has no unknown fields, and the preflight of browsers.
func post[T any](answer func(context.Context, T) (any, *refusal)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Allow-Methods", "POST")
		h.Set("Access-Control-Allow-Headers", "Accept, Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token")
		switch r.Method {
		case http.MethodOptions:
			return
		case http.MethodPost:
		default:
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		var in T
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
		d.DisallowUnknownFields()
		var result any
		no := refuse(400, "M_NOT_JSON", "Error reading request")
		if d.Decode(&in) == nil {
			result, no = answer(r.Context(), in)
		}
		if no != nil {
			w.WriteHeader(no.status)
			result = no
		}
		_ = json.NewEncoder(w).Encode(result)
	}
}

type openID struct {
	AccessToken      string `json:"access_token"`
	TokenType        string `json:"token_type"`
	MatrixServerName string `json:"matrix_server_name"`
	ExpiresIn        int    `json:"expires_in"`
}

// leave is a delayed leave that is handed over.
type leave struct {
	DelayID      string `json:"delay_id"`
	DelayTimeout int64  `json:"delay_timeout"` // ms
	CSAPI        string `json:"delay_cs_api_url"`
}

func (l leave) given() bool    { return l.DelayID != "" || l.DelayTimeout > 0 }
func (l leave) complete() bool { return l.DelayID != "" && l.DelayTimeout > 0 }

type legacyRequest struct {
	Room     string `json:"room"`
	OpenID   openID `json:"openid_token"`
	DeviceID string `json:"device_id"`
	leave
}

type member struct {
	ID       string `json:"id"`
	UserID   string `json:"claimed_user_id"`
	DeviceID string `json:"claimed_device_id"`
}

type request struct {
	RoomID string `json:"room_id"`
	SlotID string `json:"slot_id"`
	OpenID openID `json:"openid_token"`
	Member member `json:"member"`
	leave
}

func (r request) check() *refusal {
	switch {
	case r.RoomID == "" || r.SlotID == "":
		return refuse(400, "M_BAD_JSON", "room_id and slot_id are required")
	case r.Member.ID == "" || r.Member.UserID == "" || r.Member.DeviceID == "":
		return refuse(400, "M_BAD_JSON", "member: id, claimed_user_id and claimed_device_id are required")
	}
	return r.OpenID.check()
}

func (o openID) check() *refusal {
	if o.AccessToken == "" || o.MatrixServerName == "" {
		return refuse(400, "M_BAD_JSON", "openid_token: access_token and matrix_server_name are required")
	}
	return nil
}

func (s *Service) legacyToken(ctx context.Context, r legacyRequest) (any, *refusal) {
	if r.Room == "" {
		return nil, refuse(400, "M_BAD_JSON", "room is required")
	}
	if no := r.OpenID.check(); no != nil {
		return nil, no
	}
	user, no := s.whoIs(ctx, r.OpenID, "")
	if no != nil {
		return nil, no
	}
	return s.admit(ctx, participant{hash(r.Room, "m.call#ROOM"), user + ":" + r.DeviceID}, r.OpenID.MatrixServerName, r.leave)
}

func (s *Service) token(ctx context.Context, r request) (any, *refusal) {
	if no := r.check(); no != nil {
		return nil, no
	}
	user, no := s.whoIs(ctx, r.OpenID, r.Member.UserID)
	if no != nil {
		return nil, no
	}
	return s.admit(ctx, r.participant(user), r.OpenID.MatrixServerName, r.leave)
}

func (s *Service) delegate(ctx context.Context, r request) (any, *refusal) {
	if no := r.check(); no != nil {
		return nil, no
	}
	if !r.complete() {
		return nil, refuse(400, "M_BAD_JSON", "delay_id and delay_timeout are required")
	}
	user, no := s.whoIs(ctx, r.OpenID, r.Member.UserID)
	switch {
	case no != nil:
		return nil, no
	case !s.fullAccess(r.OpenID.MatrixServerName):
		return nil, refuse(403, "M_FORBIDDEN", "only users with full access may hand over delayed events")
	}
	s.takeOver(r.participant(user), r.OpenID.MatrixServerName, r.leave)
	return struct{}{}, nil
}

func (r request) participant(user string) participant {
	return participant{hash(r.RoomID, r.SlotID), hash(user, r.Member.DeviceID, r.Member.ID)}
}

// hash is the unpadded base64 of the SHA-256 of a list of strings in canonical JSON.
func hash(list ...string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(list)
	text := strings.NewReplacer(`\u2028`, "\u2028", `\u2029`, "\u2029").Replace(strings.TrimSuffix(b.String(), "\n"))
	sum := sha256.Sum256([]byte(text))
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

func (s *Service) fullAccess(server string) bool {
	return len(s.cfg.FullAccess) == 1 && s.cfg.FullAccess[0] == "*" || slices.Contains(s.cfg.FullAccess, server)
}

// admit makes a token, and the room where the user may.
func (s *Service) admit(ctx context.Context, p participant, server string, l leave) (any, *refusal) {
	full := s.fullAccess(server)
	switch {
	case l.given() && !l.complete():
		return nil, refuse(400, "M_BAD_JSON", "delay_id and delay_timeout are required together")
	case l.given() && !full:
		return nil, refuse(400, "M_BAD_JSON", "only users with full access may hand over delayed events")
	}
	if full {
		if _, err := s.sfu.CreateRoom(s.asAdmin(ctx, p.room), &livekit.CreateRoomRequest{
			Name: p.room, EmptyTimeout: 5 * 60, DepartureTimeout: 20,
		}); err != nil {
			s.cfg.Log("the room cannot be created on the SFU: %v", err)
			return nil, refuse(500, "M_UNKNOWN", "Unable to create room on SFU")
		}
		if l.complete() {
			s.takeOver(p, server, l)
		}
	}
	yes := true
	jwt, err := auth.NewAccessToken(s.cfg.Key, s.cfg.Secret).SetIdentity(p.identity).SetValidFor(validFor).SetVideoGrant(&auth.VideoGrant{
		RoomJoin: true, Room: p.room, CanPublish: &yes, CanSubscribe: &yes, CanUpdateOwnMetadata: &yes,
	}).ToJWT()
	if err != nil {
		return nil, refuse(500, "M_UNKNOWN", "Internal Server Error")
	}
	return map[string]string{"url": s.cfg.LiveKitURL, "jwt": jwt}, nil
}

// asAdmin authorises calls of LiveKit's API.
func (s *Service) asAdmin(ctx context.Context, room string) context.Context {
	jwt, err := auth.NewAccessToken(s.cfg.Key, s.cfg.Secret).SetVideoGrant(&auth.VideoGrant{
		RoomCreate: true, RoomAdmin: true, RoomList: true, Room: room,
	}).ToJWT()
	if err != nil {
		return ctx
	}
	ctx, err = twirp.WithHTTPRequestHeaders(ctx, http.Header{"Authorization": {"Bearer " + jwt}})
	if err != nil {
		panic(err) // the header is one that may be set
	}
	return ctx
}

// whoIs asks the homeserver whose an OpenID token is.
func (s *Service) whoIs(ctx context.Context, o openID, claimed string) (string, *refusal) {
	no := refuse(401, "M_UNAUTHORIZED", "The request could not be authorised.")
	u := s.homeserver(o.MatrixServerName) + "/_matrix/federation/v1/openid/userinfo?access_token=" + url.QueryEscape(o.AccessToken)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return "", no
	}
	a, err := s.http.Do(r)
	if err != nil {
		s.cfg.Log("%s does not answer", o.MatrixServerName)
		return "", no
	}
	defer func() { _ = a.Body.Close() }()
	var info struct {
		Sub string `json:"sub"`
	}
	if a.StatusCode != 200 || json.NewDecoder(a.Body).Decode(&info) != nil {
		return "", no
	}
	if !strings.HasSuffix(info.Sub, ":"+o.MatrixServerName) || claimed != "" && claimed != info.Sub {
		return "", no
	}
	return info.Sub, nil
}

func (s *Service) homeserver(name string) string {
	if base, ok := s.cfg.Homeservers[name]; ok {
		return base
	}
	return "https://" + name
}

// webhook hears from LiveKit who has come and gone.
func (s *Service) webhook(w http.ResponseWriter, r *http.Request) {
	e, err := webhook.ReceiveWebhookEvent(r, auth.NewSimpleKeyProvider(s.cfg.Key, s.cfg.Secret))
	if err != nil {
		s.cfg.Log("webhook: %v", err)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	p := participant{e.GetRoom().GetName(), e.GetParticipant().GetIdentity()}
	switch e.Event {
	case webhook.EventParticipantJoined:
		s.tell(p, true)
	case webhook.EventParticipantLeft, webhook.EventParticipantConnectionAborted:
		s.tell(p, false)
	}
}

// isThere asks LiveKit whether somebody is connected.
func (s *Service) isThere(ctx context.Context, p participant) (bool, error) {
	_, err := s.sfu.GetParticipant(s.asAdmin(ctx, p.room), &livekit.RoomParticipantIdentity{Room: p.room, Identity: p.identity})
	var e twirp.Error
	if errors.As(err, &e) && e.Code() == twirp.NotFound {
		return false, nil
	}
	return err == nil, err
}
