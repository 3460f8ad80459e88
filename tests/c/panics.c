/* Panics are stopped: they fail the client that they happen in, which is told, and nothing else.
 * For the variant of the library that panics on demand (MRTC_TAGS=mrtc_panic). */
#include <pthread.h>
#include <time.h>

#include "check.h"
#include "every.h"

mrtc_status mrtc_test_panic(mrtc_client client, const char *where, char **out);

static mrtc_client other;
static mrtc_session other_session;

static void panics_in(const char *where, int at_once) {
  char *out = NULL;
  mrtc_client c = new_client("real");
  mrtc_session s = open_session(c);
  mrtc_listener l = 0;
  EXPECT(MRTC_TIMEOUT, NULL, mrtc_client_next_event(c, 0, &out));
  OK(mrtc_add_listener(c, "e", a_listener, NULL, 0, &l, &out));
  EXPECT(at_once ? MRTC_ERR_INTERNAL : MRTC_OK, NULL, mrtc_test_panic(c, where, &out));
  for (;;) {
    out = NULL;
    if (!CHECK(mrtc_client_next_event(c, 60000, &out) == MRTC_OK, "a panic in the %s is told", where)) return;
    int told = has(out, "{\"event\":\"client_failed\"") && has(out, "\"message\":\"internal error: ");
    mrtc_free(out);
    if (told) break;
  }
  for (int i = 0; i < FUNCTIONS; i++) {
    const char *name = every[i].name;
    /* The queue and the listeners tell of the failure, info says "failed", and free frees;
     * in host-driven mode two functions never work. */
    int works = every[i].kind == EITHER || every[i].kind == LISTENER || every[i].kind == NO_HANDLE ||
                !strcmp(name, "mrtc_client_next_event") || !strcmp(name, "mrtc_client_event_fd") ||
                !strcmp(name, "mrtc_session_leave_wait") || !strcmp(name, "mrtc_session_sfu_token_wait") ||
                !strcmp(name, "mrtc_client_info") || !strcmp(name, "mrtc_client_free");
    if (works) continue;
    char what[128];
    snprintf(what, sizeof what, "%s after a panic in the %s", name, where);
    out = NULL;
    mrtc_status status = every[i].call(every[i].kind == SESSION ? s : c, every[i].text == PLAIN ? "@a:b" : "{}", &out);
    /* An argument may be looked at before the client is. */
    if (status == MRTC_ERR_INVALID_ARGUMENT) {
      CHECK(every[i].text == JSON || every[i].text == EVENT, "%s: %s", what, out);
      mrtc_free(out);
    } else {
      /* What closes a session closes its handle. */
      int closed = i > 0 && !strcmp(every[i - 1].name, "mrtc_session_close") && every[i].kind == SESSION;
      expect_at(__LINE__, what, status, closed ? MRTC_ERR_INVALID_HANDLE : MRTC_ERR_CLIENT_FAILED, &out, NULL);
    }
  }
  out = NULL;
  mrtc_status status = mrtc_client_info(c, &out);
  answers(status, out, "\"state\":\"failed\"", "its state");
  OK(mrtc_client_free(c, &out));
  OK(feed_member(other, 1, &out));
  status = mrtc_session_info(other_session, &out);
  answers(status, out, "\"member_count\":1", "another client goes on");
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t logged = PTHREAD_COND_INITIALIZER;
static int traces;

static void log_line(int level, const char *json, size_t len, void *user_data) {
  (void)len, (void)user_data;
  if (level != 3 || !has(json, "\"panic\"") || !has(json, "\"stack\"")) return;
  pthread_mutex_lock(&lock);
  traces++;
  pthread_cond_broadcast(&logged);
  pthread_mutex_unlock(&lock);
}

/* Log lines come on a thread of the library. */
static void wait_for_traces(int count) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += 60;
  pthread_mutex_lock(&lock);
  while (traces < count && pthread_cond_timedwait(&logged, &lock, &until) == 0) {
  }
  pthread_mutex_unlock(&lock);
}

int main(void) {
  char *out = NULL;
  CHECK(mrtc_set_log_callback(log_line, NULL, 3) == MRTC_OK, "a log");
  other = new_client("manual");
  OK(mrtc_client_feed(other, "{\"state\":{\"room_id\":\"" ROOM "\",\"events\":[],\"complete\":true}}", &out));
  other_session = open_session(other);
  panics_in("export", 1);
  panics_in("nil", 1);
  panics_in("lock", 1);
  panics_in("goroutine", 0);
  panics_in("locked goroutine", 0);
  panics_in("timer", 0);
  panics_in("dispatcher", 0);
  OK(mrtc_client_free(other, &out));
  wait_for_traces(7);
  CHECK(mrtc_set_log_callback(NULL, NULL, 0) == MRTC_OK, "no log");
  CHECK(traces == 7, "each of them is in the log with its trace: %d", traces);
  return summary();
}
