/* Listeners: order, duplicates, once, prepend, removal at any moment, emit, and what a callback may
 * do. What is expected is written as a string of letters, one for each call of a listener. */
#include <pthread.h>
#include <time.h>

#include "check.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t called = PTHREAD_COND_INITIALIZER;
static char calls[4096];

static void note(char letter) {
  pthread_mutex_lock(&lock);
  size_t n = strlen(calls);
  if (n + 1 < sizeof calls) calls[n] = letter;
  pthread_cond_broadcast(&called);
  pthread_mutex_unlock(&lock);
}

/* Waits for the letter that ends what is expected, and holds all letters so far against it. */
static void expect_calls(const char *want, int line) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += 60;
  pthread_mutex_lock(&lock);
  while (strlen(calls) < strlen(want) && pthread_cond_timedwait(&called, &lock, &until) == 0) {
  }
  check_at(!strcmp(calls, want), line, "expected the calls %s, got %s", want, calls);
  memset(calls, 0, sizeof calls);
  pthread_mutex_unlock(&lock);
}

#define CALLS(want) expect_calls(want, __LINE__)

static void letter(uint64_t handle, const char *event, const char *json, size_t len, void *user_data) {
  char head[300];
  snprintf(head, sizeof head, "{\"event\":\"%s\",\"client\":", event);
  CHECK(handle != 0 && !strncmp(json, head, strlen(head)) && strlen(json) == len, "the event is whole: %s", json);
  note(*(const char *)user_data);
}

static mrtc_listener add(uint64_t handle, const char *event, const char *l, uint32_t flags) {
  char *out = NULL;
  mrtc_listener id = 0;
  OK(mrtc_add_listener(handle, event, letter, (void *)l, flags, &id, &out));
  CHECK(id != 0, "a listener has an id");
  return id;
}

static int emit(uint64_t handle, const char *event, const char *json) {
  char *out = NULL;
  int had = -1;
  OK(mrtc_emit(handle, event, json, &had, &out));
  return had;
}

static size_t count(uint64_t handle, const char *event) {
  char *out = NULL;
  size_t n = 99;
  OK(mrtc_listener_count(handle, event, &n, &out));
  return n;
}

static void order(void) {
  char *out = NULL;
  mrtc_client c = new_client("manual");
  CHECK(emit(c, "e", NULL) == 0, "nobody listens");
  add(c, "e", "a", 0);
  add(c, "e", "b", 0);
  mrtc_listener twice = add(c, "e", "a", 0);
  add(c, "e", "p", MRTC_PREPEND);
  add(c, NULL, "*", 0);
  add(c, "other", "x", 0);
  CHECK(count(c, "e") == 4 && count(c, NULL) == 6 && count(c, "none") == 0, "the listeners are counted");
  CHECK(emit(c, "e", NULL) == 1, "somebody listens");
  CALLS("paba*");
  CHECK(emit(c, "unheard", NULL) == 1, "whoever listens to everything listens");
  CALLS("*");
  OK(mrtc_remove_listener(twice, &out));
  EXPECT(MRTC_ERR_NOT_FOUND, NULL, mrtc_remove_listener(twice, &out));
  emit(c, "e", "{}");
  CALLS("pab*");
  add(c, "e", "1", MRTC_ONCE);
  add(c, "e", "2", MRTC_ONCE | MRTC_PREPEND);
  emit(c, "e", NULL);
  emit(c, "e", NULL);
  CALLS("2pab*1pab*");
  OK(mrtc_remove_all_listeners(c, "e", &out));
  CHECK(count(c, "e") == 0 && count(c, NULL) == 2, "those of one event are removed");
  emit(c, "e", NULL);
  CALLS("*");
  OK(mrtc_remove_all_listeners(c, NULL, &out));
  CHECK(count(c, NULL) == 0, "all are removed");
  CHECK(emit(c, "other", NULL) == 0, "nobody is left");
  OK(mrtc_client_free(c, &out));
}

/* ---- sessions and clients ---- */

static char last[8192];

static void keep(uint64_t handle, const char *event, const char *json, size_t len, void *user_data) {
  (void)handle, (void)event, (void)user_data;
  pthread_mutex_lock(&lock);
  if (len < sizeof last) memcpy(last, json, len + 1);
  pthread_mutex_unlock(&lock);
  note('k');
}

static void whose_events(void) {
  char *out = NULL;
  mrtc_client c = new_client("manual");
  OK(mrtc_client_feed(c, "{\"state\":{\"room_id\":\"" ROOM "\",\"events\":[],\"complete\":true}}", &out));
  mrtc_session s = open_session(c), other = 0;
  OK(mrtc_session_open(c, "!other:example.test", NULL, &other, &out));
  add(s, "memberships_changed", "s", 0);
  add(other, NULL, "o", 0);
  add(c, "memberships_changed", "c", 0);
  OK(mrtc_add_listener(c, "memberships_changed", keep, NULL, 0, NULL, &out));
  OK(feed_member(c, 1, &out));
  CALLS("sck");
  CHECK(number_of(last, "client") == c && number_of(last, "session") == s && number_of(last, "seq") > 0 &&
            has(last, "\"room_id\":\"" ROOM "\"") && has(last, "\"user_id\":\"@u1:example.test\"") &&
            has(last, "\"count\":1"),
        "the event says whose it is: %s", last);
  OK(mrtc_add_listener(s, "mine", keep, NULL, 0, NULL, &out));
  CHECK(emit(s, "mine", "{\"a\":[1,{\"b\":\"\\u00e9\"}]}") == 1, "an event of the host's own");
  CALLS("k");
  CHECK(has(last, "\"a\":[1,{\"b\":\"") && number_of(last, "session") == s, "carries its fields: %s", last);
  OK(mrtc_session_close(s, &out));
  EXPECT(MRTC_ERR_INVALID_HANDLE, NULL, mrtc_emit(s, "mine", NULL, NULL, &out));
  OK(feed_member(c, 2, &out));
  emit(c, "memberships_changed", NULL);
  CALLS("ck"); /* the closed session told nothing: these two heard the last line */
  OK(mrtc_client_free(c, &out));
}

/* ---- what a callback may do ---- */

static mrtc_client the_client;
static mrtc_session the_session;
static mrtc_listener victim;

static void removes_next(uint64_t handle, const char *event, const char *json, size_t len, void *user_data) {
  (void)handle, (void)event, (void)json, (void)len, (void)user_data;
  note('r');
  CHECK(mrtc_remove_listener(victim, NULL) == MRTC_OK, "a listener removes another in a callback");
}

static void removes_itself(uint64_t handle, const char *event, const char *json, size_t len, void *user_data) {
  (void)event, (void)json, (void)len, (void)user_data;
  note('i');
  CHECK(mrtc_remove_all_listeners(handle, NULL, NULL) == MRTC_OK, "a listener removes itself in a callback");
}

static void adds(uint64_t handle, const char *event, const char *json, size_t len, void *user_data) {
  (void)json, (void)len, (void)user_data;
  note('+');
  CHECK(mrtc_add_listener(handle, event, letter, (void *)"n", 0, NULL, NULL) == MRTC_OK, "a listener adds one");
}

static void calls_back(uint64_t handle, const char *event, const char *json, size_t len, void *user_data) {
  (void)handle, (void)event, (void)json, (void)len, (void)user_data;
  char *out = NULL;
  OK(mrtc_session_info(the_session, &out));
  OK(mrtc_session_memberships(the_session, &out));
  OK(mrtc_emit(the_client, "after", NULL, NULL, &out));
  OK(feed_member(the_client, 3, &out));
  EXPECT(MRTC_TIMEOUT, NULL, mrtc_client_next_event(0 + new_client("manual"), 0, &out));
  EXPECT(MRTC_ERR_WOULD_DEADLOCK, NULL, mrtc_client_stop_wait(the_client, -1, &out));
  EXPECT(MRTC_ERR_WOULD_DEADLOCK, NULL, mrtc_client_next_event(the_client, 10, &out));
  EXPECT(MRTC_ERR_WOULD_DEADLOCK, NULL, mrtc_session_leave_wait(the_session, -1, &out));
  note('b');
}

static void frees(uint64_t handle, const char *event, const char *json, size_t len, void *user_data) {
  (void)event, (void)user_data;
  char *out = NULL, before[512];
  snprintf(before, sizeof before, "%s", json);
  OK(mrtc_client_free(handle, &out));
  EXPECT(MRTC_ERR_INVALID_HANDLE, NULL, mrtc_client_info(handle, &out));
  CHECK(!strncmp(before, json, strlen(before)) && len > 0, "the event lives as long as the callback");
  note('f');
}

static void in_callbacks(void) {
  char *out = NULL;
  mrtc_client c = the_client = new_client("manual");
  OK(mrtc_client_feed(c, "{\"state\":{\"room_id\":\"" ROOM "\",\"events\":[],\"complete\":true}}", &out));
  the_session = open_session(c);

  OK(mrtc_add_listener(c, "e", removes_next, NULL, 0, NULL, &out));
  victim = add(c, "e", "v", 0);
  add(c, "e", "z", 0);
  emit(c, "e", NULL);
  CALLS("rz");
  OK(mrtc_remove_all_listeners(c, NULL, &out));

  OK(mrtc_add_listener(c, "e", removes_itself, NULL, 0, NULL, &out));
  add(c, "e", "v", 0);
  emit(c, "e", NULL);
  add(the_session, "e", "q", 0);
  emit(the_session, "e", NULL);
  CALLS("iq"); /* what was removed with it is not called */
  OK(mrtc_remove_all_listeners(the_session, NULL, &out));

  OK(mrtc_add_listener(c, "e", adds, NULL, MRTC_ONCE, NULL, &out));
  emit(c, "e", NULL);
  emit(c, "e", NULL);
  CALLS("+n"); /* what was added is called from the next event on */
  OK(mrtc_remove_all_listeners(c, NULL, &out));

  OK(mrtc_add_listener(c, "e", calls_back, NULL, 0, NULL, &out));
  add(c, "after", "a", 0);
  add(c, "memberships_changed", "m", 0);
  emit(c, "e", NULL);
  CALLS("bam");
  OK(mrtc_remove_all_listeners(c, NULL, &out));

  EXPECT(MRTC_ERR_WOULD_DEADLOCK, NULL, mrtc_session_leave_wait(the_session, 10, &out)); /* host-driven */
  OK(mrtc_add_listener(c, "e", frees, NULL, 0, NULL, &out));
  add(c, "e", "v", 0);
  emit(c, "e", NULL);
  emit(c, "e", NULL);
  CALLS("f");
  EXPECT(MRTC_ERR_INVALID_HANDLE, NULL, mrtc_client_free(c, &out));
}

/* ---- removal waits for a callback that is running ---- */

static int inside, go_on, returned;

static void blocks(uint64_t handle, const char *event, const char *json, size_t len, void *user_data) {
  (void)handle, (void)event, (void)json, (void)len, (void)user_data;
  pthread_mutex_lock(&lock);
  inside = 1;
  pthread_cond_broadcast(&called);
  while (!go_on) pthread_cond_wait(&called, &lock);
  returned = 1;
  pthread_mutex_unlock(&lock);
}

static void *lets_go(void *unused) {
  /* However long this takes, the removal must wait for it. */
  nanosleep(&(struct timespec){0, 50000000}, NULL);
  pthread_mutex_lock(&lock);
  go_on = 1;
  pthread_cond_broadcast(&called);
  pthread_mutex_unlock(&lock);
  return unused;
}

static void removal_waits(int which) {
  char *out = NULL;
  mrtc_client c = new_client("manual");
  mrtc_listener id = 0;
  pthread_t other;
  inside = go_on = returned = 0;
  OK(mrtc_add_listener(c, "e", blocks, NULL, which >= 3 ? MRTC_ONCE : 0, &id, &out));
  emit(c, "e", NULL);
  pthread_mutex_lock(&lock);
  while (!inside) pthread_cond_wait(&called, &lock);
  pthread_mutex_unlock(&lock);
  pthread_create(&other, NULL, lets_go, NULL);
  if (which == 0) OK(mrtc_remove_listener(id, &out));
  if (which == 1) OK(mrtc_remove_all_listeners(c, "e", &out));
  if (which == 2 || which == 3) OK(mrtc_client_free(c, &out));
  if (which == 4) EXPECT(MRTC_ERR_NOT_FOUND, NULL, mrtc_remove_listener(id, &out)); /* it was removed before its call */
  pthread_mutex_lock(&lock);
  CHECK(returned, "way %d: the callback is not running when its removal has returned", which);
  pthread_mutex_unlock(&lock);
  pthread_join(other, NULL);
  if (which < 2 || which == 4) OK(mrtc_client_free(c, &out));
}

/* ---- log lines ---- */

static void log_line(int level, const char *json, size_t len, void *user_data) {
  CHECK(level >= 0 && level <= 3 && strlen(json) == len && has(json, "\"message\":"), "a log line: %s", json);
  CHECK(!strcmp(user_data, "data"), "the log's user data");
  note('l');
}

static void log_lines(void) {
  char *out = NULL;
  CHECK(mrtc_set_log_callback(log_line, (void *)"data", 0) == MRTC_OK, "a log callback");
  mrtc_client c = new_client("manual");
  mrtc_session s = open_session(c);
  OK(mrtc_session_on_call_encryption(s, "nonsense", &out));
  CALLS("l");
  CHECK(mrtc_set_log_callback(log_line, (void *)"data", 3) == MRTC_OK, "only errors");
  OK(mrtc_session_on_call_encryption(s, "nonsense", &out));
  CHECK(mrtc_set_log_callback(NULL, NULL, 0) == MRTC_OK, "no log callback");
  OK(mrtc_session_on_call_encryption(s, "nonsense", &out));
  add(c, "e", "e", 0);
  emit(c, "e", NULL);
  CALLS("e");
  OK(mrtc_client_free(c, &out));
}

int main(void) {
  order();
  whose_events();
  in_callbacks();
  for (int i = 0; i < 5; i++) removal_waits(i);
  log_lines();
  return summary();
}
