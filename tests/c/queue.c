/* The queue of a client and its file descriptor. */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

enum { PATIENCE = 60000 }; /* ms */

static int readable(int fd, int wait_ms) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  return poll(&p, 1, wait_ms) == 1 && (p.revents & POLLIN);
}

static int take(mrtc_client c, const char *part) {
  char *out = NULL;
  int ok = mrtc_client_next_event(c, 0, &out) == MRTC_OK && has(out, part);
  if (!ok) printf("instead of %s: %s\n", part, out ? out : "nothing");
  mrtc_free(out);
  return ok;
}

static int empty(mrtc_client c) {
  char *out = (char *)1;
  return mrtc_client_next_event(c, 0, &out) == MRTC_TIMEOUT && out == NULL;
}

static void emit(mrtc_client c, const char *event) {
  char *out = NULL;
  OK(mrtc_emit(c, event, NULL, NULL, &out));
}

static void in_order(void) {
  char *out = NULL;
  mrtc_client c = new_client("manual");
  emit(c, "lost"); /* the queue exists from the first call on */
  CHECK(empty(c), "nothing is there yet");
  emit(c, "one");
  emit(c, "two");
  CHECK(mrtc_client_next_event(c, 0, NULL) == MRTC_OK, "an event can be thrown away");
  CHECK(take(c, "{\"event\":\"two\""), "events come in order");
  CHECK(empty(c), "each comes once");
  unsigned long long before = 0;
  for (int i = 0; i < 100; i++) emit(c, "numbered");
  for (int i = 0; i < 100; i++) {
    EXPECT(MRTC_OK, NULL, (mrtc_client_next_event(c, -1, &out)));
    out = NULL;
  }
  for (int i = 0; i < 3; i++) {
    emit(c, "numbered");
    CHECK(mrtc_client_next_event(c, PATIENCE, &out) == MRTC_OK, "it is there");
    unsigned long long seq = number_of(out, "seq");
    CHECK(before == 0 || seq == before + 1, "events are numbered: %llu after %llu", seq, before);
    CHECK(number_of(out, "client") == c, "and say whose they are: %s", out);
    before = seq;
    mrtc_free(out);
  }
  struct timespec t0, t1;
  clock_gettime(CLOCK_MONOTONIC, &t0);
  CHECK(mrtc_client_next_event(c, 50, &out) == MRTC_TIMEOUT, "it waits");
  clock_gettime(CLOCK_MONOTONIC, &t1);
  CHECK((t1.tv_sec - t0.tv_sec) * 1000 + (t1.tv_nsec - t0.tv_nsec) / 1000000 >= 49, "as long as it was told to");
  OK(mrtc_client_free(c, &out));
}

static void descriptor(void) {
  char *out = NULL, bytes[8];
  int fd = -1, other = -1;
  mrtc_client c = new_client("manual");
  OK(mrtc_client_event_fd(c, &fd, &out));
  OK(mrtc_client_event_fd(c, &other, &out));
  CHECK(fd >= 0 && other >= 0 && fd != other, "each caller has a descriptor of its own");
  CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC, "it is closed on exec");
  CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK, "it does not block");
  CHECK(!readable(fd, 0), "nothing waits");
  emit(c, "one");
  emit(c, "two");
  CHECK(readable(fd, PATIENCE) && readable(other, PATIENCE), "an event waits");
  CHECK(take(c, "one") && readable(fd, PATIENCE), "another one waits");
  CHECK(take(c, "two") && empty(c) && !readable(fd, 0), "none waits any more");

  for (int i = 0; i < 1000; i++) emit(c, "many");
  CHECK(read(fd, bytes, sizeof bytes) == 1, "one byte, however many events wait");
  CHECK(!readable(fd, 0), "the host has eaten the byte");
  CHECK(take(c, "many") && readable(fd, PATIENCE), "and it is there again while events wait");
  for (int i = 1; i < 1000; i++)
    if (!take(c, "many")) break;
  CHECK(empty(c) && !readable(fd, 0), "all were taken");
  emit(c, "again");
  CHECK(readable(fd, PATIENCE) && take(c, "again"), "and it goes on");

  close(other);
  emit(c, "one");
  CHECK(readable(fd, PATIENCE), "closing one descriptor leaves the others");
  OK(mrtc_client_free(c, &out));
  CHECK(readable(fd, PATIENCE), "the end is readable");
  while (read(fd, bytes, sizeof bytes) > 0) {
  }
  CHECK(read(fd, bytes, sizeof bytes) == 0, "as the end of the stream");
  close(fd);
}

static void overflow(void) {
  char *out = NULL;
  mrtc_client c = new_client("manual");
  CHECK(empty(c), "the queue exists");
  int sent = 0;
  for (; sent < 20000; sent++) mrtc_emit(c, "flood", NULL, NULL, NULL);
  CHECK(mrtc_client_next_event(c, 0, &out) == MRTC_OK && has(out, "\"event\":\"resync_required\""), "what was lost is told: %s", out);
  unsigned long long lost = number_of(out, "lost");
  CHECK(lost > 0 && number_of(out, "client") == c && number_of(out, "ts") > 0, "with its client and how many: %s", out);
  mrtc_free(out);
  int got = 0;
  while (mrtc_client_next_event(c, 0, &out) == MRTC_OK) {
    if (!has(out, "\"event\":\"flood\"")) break;
    got++;
    mrtc_free(out);
    out = NULL;
  }
  CHECK((unsigned long long)got + lost == 20000, "%d came, %llu were lost, of %d", got, lost, sent);
  emit(c, "after");
  CHECK(take(c, "after"), "and it goes on");
  OK(mrtc_client_free(c, &out));
}

/* Requests are never what is lost. */
static void requests_survive(void) {
  char *out = NULL;
  mrtc_client c = new_client("manual");
  CHECK(empty(c), "the queue exists");
  OK(mrtc_client_feed(c, "{\"state\":{\"room_id\":\"" ROOM "\",\"events\":[],\"complete\":true}}", &out));
  mrtc_session s = open_session(c);
  OK(mrtc_session_join(s, "{\"foci_preferred\":[]}", &out));
  for (int i = 0; i < 20000; i++) mrtc_emit(c, "flood", NULL, NULL, NULL);
  int requests = 0, resyncs = 0;
  while (mrtc_client_next_event(c, 0, &out) == MRTC_OK) {
    requests += has(out, "{\"event\":\"request\"");
    resyncs += has(out, "{\"event\":\"resync_required\"");
    mrtc_free(out);
    out = NULL;
  }
  CHECK(requests > 0 && resyncs == 1, "%d requests survived, %d resync_required", requests, resyncs);
  OK(mrtc_client_free(c, &out));
}

/* Answers requests until one of a kind comes; its id, 0 if it does not. */
static unsigned long long request_of(mrtc_client c, const char *kind) {
  static const struct { const char *kind, *answer; } answers[] = {
      {"get_capabilities", "{\"capabilities\":{}}"},  {"list_delayed", "{\"delayed_events\":[]}"},
      {"schedule_delayed", "{\"delay_id\":\"d\"}"}, {"send_state", "{\"event_id\":\"$1\"}"},
      {"restart_delayed", "{}"}};
  char *out = NULL, is[64], text[256];
  unsigned long long found = 0;
  while (!found && mrtc_client_next_event(c, 0, &out) == MRTC_OK) {
    unsigned long long id = has(out, "{\"event\":\"request\"") ? number_of(out, "id") : 0;
    snprintf(is, sizeof is, "\"kind\":\"%s\"", kind);
    if (id && has(out, is)) found = id;
    for (size_t i = 0; id && !found && i < sizeof answers / sizeof *answers; i++) {
      snprintf(is, sizeof is, "\"kind\":\"%s\"", answers[i].kind);
      if (!has(out, is)) continue;
      snprintf(text, sizeof text, "{\"id\":%llu,\"status\":200,\"body\":%s}", id, answers[i].answer);
      CHECK(mrtc_client_respond(c, text, NULL) == MRTC_OK, "an answer is taken");
    }
    mrtc_free(out);
    out = NULL;
  }
  return found;
}

/* Nor those of a session that was closed while it is in the call: they are how it leaves. */
static void closed_sessions_leave(void) {
  char *out = NULL, text[256];
  mrtc_client c = new_client("manual");
  CHECK(empty(c), "the queue exists");
  OK(mrtc_client_feed(c, "{\"state\":{\"room_id\":\"" ROOM "\",\"events\":[],\"complete\":true}}", &out));
  mrtc_session s = open_session(c);
  OK(mrtc_session_join(s, "{\"foci_preferred\":[]}", &out));
  CHECK(request_of(c, "restart_delayed") != 0, "it is in the call");
  OK(mrtc_session_close(s, &out));
  unsigned long long id = request_of(c, "send_delayed");
  CHECK(id != 0, "it leaves by its delayed leave");
  snprintf(text, sizeof text, "{\"id\":%llu,\"status\":404,\"body\":{\"errcode\":\"M_NOT_FOUND\"}}", id);
  OK(mrtc_client_respond(c, text, &out));
  CHECK(request_of(c, "send_state") != 0, "and, where that is gone, by an empty event");
  OK(mrtc_client_free(c, &out));
}

/* ---- one waits, another does something ---- */

static void *waits(void *client) {
  char *out = NULL;
  mrtc_status status = mrtc_client_next_event(*(mrtc_client *)client, -1, &out);
  mrtc_free(out);
  return (void *)(intptr_t)status;
}

static void waiting(void) {
  char *out = NULL;
  void *status;
  pthread_t one, two;
  mrtc_client c = new_client("manual");
  CHECK(empty(c), "the queue exists");
  pthread_create(&one, NULL, waits, &c);
  pthread_create(&two, NULL, waits, &c);
  nanosleep(&(struct timespec){0, 20000000}, NULL); /* both should wait by then; it holds either way */
  emit(c, "e");
  emit(c, "e");
  pthread_join(one, &status);
  CHECK((intptr_t)status == MRTC_OK, "whoever waits is woken");
  pthread_join(two, &status);
  CHECK((intptr_t)status == MRTC_OK, "each by an event");
  pthread_create(&one, NULL, waits, &c);
  nanosleep(&(struct timespec){0, 20000000}, NULL);
  OK(mrtc_client_free(c, &out));
  pthread_join(one, &status);
  CHECK((intptr_t)status == MRTC_TIMEOUT || (intptr_t)status == MRTC_ERR_INVALID_HANDLE, "or by the end of the client: %d",
        (int)(intptr_t)status);
}

int main(void) {
  in_order();
  descriptor();
  overflow();
  requests_survive();
  closed_sessions_leave();
  waiting();
  return summary();
}
