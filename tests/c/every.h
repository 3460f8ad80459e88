/* Every function that answers a status, behind one signature: what all of them must stand is tried
 * on each. run.py holds this list against the header. */
#ifndef EVERY_H
#define EVERY_H

#include <matrixrtc.h>
#include <unistd.h>

enum kind { NO_HANDLE, CLIENT, SESSION, EITHER, LISTENER };
enum text {
  NO_TEXT,
  JSON,     /* an object, required */
  OPTIONAL, /* an object or NULL */
  WHICH,    /* an object or NULL, whose meaning needs a joined session */
  PLAIN,    /* a string, required */
  NAME,     /* a string or NULL */
  EVENT     /* any text: what is no event is logged and ignored */
};

typedef mrtc_status any_function(uint64_t handle, const char *text, char **out);

static inline void a_listener(uint64_t handle, const char *event, const char *json, size_t len, void *user_data) {
  (void)handle, (void)event, (void)json, (void)len, (void)user_data;
}

static inline mrtc_status do_mrtc_set_log_callback(uint64_t h, const char *t, char **out) {
  (void)h, (void)t, (void)out;
  return mrtc_set_log_callback(NULL, NULL, 3);
}
static inline mrtc_status do_mrtc_add_listener(uint64_t h, const char *t, char **out) {
  return mrtc_add_listener(h, t, a_listener, NULL, MRTC_ONCE, NULL, out);
}
static inline mrtc_status do_mrtc_remove_listener(uint64_t h, const char *t, char **out) {
  (void)t;
  return mrtc_remove_listener(h, out);
}
static inline mrtc_status do_mrtc_remove_all_listeners(uint64_t h, const char *t, char **out) {
  return mrtc_remove_all_listeners(h, t, out);
}
static inline mrtc_status do_mrtc_listener_count(uint64_t h, const char *t, char **out) {
  size_t count;
  return mrtc_listener_count(h, t, &count, out);
}
static inline mrtc_status do_mrtc_emit(uint64_t h, const char *t, char **out) {
  return mrtc_emit(h, "mine", t, NULL, out);
}
static inline mrtc_status do_mrtc_client_new(uint64_t h, const char *t, char **out) {
  (void)h;
  mrtc_client made = 0;
  mrtc_status status = mrtc_client_new(t, &made, out);
  if (made) mrtc_client_free(made, NULL);
  return status;
}
static inline mrtc_status do_mrtc_client_stop_wait(uint64_t h, const char *t, char **out) {
  (void)t;
  return mrtc_client_stop_wait(h, 100, out);
}
static inline mrtc_status do_mrtc_client_next_event(uint64_t h, const char *t, char **out) {
  (void)t;
  return mrtc_client_next_event(h, 0, out);
}
static inline mrtc_status do_mrtc_client_event_fd(uint64_t h, const char *t, char **out) {
  (void)t;
  int fd = -1;
  mrtc_status status = mrtc_client_event_fd(h, &fd, out);
  if (fd >= 0) close(fd);
  return status;
}
static inline mrtc_status do_mrtc_session_open(uint64_t h, const char *t, char **out) {
  mrtc_session s;
  return mrtc_session_open(h, "!every:example.test", t, &s, out);
}
static inline mrtc_status do_mrtc_session_leave_wait(uint64_t h, const char *t, char **out) {
  (void)t;
  return mrtc_session_leave_wait(h, 100, out);
}
static inline mrtc_status do_mrtc_session_participant_keys(uint64_t h, const char *t, char **out) {
  return mrtc_session_participant_keys(h, t, "DEVICE", out);
}

static inline mrtc_status do_mrtc_session_sfu_token_wait(uint64_t h, const char *t, char **out) {
  return mrtc_session_sfu_token_wait(h, t, 100, out);
}
static inline mrtc_status do_mrtc_session_delegate_leave(uint64_t h, const char *t, char **out) {
  (void)t;
  return mrtc_session_delegate_leave(h, 1, out);
}

#define HANDLE_ONLY(name)                                                       \
  static inline mrtc_status do_##name(uint64_t h, const char *t, char **out) { \
    (void)t;                                                                    \
    return name(h, out);                                                        \
  }
#define HANDLE_AND_TEXT(name) \
  static inline mrtc_status do_##name(uint64_t h, const char *t, char **out) { return name(h, t, out); }

HANDLE_ONLY(mrtc_client_start)
HANDLE_ONLY(mrtc_client_stop)
HANDLE_ONLY(mrtc_client_free)
HANDLE_ONLY(mrtc_client_info)
HANDLE_ONLY(mrtc_client_sessions)
HANDLE_ONLY(mrtc_client_transports)
HANDLE_AND_TEXT(mrtc_client_set_access_token)
HANDLE_AND_TEXT(mrtc_client_feed)
HANDLE_AND_TEXT(mrtc_client_respond)
HANDLE_AND_TEXT(mrtc_client_advance)
HANDLE_ONLY(mrtc_session_close)
HANDLE_AND_TEXT(mrtc_session_join)
HANDLE_ONLY(mrtc_session_leave)
HANDLE_ONLY(mrtc_session_info)
HANDLE_ONLY(mrtc_session_memberships)
HANDLE_ONLY(mrtc_session_on_membership_update)
HANDLE_AND_TEXT(mrtc_session_update_intent)
HANDLE_AND_TEXT(mrtc_session_update_application_data)
HANDLE_ONLY(mrtc_session_encryption_keys)
HANDLE_ONLY(mrtc_session_reemit_encryption_keys)
HANDLE_AND_TEXT(mrtc_session_on_call_encryption)
HANDLE_ONLY(mrtc_session_sfus)
HANDLE_AND_TEXT(mrtc_session_sfu_token)
HANDLE_AND_TEXT(mrtc_session_sfu_connected)
HANDLE_ONLY(mrtc_session_debug_snapshot)

#define EVERY(name, kind, text) {#name, kind, text, do_##name}

static const struct {
  const char *name;
  enum kind kind;
  enum text text;
  any_function *call;
} every[] = {
    EVERY(mrtc_set_log_callback, NO_HANDLE, NO_TEXT),
    EVERY(mrtc_add_listener, EITHER, NAME),
    EVERY(mrtc_remove_listener, LISTENER, NO_TEXT),
    EVERY(mrtc_remove_all_listeners, EITHER, NAME),
    EVERY(mrtc_listener_count, EITHER, NAME),
    EVERY(mrtc_emit, EITHER, OPTIONAL),
    EVERY(mrtc_client_new, NO_HANDLE, JSON),
    EVERY(mrtc_client_start, CLIENT, NO_TEXT),
    EVERY(mrtc_client_info, CLIENT, NO_TEXT),
    EVERY(mrtc_client_next_event, CLIENT, NO_TEXT),
    EVERY(mrtc_client_event_fd, CLIENT, NO_TEXT),
    EVERY(mrtc_client_set_access_token, CLIENT, JSON),
    EVERY(mrtc_client_sessions, CLIENT, NO_TEXT),
    EVERY(mrtc_client_transports, CLIENT, NO_TEXT),
    EVERY(mrtc_client_feed, CLIENT, JSON),
    EVERY(mrtc_client_respond, CLIENT, JSON),
    EVERY(mrtc_client_advance, CLIENT, JSON),
    EVERY(mrtc_session_open, CLIENT, OPTIONAL),
    EVERY(mrtc_session_join, SESSION, JSON),
    EVERY(mrtc_session_info, SESSION, NO_TEXT),
    EVERY(mrtc_session_memberships, SESSION, NO_TEXT),
    EVERY(mrtc_session_on_membership_update, SESSION, NO_TEXT),
    EVERY(mrtc_session_update_intent, SESSION, NAME),
    EVERY(mrtc_session_update_application_data, SESSION, JSON),
    EVERY(mrtc_session_encryption_keys, SESSION, NO_TEXT),
    EVERY(mrtc_session_participant_keys, SESSION, PLAIN),
    EVERY(mrtc_session_reemit_encryption_keys, SESSION, NO_TEXT),
    EVERY(mrtc_session_on_call_encryption, SESSION, EVENT),
    EVERY(mrtc_session_sfus, SESSION, NO_TEXT),
    EVERY(mrtc_session_sfu_token, SESSION, WHICH),
    EVERY(mrtc_session_sfu_token_wait, SESSION, WHICH),
    EVERY(mrtc_session_sfu_connected, SESSION, JSON),
    EVERY(mrtc_session_delegate_leave, SESSION, NO_TEXT),
    EVERY(mrtc_session_debug_snapshot, SESSION, NO_TEXT),
    /* Those that end something come last. */
    EVERY(mrtc_session_leave, SESSION, NO_TEXT),
    EVERY(mrtc_session_leave_wait, SESSION, NO_TEXT),
    EVERY(mrtc_session_close, SESSION, NO_TEXT),
    EVERY(mrtc_client_stop, CLIENT, NO_TEXT),
    EVERY(mrtc_client_stop_wait, CLIENT, NO_TEXT),
    EVERY(mrtc_client_free, CLIENT, NO_TEXT),
};

enum { FUNCTIONS = sizeof every / sizeof *every };

#endif
