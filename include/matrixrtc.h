/* libmatrixrtc: MatrixRTC (MSC4143), the layer under a Matrix call, as a C library.
 *
 * It manages who is in a call: it announces this device, keeps that announcement true under
 * failures, and tells who else is there and where their media is. It never touches media.
 *
 * HANDLES. A handle is a 64-bit number below 2^53; 0 is never valid. A handle that was freed, or
 * never existed, is answered with MRTC_ERR_INVALID_HANDLE. It never crashes.
 *
 * STATUS. Functions return an mrtc_status: 0 for success, negative for an error.
 *
 * JSON. Arguments are NUL-terminated UTF-8 JSON; fields that a function does not know are refused
 * by name. Results come through the trailing `out`, which may be NULL. After a failure the same
 * `out` holds an error object:
 *     {"status": "MRTC_ERR_INVALID_ARGUMENT", "message": "...", "path": "/field"?,
 *      "errcode": "M_..."?, "http_status": n?, "retry_after_ms": n?}
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
  MRTC_ERR_NOT_FOUND = -10        /* no such listener or request */
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
 *     (PEM), "user_agent"?}. With a password and a device_id, that device is logged in again.
 *   host-driven: {"mode": "host_driven", "user_id", "device_id", "clock"?: "real" | "manual"}.
 * Errors: INVALID_ARGUMENT. */
mrtc_status mrtc_client_new(const char *config, mrtc_client *client, char **out);

/* Logs in and syncs, in the background. What comes of it are events "sync_state" {"state":
 * "initial" | "syncing" | "reconnecting" | "error" | "stopped", "error"?}. After "error" nothing
 * more is tried until mrtc_client_set_access_token. A client is started once. */
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

/* {"mode", "state", "sync_state", "homeserver_url", "user_id", "device_id", "room_count",
 *  "last_error"}. */
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
 * is going on in the rooms of the account, opened or not. */
mrtc_status mrtc_client_sessions(mrtc_client client, char **out);

/* ---- Host-driven mode: the host has a Matrix client of its own ---------------------------- */

/* {"sync": the body of a /sync answer} or {"state": {"room_id", "events", "complete"?}}: what the
 * host has received. */
mrtc_status mrtc_client_feed(mrtc_client client, const char *json, char **out);

/* The answer to an event "request" {"id", "kind", "http": {"method", "path", "query"?, "body"?},
 * "anonymous"? (send without access token)}: {"id", "status", "headers"?, "body"?} as it came
 * (body as JSON, or as a string), or {"id", "network_error"}. The library understands errors. */
mrtc_status mrtc_client_respond(mrtc_client client, const char *json, char **out);

/* {"boot_ms"?, "wall_ts"?}: the time, with "clock": "manual". Answers {"deadline_ms"}: call it
 * again when boot_ms has reached that, or null. */
mrtc_status mrtc_client_advance(mrtc_client client, const char *json, char **out);

/* ---- Session: one call of one room -------------------------------------------------------- */

/* Opens the call of a room; the room need not be synced yet. options, or NULL: {"application"?
 * ("m.call"), "call_id"? ("", the call of the room)}. INVALID_STATE where it is open already. */
mrtc_status mrtc_session_open(mrtc_client client, const char *room_id, const char *options, mrtc_session *session,
                              char **out);

/* Closes a session. If it is joined, it leaves in the background. */
mrtc_status mrtc_session_close(mrtc_session session, char **out);

/* Announces this device in the call and keeps that true until mrtc_session_leave: in the
 * background, through failures. params:
 *   {"foci_preferred": [transport], "foci_active"?: {"focus_selection"} | transport,
 *    "call_intent"?, "application_data"?, "member_id"?, "dialect"? ("state"),
 *    "delayed_leave_delay_ms"? 10000, "delayed_leave_restart_ms"? 4000,
 *    "delayed_leave_restart_timeout_ms"? 2000, "membership_expiry_ms"? 14400000,
 *    "membership_expiry_headroom_ms"? 5000, "network_error_retry_ms"? 1000,
 *    "max_network_retries"? 10, "max_rate_limit_retries"? 10}
 * Events: join_state_changed, status_changed, delay_id_changed, probably_left, membership_lost,
 * rejoined, membership_manager_error {"message", "recoverable", ...}, left. */
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
 *  "encrypted", "member_count", "statistics"}. delay_id is a credential: who has it can remove us. */
mrtc_status mrtc_session_info(mrtc_session session, char **out);

/* {"memberships": [...]}: the members of the call, oldest first. */
mrtc_status mrtc_session_memberships(mrtc_session session, char **out);

/* Looks at the members again. Not needed where the library syncs. */
mrtc_status mrtc_session_on_membership_update(mrtc_session session, char **out);

/* Changes the call intent of our membership ("audio", "video", ...); NULL or "" removes it. */
mrtc_status mrtc_session_update_intent(mrtc_session session, const char *intent, char **out);

/* Replaces the application data of our membership by the fields of a JSON object. */
mrtc_status mrtc_session_update_application_data(mrtc_session session, const char *json, char **out);

/* Why the session is as it is, for a bug report; without secrets. */
mrtc_status mrtc_session_debug_snapshot(mrtc_session session, char **out);

#ifdef __cplusplus
}
#endif

#endif
