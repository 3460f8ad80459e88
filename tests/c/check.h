/* The least of a test framework: checks that are counted, and errors that are looked into. */
#ifndef CHECK_H
#define CHECK_H

#include <matrixrtc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int passed, failed;

__attribute__((format(printf, 3, 4))) static inline int check_at(int ok, int line, const char *format, ...) {
  if (ok) {
    __atomic_add_fetch(&passed, 1, __ATOMIC_RELAXED);
    return 1;
  }
  __atomic_add_fetch(&failed, 1, __ATOMIC_RELAXED);
  va_list args;
  va_start(args, format);
  printf("FAILED (line %d): ", line);
  vprintf(format, args);
  puts("");
  va_end(args);
  fflush(stdout);
  return 0;
}

#define CHECK(ok, ...) check_at((ok) != 0, __LINE__, __VA_ARGS__)

/* The status of a call is the one that is wanted, and a failure says what it is in `out`: a JSON
 * object with that status and, where path is not NULL, the pointer to the offending field. Frees out,
 * which is given by its address: it is written while the arguments are evaluated. */
static inline int expect_at(int line, const char *what, mrtc_status got, mrtc_status want, char **says, const char *path) {
  char *out = *says;
  *says = NULL;
  int ok = check_at(got == want, line, "%s: expected %s, got %s %s", what, mrtc_status_name(want), mrtc_status_name(got),
                    out ? out : "");
  if (got < 0) {
    char part[128];
    snprintf(part, sizeof part, "{\"status\":\"%s\",\"message\":\"", mrtc_status_name(got));
    ok &= check_at(out && !strncmp(out, part, strlen(part)), line, "%s: no error object: %s", what, out ? out : "NULL");
    if (path && *path) {
      snprintf(part, sizeof part, "\"path\":\"%s\"", path);
      ok &= check_at(out && strstr(out, part), line, "%s: expected path %s: %s", what, path, out ? out : "NULL");
    }
  }
  mrtc_free(out);
  return ok;
}

#define EXPECT(want, path, call) expect_at(__LINE__, #call, (call), (want), &out, (path))
#define OK(call) EXPECT(MRTC_OK, NULL, call)

static inline int summary(void) {
  printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}

/* ---- what the tests begin with ---- */

#define ROOM "!room:example.test"

static inline mrtc_client new_client(const char *clock) {
  char config[256], *out = NULL;
  mrtc_client client = 0;
  snprintf(config, sizeof config,
           "{\"mode\":\"host_driven\",\"user_id\":\"@me:example.test\",\"device_id\":\"ME\",\"clock\":\"%s\"}", clock);
  OK(mrtc_client_new(config, &client, &out));
  return client;
}

static inline mrtc_session open_session(mrtc_client client) {
  char *out = NULL;
  mrtc_session session = 0;
  OK(mrtc_session_open(client, ROOM, NULL, &session, &out));
  return session;
}

/* A call of ROOM begins, or gets one more member: user `n`. */
static inline mrtc_status feed_member(mrtc_client client, int n, char **out) {
  char body[2048];
  snprintf(body, sizeof body,
           "{\"sync\":{\"next_batch\":\"s\",\"rooms\":{\"join\":{\"" ROOM
           "\":{\"state\":{\"events\":[{\"type\":\"m.room.member\",\"state_key\":\"@u%d:example.test\",\"sender\":"
           "\"@u%d:example.test\",\"event_id\":\"$u%d\",\"origin_server_ts\":9000,\"content\":{\"membership\":\"join\"}}]},"
           "\"timeline\":{\"events\":[{\"type\":\"org.matrix.msc3401.call.member\",\"state_key\":"
           "\"_@u%d:example.test_D_m.call\",\"sender\":\"@u%d:example.test\",\"event_id\":\"$m%d\",\"origin_server_ts\":9000,"
           "\"content\":{\"application\":\"m.call\",\"call_id\":\"\",\"device_id\":\"D\",\"expires\":14400000,"
           "\"focus_active\":{\"type\":\"livekit\",\"focus_selection\":\"oldest_membership\"},\"foci_preferred\":[]}}]}}}}}}",
           n, n, n, n, n, n);
  return mrtc_client_feed(client, body, out);
}

/* The value of a number field of a flat JSON text, 0 where there is none. */
static inline unsigned long long number_of(const char *json, const char *field) {
  char key[64];
  snprintf(key, sizeof key, "\"%s\":", field);
  const char *at = json ? strstr(json, key) : NULL;
  return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static inline int has(const char *text, const char *part) { return text && strstr(text, part) != NULL; }

/* The answer of a getter has this in it. Frees out. */
static inline void answers(mrtc_status status, char *out, const char *part, const char *what) {
  CHECK(status == MRTC_OK && has(out, part), "%s: expected %s, got %s %s", what, part, mrtc_status_name(status), out ? out : "");
  mrtc_free(out);
}

#endif
