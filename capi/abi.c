/* The public functions. Each refuses a forked child before it enters Go, whose runtime lacks its
 * threads there, and hands over to the Go function mrtcgo_* of the same signature. */
#define _GNU_SOURCE
#include "abi.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "_cgo_export.h"

#define PUBLIC __attribute__((visibility("default")))

/* Two watches, since each misses something: the fork handler does not run for a bare clone(), and
 * an old kernel may not know MADV_WIPEONFORK. */
static volatile int fork_seen;
static volatile unsigned char *canary;

static void in_child(void) { fork_seen = 1; }

__attribute__((constructor)) static void watch_forks(void) {
  long page = sysconf(_SC_PAGESIZE);
  void *p = mmap(NULL, (size_t)page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  pthread_atfork(NULL, NULL, in_child);
  if (p == MAP_FAILED) return;
  if (madvise(p, (size_t)page, MADV_WIPEONFORK) != 0) {
    munmap(p, (size_t)page);
    return;
  }
  *(unsigned char *)p = 1;
  canary = p;
}

static int forked(void) { return fork_seen || (canary && *canary == 0); }

static mrtc_status refuse_fork(char **out) {
  if (out)
    *out = strdup("{\"status\":\"MRTC_ERR_FORKED\",\"message\":\"the library was loaded before this process was forked: "
                  "load it after the fork\"}");
  return MRTC_ERR_FORKED;
}

/* ENTER declares a public function that takes out and passes everything on. */
#define ENTER(name, params, ...)             \
  PUBLIC mrtc_status mrtc_##name params {    \
    if (forked()) return refuse_fork(out);   \
    if (out) *out = NULL;                    \
    return mrtcgo_##name(__VA_ARGS__);       \
  }

PUBLIC const char *mrtc_version(void) { return MRTC_VERSION; }
PUBLIC int mrtc_abi_version(void) { return MRTC_ABI_VERSION; }
PUBLIC void mrtc_free(void *p) { free(p); }

PUBLIC const char *mrtc_status_name(mrtc_status status) {
  switch (status) {
    case MRTC_OK: return "MRTC_OK";
    case MRTC_TIMEOUT: return "MRTC_TIMEOUT";
    case MRTC_ERR_INVALID_ARGUMENT: return "MRTC_ERR_INVALID_ARGUMENT";
    case MRTC_ERR_INVALID_HANDLE: return "MRTC_ERR_INVALID_HANDLE";
    case MRTC_ERR_INVALID_STATE: return "MRTC_ERR_INVALID_STATE";
    case MRTC_ERR_WOULD_DEADLOCK: return "MRTC_ERR_WOULD_DEADLOCK";
    case MRTC_ERR_HOMESERVER: return "MRTC_ERR_HOMESERVER";
    case MRTC_ERR_NETWORK: return "MRTC_ERR_NETWORK";
    case MRTC_ERR_INTERNAL: return "MRTC_ERR_INTERNAL";
    case MRTC_ERR_FORKED: return "MRTC_ERR_FORKED";
    case MRTC_ERR_CLIENT_FAILED: return "MRTC_ERR_CLIENT_FAILED";
    case MRTC_ERR_NOT_FOUND: return "MRTC_ERR_NOT_FOUND";
    case MRTC_ERR_SFU: return "MRTC_ERR_SFU";
  }
  return "MRTC_ERR_UNKNOWN";
}

PUBLIC mrtc_status mrtc_set_log_callback(mrtc_log_fn callback, void *user_data, int min_level) {
  return forked() ? MRTC_ERR_FORKED : mrtcgo_set_log_callback((void *)callback, user_data, min_level);
}

ENTER(add_listener,
      (uint64_t handle, const char *event, mrtc_listener_fn callback, void *user_data, uint32_t flags,
       mrtc_listener *id, char **out),
      handle, (char *)event, (void *)callback, user_data, flags, id, out)
ENTER(remove_listener, (mrtc_listener id, char **out), id, out)
ENTER(remove_all_listeners, (uint64_t handle, const char *event, char **out), handle, (char *)event, out)
ENTER(listener_count, (uint64_t handle, const char *event, size_t *count, char **out), handle, (char *)event, count, out)
ENTER(emit, (uint64_t handle, const char *event, const char *json, int *had_listeners, char **out), handle,
      (char *)event, (char *)json, had_listeners, out)

ENTER(client_new, (const char *config, mrtc_client *client, char **out), (char *)config, client, out)
ENTER(client_start, (mrtc_client client, char **out), client, out)
ENTER(client_stop, (mrtc_client client, char **out), client, out)
ENTER(client_stop_wait, (mrtc_client client, int64_t timeout_ms, char **out), client, timeout_ms, out)
ENTER(client_free, (mrtc_client client, char **out), client, out)
ENTER(client_info, (mrtc_client client, char **out), client, out)
ENTER(client_next_event, (mrtc_client client, int64_t timeout_ms, char **out), client, timeout_ms, out)
ENTER(client_event_fd, (mrtc_client client, int *fd, char **out), client, fd, out)
ENTER(client_set_access_token, (mrtc_client client, const char *json, char **out), client, (char *)json, out)
ENTER(client_sessions, (mrtc_client client, char **out), client, out)
ENTER(client_transports, (mrtc_client client, char **out), client, out)
ENTER(client_feed, (mrtc_client client, const char *json, char **out), client, (char *)json, out)
ENTER(client_respond, (mrtc_client client, const char *json, char **out), client, (char *)json, out)
ENTER(client_advance, (mrtc_client client, const char *json, char **out), client, (char *)json, out)

ENTER(session_open,
      (mrtc_client client, const char *room_id, const char *options, mrtc_session *session, char **out), client,
      (char *)room_id, (char *)options, session, out)
ENTER(session_close, (mrtc_session session, char **out), session, out)
ENTER(session_join, (mrtc_session session, const char *params, char **out), session, (char *)params, out)
ENTER(session_leave, (mrtc_session session, char **out), session, out)
ENTER(session_leave_wait, (mrtc_session session, int64_t timeout_ms, char **out), session, timeout_ms, out)
ENTER(session_info, (mrtc_session session, char **out), session, out)
ENTER(session_memberships, (mrtc_session session, char **out), session, out)
ENTER(session_on_membership_update, (mrtc_session session, char **out), session, out)
ENTER(session_update_intent, (mrtc_session session, const char *intent, char **out), session, (char *)intent, out)
ENTER(session_update_application_data, (mrtc_session session, const char *json, char **out), session, (char *)json, out)
ENTER(session_encryption_keys, (mrtc_session session, char **out), session, out)
ENTER(session_participant_keys, (mrtc_session session, const char *user_id, const char *device_id, char **out), session,
      (char *)user_id, (char *)device_id, out)
ENTER(session_reemit_encryption_keys, (mrtc_session session, char **out), session, out)
ENTER(session_on_call_encryption, (mrtc_session session, const char *event, char **out), session, (char *)event, out)
ENTER(session_sfus, (mrtc_session session, char **out), session, out)
ENTER(session_sfu_token, (mrtc_session session, const char *json, char **out), session, (char *)json, out)
ENTER(session_sfu_token_wait, (mrtc_session session, const char *json, int64_t timeout_ms, char **out), session,
      (char *)json, timeout_ms, out)
ENTER(session_sfu_connected, (mrtc_session session, const char *json, char **out), session, (char *)json, out)
ENTER(session_delegate_leave, (mrtc_session session, int delegate, char **out), session, delegate, out)
ENTER(session_debug_snapshot, (mrtc_session session, char **out), session, out)

/* ---- what Go calls ---- */

static __thread int callback_depth;

int mrtc_in_callback(void) { return callback_depth > 0; }

void mrtc_call_listener(void *fn, uint64_t handle, const char *event, const char *json, size_t len, void *user_data) {
  callback_depth++;
  ((mrtc_listener_fn)fn)(handle, event, json, len, user_data);
  callback_depth--;
}

void mrtc_call_log(void *fn, int level, const char *json, size_t len, void *user_data) {
  callback_depth++;
  ((mrtc_log_fn)fn)(level, json, len, user_data);
  callback_depth--;
}
