/* Measures the library from C, loaded with dlopen so that the load itself can be measured too:
 *
 *   bench LIBRARY load | call | events | idle | sessions N | ingest N...
 *   bench BARE    bare_call | bare_callbacks
 *
 * Each prints one JSON line for each figure: {"size": n, "value": x}. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "matrixrtc.h"

#define ROOM "!room:example.test"

static void *library;

static void *symbol(const char *name) {
  void *p = dlsym(library, name);
  if (!p) {
    fprintf(stderr, "%s\n", dlerror());
    exit(1);
  }
  return p;
}

#define FN(name) __typeof__(name) *p_##name = (__typeof__(name) *)symbol(#name)

static double now_us(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* CPU time of the process, collection of garbage included. */
static double cpu_us(void) { return now_us(CLOCK_PROCESS_CPUTIME_ID); }

static double resident_mb(void) {
  long pages = 0, ignored;
  FILE *f = fopen("/proc/self/statm", "r");
  if (!f || fscanf(f, "%ld %ld", &ignored, &pages) != 2) exit(1);
  fclose(f);
  return (double)pages * 4096 / 1e6;
}

static void print(long size, double value) { printf("{\"size\": %ld, \"value\": %.4f}\n", size, value); }

static void check(mrtc_status status, char *out, const char *what) {
  if (status == MRTC_OK) return;
  fprintf(stderr, "%s: %d %s\n", what, status, out ? out : "");
  exit(1);
}

static mrtc_client new_client(void) {
  FN(mrtc_client_new);
  mrtc_client client = 0;
  char *out = NULL;
  check(p_mrtc_client_new("{\"mode\":\"host_driven\",\"user_id\":\"@me:example.test\",\"device_id\":\"ME\"}", &client, &out),
        out, "mrtc_client_new");
  return client;
}

static void feed(__typeof__(mrtc_client_feed) *p_feed, mrtc_client client, const char *json) {
  char *out = NULL;
  check(p_feed(client, json, &out), out, "mrtc_client_feed");
}

/* A room's part of a sync in which a user joins the room and its call. */
static int join_room_json(char *to, size_t room_size, const char *room, long i, long long ts) {
  return snprintf(
      to, room_size,
      "\"%s\":{\"state\":{\"events\":[{\"type\":\"m.room.member\",\"state_key\":\"@user%ld:example.test\",\"sender\":"
      "\"@user%ld:example.test\",\"event_id\":\"$u%ld\",\"origin_server_ts\":%lld,\"content\":{\"membership\":\"join\"}}]},"
      "\"timeline\":{\"events\":[{\"type\":\"org.matrix.msc3401.call.member\",\"state_key\":"
      "\"_@user%ld:example.test_DEV%ld_m.call\",\"sender\":\"@user%ld:example.test\",\"event_id\":\"$m%ld\","
      "\"origin_server_ts\":%lld,\"content\":{\"application\":\"m.call\",\"call_id\":\"\",\"scope\":\"m.room\",\"device_id\":"
      "\"DEV%ld\",\"expires\":14400000,\"focus_active\":{\"type\":\"livekit\",\"focus_selection\":\"oldest_membership\"},"
      "\"foci_preferred\":[{\"type\":\"livekit\",\"livekit_service_url\":\"https://lk.example.test\",\"livekit_alias\":"
      "\"" ROOM "\"}]}}]}}",
      room, i, i, i, ts, i, i, i, i, ts, i);
}

static long long wall_ms(void) { return (long long)(now_us(CLOCK_REALTIME) / 1e3); }

/* --- join ingest: a member at a time, from an empty call up to the size */

static void ingest(long size) {
  FN(mrtc_client_feed);
  FN(mrtc_client_free);
  FN(mrtc_session_open);
  FN(mrtc_session_info);
  FN(mrtc_free);
  char **bodies = calloc((size_t)size, sizeof *bodies);
  long long ts = wall_ms() - size;
  for (long i = 0; i < size; i++) {
    char room[2048], body[2200];
    join_room_json(room, sizeof room, ROOM, i, ts + i);
    snprintf(body, sizeof body, "{\"sync\":{\"next_batch\":\"s\",\"rooms\":{\"join\":{%s}}}}", room);
    bodies[i] = strdup(body);
  }
  long rounds = size < 50000 ? 50000 / size : 1;
  double spent = 0;
  for (long r = 0; r < rounds; r++) {
    mrtc_client client = new_client();
    mrtc_session session = 0;
    char *out = NULL;
    feed(p_mrtc_client_feed, client, "{\"state\":{\"room_id\":\"" ROOM "\",\"events\":[],\"complete\":true}}");
    check(p_mrtc_session_open(client, ROOM, NULL, &session, &out), out, "mrtc_session_open");
    double before = cpu_us();
    for (long i = 0; i < size; i++) feed(p_mrtc_client_feed, client, bodies[i]);
    spent += cpu_us() - before;
    check(p_mrtc_session_info(session, &out), out, "mrtc_session_info");
    char expected[64];
    snprintf(expected, sizeof expected, "\"member_count\":%ld", size);
    if (!out || !strstr(out, expected)) {
      fprintf(stderr, "expected %s in %s\n", expected, out ? out : "nothing");
      exit(1);
    }
    p_mrtc_free(out);
    p_mrtc_client_free(client, NULL);
  }
  print(size, spent / (double)(rounds * size));
  for (long i = 0; i < size; i++) free(bodies[i]);
  free(bodies);
}

/* --- calls */

enum { CALLS = 3000000 };

static void calls(void) {
  FN(mrtc_listener_count);
  mrtc_client client = new_client();
  size_t count;
  for (int i = 0; i < CALLS / 10; i++) p_mrtc_listener_count(client, NULL, &count, NULL);
  double before = now_us(CLOCK_MONOTONIC);
  for (int i = 0; i < CALLS; i++) p_mrtc_listener_count(client, NULL, &count, NULL);
  print(1, (now_us(CLOCK_MONOTONIC) - before) * 1e3 / CALLS);
}

static void bare_calls(void) {
  __typeof__(mrtc_listener_count) *call = (__typeof__(mrtc_listener_count) *)symbol("bare_call");
  size_t count;
  for (int i = 0; i < CALLS / 10; i++) call(2, NULL, &count, NULL);
  double before = now_us(CLOCK_MONOTONIC);
  for (int i = 0; i < CALLS; i++) call(2, NULL, &count, NULL);
  print(1, (now_us(CLOCK_MONOTONIC) - before) * 1e3 / CALLS);
}

/* --- events to a callback */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t all_there = PTHREAD_COND_INITIALIZER;
static long seen, wanted;

static void on_event(uint64_t handle, const char *event, const char *json, size_t len, void *user_data) {
  (void)handle, (void)event, (void)json, (void)len, (void)user_data;
  pthread_mutex_lock(&lock);
  if (++seen == wanted) pthread_cond_signal(&all_there);
  pthread_mutex_unlock(&lock);
}

/* Each batch is one sync that begins a call in each of many rooms: an event for each. The time is
 * that from the feed to the last callback, so parsing and making the events are in it. */
static void events(void) {
  enum { BATCH = 5000, BATCHES = 10 };
  FN(mrtc_client_feed);
  FN(mrtc_add_listener);
  mrtc_client client = new_client();
  char *out = NULL;
  check(p_mrtc_add_listener(client, "session_started", on_event, NULL, 0, NULL, &out), out, "mrtc_add_listener");
  char *body = malloc((size_t)BATCH * 1600);
  double spent = 0;
  for (int b = 0; b < BATCHES; b++) {
    size_t at = (size_t)sprintf(body, "{\"sync\":{\"next_batch\":\"s\",\"rooms\":{\"join\":{");
    for (int i = 0; i < BATCH; i++) {
      char room[64];
      snprintf(room, sizeof room, "!r%dx%d:example.test", b, i);
      if (i) body[at++] = ',';
      at += (size_t)join_room_json(body + at, 1500, room, i, wall_ms());
    }
    strcpy(body + at, "}}}}");
    wanted = (long)(b + 1) * BATCH;
    double before = now_us(CLOCK_MONOTONIC);
    feed(p_mrtc_client_feed, client, body);
    pthread_mutex_lock(&lock);
    while (seen < wanted) pthread_cond_wait(&all_there, &lock);
    pthread_mutex_unlock(&lock);
    spent += now_us(CLOCK_MONOTONIC) - before;
  }
  print(BATCH * BATCHES, BATCH * BATCHES / (spent / 1e6));
}

static void bare_callbacks(void) {
  enum { CALLBACKS = 1000000 };
  void (*run)(mrtc_listener_fn, int64_t) = (void (*)(mrtc_listener_fn, int64_t))symbol("bare_callbacks");
  double before = now_us(CLOCK_MONOTONIC);
  run(on_event, CALLBACKS);
  print(CALLBACKS, CALLBACKS / ((now_us(CLOCK_MONOTONIC) - before) / 1e6));
}

/* --- memory */

static void idle(double before) {
  new_client();
  print(1, resident_mb() - before);
}

static void sessions(long n, double before) {
  FN(mrtc_session_open);
  mrtc_client client = new_client();
  for (long i = 0; i < n; i++) {
    char room[64], *out = NULL;
    mrtc_session session;
    snprintf(room, sizeof room, "!room%ld:example.test", i);
    check(p_mrtc_session_open(client, room, NULL, &session, &out), out, "mrtc_session_open");
  }
  print(n, resident_mb() - before);
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  double memory = resident_mb(), before = now_us(CLOCK_MONOTONIC);
  if (!(library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL))) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  const char *what = argv[2];
  if (!strcmp(what, "load")) {
    /* Loaded is what answers: the Go runtime starts in a thread of its own. */
    new_client();
    print(1, (now_us(CLOCK_MONOTONIC) - before) / 1e3);
  } else if (!strcmp(what, "call")) {
    calls();
  } else if (!strcmp(what, "bare_call")) {
    bare_calls();
  } else if (!strcmp(what, "events")) {
    events();
  } else if (!strcmp(what, "bare_callbacks")) {
    bare_callbacks();
  } else if (!strcmp(what, "idle")) {
    idle(memory);
  } else if (!strcmp(what, "sessions") && argc > 3) {
    sessions(atol(argv[3]), memory);
  } else if (!strcmp(what, "ingest")) {
    for (int i = 3; i < argc; i++) ingest(atol(argv[i]));
  } else {
    return 2;
  }
  return 0;
}
