/* libmatrixrtc: MatrixRTC (MSC4143), the layer under a Matrix call, as a C library.
 *
 * It manages who is in a call: it announces this device, keeps that announcement true under
 * failures, and tells who else is there and where their media is. It never touches media.
 *
 * HANDLES. A handle is a 64-bit number below 2^53; 0 is never valid. A handle that was freed, or
 * never existed, is answered with MRTC_ERR_INVALID_HANDLE. It never crashes.
 *
 * STATUS. Functions return an mrtc_status: 0 for success, negative for an error. An internal error
 * ends the client that it happens in, and no other: the event client_failed {"message"} tells, and
 * then only its events, mrtc_client_info and mrtc_client_free work.
 *
 * JSON. Arguments are NUL-terminated UTF-8 JSON; fields that a function does not know are refused
 * by name. Results come through the trailing `out`, which may be NULL. After a failure the same
 * `out` holds an error object:
 *     {"status": "MRTC_ERR_INVALID_ARGUMENT", "message": "...", "path": "/field"?,
 *      "errcode": "M_..."?, "http_status": n?, "retry_after_ms": n?, "reason": "..."?,
 *      "soft_logout": true? (the token is dead, the device is not: a new token of it is enough)}
 * Whatever `out` receives belongs to the caller, who frees it with mrtc_free. Where there is
 * nothing to tell, *out is NULL. Durations end in _ms, Unix times (milliseconds) in _ts.
 *
 * EVENTS. Each event is a JSON object {"event", "client", "session"?, "room_id"?, "seq", "ts", ...}.
 * They come in order, each once, to listeners and to the queue of mrtc_client_next_event; both
 * may be used together.
 *
 * THREADS. Any function may be called from any thread at any time, several at once, also from
 * inside a callback. Nothing waits unless its name says so (_wait, _next_event).
 *
 * FORK. The library cannot be used in a forked child of a process that has loaded it: there
 * every function that returns a status answers MRTC_ERR_FORKED. Load it after the fork.
 *
 * SIGNALS. The Go runtime inside installs handlers for SIGSEGV, SIGBUS, SIGFPE, SIGPIPE and
 * SIGURG at load, which pass on what is not theirs to earlier handlers. An engine that installs
 * its own must set SA_ONSTACK and chain. A call wants 64 KiB of free stack. The library cannot be
 * unloaded, and writes nothing to stdout or stderr.
 */
#ifndef MATRIXRTC_H
#define MATRIXRTC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface; mrtc_abi_version() of a library that fits answers the same. */
#define MRTC_ABI_VERSION 1

typedef uint64_t mrtc_client;
typedef uint64_t mrtc_session;
typedef uint64_t mrtc_listener;
typedef int32_t mrtc_status;

enum {
  MRTC_OK = 0,
  MRTC_TIMEOUT = 1,               /* nothing came in time; not an error */
  MRTC_ERR_INVALID_ARGUMENT = -1, /* see "path" of the error object */
  MRTC_ERR_INVALID_HANDLE = -2,   /* stale, foreign, or 0 */
  MRTC_ERR_INVALID_STATE = -3,    /* not now: not joined, already started, ... */
  MRTC_ERR_WOULD_DEADLOCK = -4,   /* a waiting function, called where it can never return */
  MRTC_ERR_HOMESERVER = -5,       /* the homeserver refused; see "errcode" and "http_status" */
  MRTC_ERR_NETWORK = -6,          /* no answer from the homeserver */
  MRTC_ERR_INTERNAL = -7,         /* a bug of this library; the log has the trace */
  MRTC_ERR_FORKED = -8,           /* called in a forked child */
  MRTC_ERR_CLIENT_FAILED = -9,    /* an internal error has ended this client; free it */
  MRTC_ERR_NOT_FOUND = -10,       /* no such listener or request */
  MRTC_ERR_SFU = -11              /* an SFU cannot be entered; see "reason" */
};

/* ---- Library ---------------------------------------------------------------------------- */

/* The version of the library, as "1.2.3". Static; do not free. */
const char *mrtc_version(void);

/* The version of the interface of this library; compare with MRTC_ABI_VERSION. */
int mrtc_abi_version(void);

/* The name of a status, "MRTC_ERR_UNKNOWN" for a number that is none. Static; do not free. */
const char *mrtc_status_name(mrtc_status status);

/* Frees what an `out` received. NULL is allowed. Works in a forked child as well. */
void mrtc_free(void *p);

/* Log lines: level 0 debug, 1 info, 2 warning, 3 error; json is an object with "message" and
 * fields, valid during the call. Called from the library's callback thread, never two at once.
 * No secret is ever logged. */
typedef void (*mrtc_log_fn)(int level, const char *json, size_t len, void *user_data);

/* Sets the receiver of log lines of at least min_level, for the whole library; NULL turns
 * logging off. When it returns, the earlier receiver is not running and is not called again
 * (called from inside a callback, that takes effect when the callback returns). */
mrtc_status mrtc_set_log_callback(mrtc_log_fn callback, void *user_data, int min_level);

/* ---- Listeners -------------------------------------------------------------------------- */

/* handle is the client or session that the listener was added to; event the name; json the whole
 * event, len bytes and a NUL, valid during the call. Called from one library thread, never two
 * at once, never while the library holds a lock. */
typedef void (*mrtc_listener_fn)(uint64_t handle, const char *event, const char *json, size_t len, void *user_data);

enum {
  MRTC_ONCE = 1,   /* removed before its first call */
  MRTC_PREPEND = 2 /* called before those that are there already */
};

/* Adds a listener to a client or a session. A session's listeners get the events of the session,
 * a client's those of the client and of all its sessions. event NULL means every event. Listeners
 * are called in order of registration; the same one added twice is called twice. *id, if id is
 * not NULL, receives what mrtc_remove_listener takes. Errors: INVALID_HANDLE, INVALID_ARGUMENT. */
mrtc_status mrtc_add_listener(uint64_t handle, const char *event, mrtc_listener_fn callback, void *user_data,
                              uint32_t flags, mrtc_listener *id, char **out);

/* Removes a listener. When this returns, its callback is not running and will not run again;
 * called from inside a callback, that holds once the callback has returned. NOT_FOUND where it
 * was removed before. */
mrtc_status mrtc_remove_listener(mrtc_listener id, char **out);

/* Removes all listeners of a handle, or those of one event. Waits as mrtc_remove_listener does. */
mrtc_status mrtc_remove_all_listeners(uint64_t handle, const char *event, char **out);

/* How many listeners a handle has: for one event (those for every event not counted), or in all
 * (event NULL). */
mrtc_status mrtc_listener_count(uint64_t handle, const char *event, size_t *count, char **out);

/* Sends an event of the host's own to the listeners and the queue of a handle, behind the events
 * that already wait. json is an object or NULL; its fields become the event's. *had_listeners, if
 * not NULL, says whether there were any. */
mrtc_status mrtc_emit(uint64_t handle, const char *event, const char *json, int *had_listeners, char **out);

/* ---- Client ------------------------------------------------------------------------------ */

/* Makes a client: one device of one Matrix account. Nothing happens before mrtc_client_start.
 * config:
 *   managed (default): {"homeserver_url", and either "user_id" + "password" or "access_token",
 *     "device_id"?, "refresh_token"?, "initial_device_display_name"?, "proxy_url"?, "ca_file"?
 *     (PEM), "user_agent"?, "sfu_trust"?, "max_membership_expiry_ms"?, "store_path"? + "pickle_key",
 *     "recovery_key"?}. With a password and a device_id, that device is logged in again.
 *   host-driven: {"mode": "host_driven", "user_id", "device_id", "clock"?: "real" | "manual",
 *     "sfu_trust"?, "max_membership_expiry_ms"?}.
 * sfu_trust: which authorisation services may have an OpenID token, which proves to anybody who
 * holds it who we are: "members" (those that the members of a call name; the default),
 * "homeserver" (those that it offers), or an array of their URLs. TLS is required except on
 * loopback, and a member cannot send us to a private address unless our homeserver is on one.
 * max_membership_expiry_ms (a day): for so long after its event came does a membership count, whatever
 * expiry and date the member has written.
 * In encrypted rooms the device has encryption keys of its own. With store_path, a SQLite file that
 * pickle_key encrypts, they outlive the process, and a device that is used again needs its file;
 * one file belongs to one device, and to one client at a time. recovery_key, of the account's
 * secret storage, makes the device a verified one. A wrong one of the three is told by a sync_state
 * whose "error" has its name in "path": with the state "error" nothing more is tried, with "syncing"
 * calls go on, but without media keys.
 * Errors: INVALID_ARGUMENT. */
mrtc_status mrtc_client_new(const char *config, mrtc_client *client, char **out);

/* Logs in and syncs, in the background. What comes of it are events "sync_state" {"state":
 * "initial" | "syncing" | "reconnecting" | "error" | "stopped", "error"?}. After "error" nothing
 * more is tried until mrtc_client_set_access_token. A client is started once. A token that expires is
 * renewed with the refresh_token, or where the device still exists with the password, and the event
 * token_refreshed {"access_token", "refresh_token"?, "expires_in_ms"?} gives the host the new ones to
 * store. */
mrtc_status mrtc_client_start(mrtc_client client, char **out);

/* Leaves the calls that are joined (within 10 s; after that their delayed leave removes us), then
 * ends sync and requests, in the background. The end is sync_state "stopped". */
mrtc_status mrtc_client_stop(mrtc_client client, char **out);

/* mrtc_client_stop, and waits for its end: MRTC_TIMEOUT if that takes longer than timeout_ms (-1:
 * for ever). WOULD_DEADLOCK inside a callback. */
mrtc_status mrtc_client_stop_wait(mrtc_client client, int64_t timeout_ms, char **out);

/* Frees a client with its sessions and listeners, at once, whatever else is going on. Calls that
 * are joined are left to their delayed leave: use mrtc_client_stop_wait first to leave them. No
 * callback of this client runs after it returns (called from inside one: after that returns). */
mrtc_status mrtc_client_free(mrtc_client client, char **out);

/* {"mode", "state": "created" | "started" | "stopping" | "stopped" | "failed", "sync_state" (of the
 *  last such event), "homeserver_url", "user_id" and "device_id" ("" until they are known),
 *  "room_count" (rooms that the account is in, as far as the sync has told), "last_error" (of
 *  sync_state, or null)}. */
mrtc_status mrtc_client_info(mrtc_client client, char **out);

/* Takes the next event off the queue into *out, waiting up to timeout_ms (0: not at all, -1: for
 * ever) for one: MRTC_TIMEOUT when none came. The queue exists from the first call of this or of
 * mrtc_client_event_fd on. A host that stops reading finds one event "resync_required" {"lost"}
 * in place of the backlog: read again what you need with the getters. */
mrtc_status mrtc_client_next_event(mrtc_client client, int64_t timeout_ms, char **out);

/* A file descriptor that is readable while events wait in the queue, for poll, epoll, asyncio or
 * libuv. Read one byte or none, then take events with timeout 0 until MRTC_TIMEOUT. Each call
 * answers a descriptor of its own, which the caller closes. */
mrtc_status mrtc_client_event_fd(mrtc_client client, int *fd, char **out);

/* {"access_token", "refresh_token"?}: a new token of the same device, after sync_state "error"
 * with M_UNKNOWN_TOKEN. */
mrtc_status mrtc_client_set_access_token(mrtc_client client, const char *json, char **out);

/* {"sessions": [{"room_id", "slot_id", "call_id", "member_count", "started_ts"}]}: every call that
 * is going on in the rooms of the account, opened or not. The events session_started and
 * session_ended {"slot_id", "call_id"}, with their room_id, tell when one begins and ends. */
mrtc_status mrtc_client_sessions(mrtc_client client, char **out);

/* {"transports": [transport], "known"}: where the homeserver offers to have the media of calls
 * (MSC4143), and whether it has been asked with success. It is asked at the first call of this and
 * at joins, and then every hour, or sooner where its .well-known did not answer; what changes is
 * told by the event transports_changed {"transports"}. */
mrtc_status mrtc_client_transports(mrtc_client client, char **out);

/* ---- Host-driven mode: the host has a Matrix client of its own ---------------------------- */

/* What the host has received, one of
 *   {"sync": the body of a /sync answer}: each one, from the first without "since" on,
 *   {"state": {"room_id", "events", "complete"?}}: state events of a room; complete, where they are
 *     all that it has of m.room.create, m.room.encryption, m.room.member and
 *     org.matrix.msc3401.call.member: so is a room told whose first sync was not fed,
 *   {"to_device": [{"type", "content", "sender", "sender_device", "sender_key"?, "encrypted",
 *     "cross_signed"?}]}: after decryption, with the device that encrypted it; an "m.dummy" too, since who
 *     sends one could not decrypt what we sent, and is given our key again,
 *   {"timeline": {"room_id", "events"}}: after decryption. */
mrtc_status mrtc_client_feed(mrtc_client client, const char *json, char **out);

/* The answer to an event "request" {"id", "kind", "http": {"method", "path", "query"?, "body"?},
 * "anonymous"? (send without access token)}: {"id", "status", "headers"?, "body"?} as it came
 * ("http" with a "base_url" is not for the homeserver: never send the access token there)
 * (body as JSON, or as a string), or {"id", "network_error"}. The library understands errors.
 * Two kinds have no "http", but {"type", "content", "recipients": [{"user_id", "device_id"}]}:
 * "encrypt_and_send_to_device" (with Olm, for each recipient) is answered {"id", "deliveries":
 * [{"user_id", "device_id", "reason"? (absent: sent)}], "more"? (others will follow)};
 * "encrypt_and_send_event" (for the room, with "txn_id" in place of recipients: the transaction id
 * to send it with, which is the same again in a repetition) is answered as it was sent. */
mrtc_status mrtc_client_respond(mrtc_client client, const char *json, char **out);

/* {"boot_ms"?, "wall_ts"?}: the time, with "clock": "manual". Answers {"deadline_ms"}: call it
 * again when boot_ms has reached that, or null. */
mrtc_status mrtc_client_advance(mrtc_client client, const char *json, char **out);

/* ---- Session: one call of one room -------------------------------------------------------- */

/* Opens the call of a room; the room need not be synced yet. options, or NULL: {"application"?
 * ("m.call"), "call_id"? ("", the call of the room)}. Its events tell what changes from now on: who
 * is in the call already is answered by mrtc_session_memberships (all are told where the session is
 * opened before mrtc_client_start). INVALID_STATE where it is open already.
 *   memberships_changed {"joined": [membership], "left": [{"membership", "reason"}], "updated":
 *     [{"before", "after"}], "count"}: who came, went and changed since the last one, oldest first,
 *     and how many there are now. reason: "left" | "expired" | "room_left" | "invalid" (their event
 *     no longer makes sense) | "rejoined" (the same device is among the joined again). We ourselves
 *     are among the members once the homeserver shows our membership.
 * membership: {"user_id", "device_id", "member_id", "slot_id", "application", "call_id"?, "dialect",
 *   "event_id", "joined_ts", "expires_ts", "intent"?, "application_data", "focus_selection"?,
 *   "transports": [transport] (preferred first), "active_transport"? (where their media is),
 *   "sfu_identity" (who they are on that SFU), "scope"?}
 * transport: {"type": "livekit", "livekit_service_url", "livekit_alias"?}, or of another type. */
mrtc_status mrtc_session_open(mrtc_client client, const char *room_id, const char *options, mrtc_session *session,
                              char **out);

/* Closes a session. If it is joined, it leaves in the background. */
mrtc_status mrtc_session_close(mrtc_session session, char **out);

/* Announces this device in the call and keeps that true until mrtc_session_leave: in the
 * background, through failures. params is an object; all fields may be absent, durations are in ms:
 *   "foci_preferred": [transport]: where our media goes, preferred first. Absent: the first that the
 *     homeserver offers; where it offers none the join ends with membership_manager_error and left;
 *   "foci_active": a transport to put in front of these, or {"focus_selection": "multi_sfu" (the
 *     default: each member publishes to an SFU of its own) | "oldest_membership" (all to one)};
 *   "call_intent": as mrtc_session_update_intent; "application_data": further fields of our
 *     membership; "member_id": its id, made of user and device by default; "dialect": the generation
 *     of the event, "state";
 *   "delayed_leave_delay_ms" 10000: so long after our last sign of life the homeserver removes us
 *     (MSC4140). We give one every "delayed_leave_restart_ms" 4000, and again where it is not
 *     answered within "delayed_leave_restart_timeout_ms" 2000;
 *   "membership_expiry_ms" 14400000: for so long our membership counts unless it is refreshed, which
 *     happens "membership_expiry_headroom_ms" 5000 before, and within each hour;
 *   "network_error_retry_ms" 1000: the first pause after a failure, later ones are longer; after
 *     "max_network_retries" 10 or "max_rate_limit_retries" 10 failures in a row
 *     membership_manager_error tells, and it goes on trying;
 *   "delegate_leave" false: see mrtc_session_delegate_leave;
 *   "manage_media_keys": whether there are media keys; absent: whether the room is encrypted;
 *   "use_key_delay_ms" 1000: between the sending of a key and its use; "max_key_lifetime_ms" 5400000:
 *     a key is replaced after it; "key_rotation_grace_ms" 10000: whoever comes while our key is
 *     younger is given that one, later a new one is made; "key_rotation_participant_limit" 0 (none):
 *     where so many are in the call, keys stay; "key_missing_after_ms" 10000: see below;
 *   "require_cross_signed" false: keys of devices not known to be signed by their owner are refused
 *     (MSC4153), and so are those of room events fed or handed in by a host;
 *   "key_transport": "to_device" (the default) | "room_event": how ours are sent.
 * Errors: INVALID_ARGUMENT, INVALID_STATE where the session is joined or the client stopped.
 * Events:
 *   join_state_changed {"joined"}: whether we mean to be in the call;
 *   status_changed {"status", "previous"}: where our membership stands on the homeserver:
 *     "Disconnected", "Connecting", "Connected" or "Disconnecting";
 *   delay_id_changed {"delay_id"}: that of our delayed leave, or null;
 *   probably_left {"probably_left"}: the homeserver may have removed us without our hearing of it;
 *   membership_lost {"reason"}: it has; we go back in, and rejoined {} tells when we are;
 *   membership_manager_error {"message", "recoverable" (it goes on trying), "errcode"?,
 *     "http_status"?}: why we are not in the call: no homeserver, a refused login, a room that we are
 *     not in, a missing permission, failures in a row;
 *   left {"sent" (the homeserver has our leave), "reason"}: it has ended: "left" | "closed" |
 *     "stopped" | "forbidden" | "room_left" | "no_transport" | "no_sync" (the client has given up) |
 *     "token_rejected";
 * of media keys:
 *   encryption_key_changed {key...}: a key came, or its member came back, or ours was made (in_use
 *     false) or has come into use (in_use true): use it from then on;
 *   encryption_key_missing {"user_id", "device_id", "member_id", "missing"}: a member is here for
 *     key_missing_after_ms and none of its keys has come; missing false: one came after all;
 *   encryption_key_undelivered {"user_id", "device_id", "member_id", "index", "reason",
 *     "delivered"}: ours did not reach a device and is tried again; delivered true: it did;
 *   key_rotation_suppressed_changed {"suppressed"}: so many are here that keys stay. */
mrtc_status mrtc_session_join(mrtc_session session, const char *params, char **out);

/* Begins to leave, and goes on trying until the server has the leave. The outcome is the event
 * "left" {"sent", "reason"}. INVALID_STATE where the session is not joined. */
mrtc_status mrtc_session_leave(mrtc_session session, char **out);

/* Leaves (if mrtc_session_leave was not called before) and waits up to timeout_ms (-1: for ever):
 * {"sent"} says whether the leave reached the server in that time. WOULD_DEADLOCK inside a
 * callback and in host-driven mode. */
mrtc_status mrtc_session_leave_wait(mrtc_session session, int64_t timeout_ms, char **out);

/* {"room_id", "call_id", "slot_id", "joined", "status", "probably_left", "delay_id",
 *  "own_membership", "oldest_membership", "active_transport", "consensus_intent", "room_version",
 *  "encrypted", "member_count", "keys_managed", "key_rotation_suppressed", "leave_delegated",
 *  "statistics"}. delay_id is a credential: who has it can remove us. statistics counts:
 *  {"requests", "failures", "restarts" (of the delayed leave), "rejoins", and of media keys "keys_sent"
 *  (one for each key and device that it was really sent to; a room event counts once), "keys_received"
 *  (one for each that was taken in), "keys_received_total_age_ms" (on arrival), and of these by room
 *  event "room_event_keys_sent", "room_event_keys_received", "room_event_keys_received_total_age_ms"}. */
mrtc_status mrtc_session_info(mrtc_session session, char **out);

/* {"memberships": [...]}: the members of the call, oldest first. */
mrtc_status mrtc_session_memberships(mrtc_session session, char **out);

/* Looks at the members again. Not needed where the library syncs. */
mrtc_status mrtc_session_on_membership_update(mrtc_session session, char **out);

/* Changes the call intent of our membership ("audio", "video", ..., at most 255 bytes); NULL or ""
 * removes it. */
mrtc_status mrtc_session_update_intent(mrtc_session session, const char *intent, char **out);

/* Replaces the application data of our membership by the fields of a JSON object, which nest at most
 * 32 levels; with its transports a membership has at most 48 KiB. */
mrtc_status mrtc_session_update_application_data(mrtc_session session, const char *json, char **out);

/* ---- Media keys --------------------------------------------------------------------------- */

/* {"keys": [key]}: the media keys that are held, our own first, then by member, oldest first, and
 * by index. key: {"user_id", "device_id", "member_id", "sfu_identity", "index" (0..255), "key"
 * (unpadded base64), "own", "in_use", "fingerprint" (8 hex digits of its SHA-256)}. A key of our
 * own is to encrypt with while in_use; those of others are to decrypt with, all of them. */
mrtc_status mrtc_session_encryption_keys(mrtc_session session, char **out);

/* {"keys": [key]} of one device; null where none is known. */
mrtc_status mrtc_session_participant_keys(mrtc_session session, const char *user_id, const char *device_id, char **out);

/* Tells every key that is held once more, as events encryption_key_changed. */
mrtc_status mrtc_session_reemit_encryption_keys(mrtc_session session, char **out);

/* Takes in a room event io.element.call.encryption_keys, plain or already decrypted. What is
 * malformed or of no use is logged and ignored. Not needed where the library syncs. */
mrtc_status mrtc_session_on_call_encryption(mrtc_session session, const char *event, char **out);

/* ---- SFUs (MSC4195) ------------------------------------------------------------------------ */

/* {"sfus": [{"service_url", "publish", "trusted", "reason"?, "members": [{"user_id", "device_id",
 * "member_id", "sfu_identity"}]}], "ignored"}: what a client must connect to, to hear the members
 * and, where publish is true, to be heard; with those who publish there and their identities.
 * service_url names the authorisation service of the SFU. One that is not trusted, and why, see
 * sfu_trust of mrtc_client_new. Of what members name at most 64 are looked at; ignored counts the
 * rest. Changes are told by the event sfus_changed {"added": [sfu], "removed": [service_url],
 * "updated": [sfu] (trust), "ignored", "publish"?: {"from", "to"}}: publish says that our media
 * moves, as when the oldest member of a call with oldest_membership leaves. */
mrtc_status mrtc_session_sfus(mrtc_session session, char **out);

/* The token that lets one enter an SFU. json, or NULL: {"service_url"? (absent: where we publish)}.
 *   {"service_url", "url" (ws or wss, of the SFU), "jwt", "identity", "room" (of LiveKit),
 *    "expires_ts", "generation": "state" | "sticky" | "homeserver"}
 * Answers at once: MRTC_TIMEOUT while there is none yet, and has it got then. From then on it is
 * kept fresh while the SFU is part of the call: sfu_token_refreshed {token} tells each one, the
 * first as well, and sfu_failed {"service_url", "reason", "message", "retry_in_ms"} each attempt
 * that failed; it is tried again. The jwt is a credential.
 * reason: "unreachable" | "refused" | "openid_rejected" | "full" | "no_such_room" (we may enter but
 * not create it, and nobody is there yet) | "identity_mismatch" (the token is for somebody else) |
 * "untrusted" | "bad_answer".
 * Errors: INVALID_STATE (not joined, and none named), INVALID_ARGUMENT (not an SFU of the call). */
mrtc_status mrtc_session_sfu_token(mrtc_session session, const char *json, char **out);

/* mrtc_session_sfu_token, and waits up to timeout_ms (-1: for ever) for the token: MRTC_TIMEOUT
 * when none came, MRTC_ERR_SFU with a reason when an attempt failed (it is still tried again).
 * WOULD_DEADLOCK inside a callback and in host-driven mode. */
mrtc_status mrtc_session_sfu_token_wait(mrtc_session session, const char *json, int64_t timeout_ms, char **out);

/* Tells of the host's connection to an SFU: {"service_url"? (absent: where we publish),
 * "connected", "error"?, "http_status"?}: with connected false, error and http_status may say what
 * the SFU or its SDK said; it is told apart in an event sfu_failed, and a token that was refused
 * is replaced. */
mrtc_status mrtc_session_sfu_connected(mrtc_session session, const char *json, char **out);

/* Has our delayed leave handed over (delegate not 0) to the authorisation service of the SFU that
 * we publish to, as soon as mrtc_session_sfu_connected has told that we are connected there: a
 * crash is then seen by the others when the SFU notices it. When the connection ends without our
 * leaving, or the service refuses, the leave is ours again. 0 takes it back.
 * leave_delegated_changed {"delegated", "reason"?} tells: who disconnects from the SFU without
 * leaving calls mrtc_session_sfu_connected first and waits for delegated to be false, or the
 * service ends our membership. INVALID_STATE where the session is not joined. */
mrtc_status mrtc_session_delegate_leave(mrtc_session session, int delegate, char **out);

/* Why the session is as it is, for a bug report; without secrets. */
mrtc_status mrtc_session_debug_snapshot(mrtc_session session, char **out);

#ifdef __cplusplus
}
#endif

#endif
