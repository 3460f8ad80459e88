/* Many threads at once, on the same handles, while clients are made and freed under them. Nothing
 * may crash, hang or reach another object; what the calls answer is one of what they may answer. */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "check.h"
#include "every.h"

enum { THREADS = 6, CLIENTS = 4 };

static _Atomic uint64_t clients[CLIENTS], sessions[CLIENTS], listeners[CLIENTS];
static atomic_int stop;
static atomic_long calls, callbacks;

static void on_event(uint64_t handle, const char *event, const char *json, size_t len, void *user_data) {
  (void)handle, (void)event, (void)user_data;
  if (strlen(json) != len) atomic_store(&stop, 2);
  atomic_fetch_add(&callbacks, 1);
  /* Re-entrancy: any function, also those that end what is being told. */
  unsigned n = (unsigned)atomic_load(&callbacks);
  int i = (int)(n % CLIENTS);
  char *out = NULL;
  if (n % 3 == 0) mrtc_session_memberships(sessions[i], &out);
  if (n % 50 == 1) mrtc_remove_listener(listeners[i], NULL);
  if (n % 200 == 2) mrtc_client_free(clients[i], NULL);
  mrtc_free(out);
}

static void renew(int i) {
  char *out = NULL;
  mrtc_client c = new_client(i % 2 ? "manual" : "real");
  mrtc_session s = 0;
  mrtc_listener l = 0;
  mrtc_client_feed(c, "{\"state\":{\"room_id\":\"" ROOM "\",\"events\":[],\"complete\":true}}", NULL);
  mrtc_session_open(c, ROOM, NULL, &s, NULL);
  mrtc_add_listener(c, NULL, on_event, NULL, 0, &l, NULL);
  mrtc_add_listener(s, "memberships_changed", on_event, NULL, 0, NULL, NULL);
  mrtc_client_next_event(c, 0, &out);
  mrtc_free(out);
  sessions[i] = s;
  listeners[i] = l;
  mrtc_client old = atomic_exchange(&clients[i], c);
  if (old) mrtc_client_free(old, NULL);
}

static int allowed(mrtc_status s) { return s == MRTC_OK || s == MRTC_TIMEOUT || (s <= -1 && s >= -5) || s == MRTC_ERR_NOT_FOUND; }

static void *worker(void *seed) {
  unsigned n = (unsigned)(uintptr_t)seed * 7919 + 1;
  static const char *const texts[] = {NULL, "{}", "{\"foci_preferred\":[]}", "{\"sync\":{}}", "nonsense", "@u1:example.test"};
  while (!atomic_load(&stop)) {
    n = n * 1103515245 + 12345;
    int i = (int)(n >> 8) % CLIENTS, f = (int)(n >> 16) % FUNCTIONS;
    const char *name = every[f].name;
    if (!strcmp(name, "mrtc_client_free") || !strncmp(name, "mrtc_client_stop", 16)) {
      if ((n >> 3) % 8 == 0) renew(i);
      continue;
    }
    uint64_t h = every[f].kind == SESSION ? sessions[i] : every[f].kind == LISTENER ? listeners[i] : clients[i];
    char *out = NULL;
    mrtc_status status = every[f].call(h, texts[(n >> 4) % (sizeof texts / sizeof *texts)], &out);
    if (!allowed(status)) {
      CHECK(0, "%s: %s %s", name, mrtc_status_name(status), out ? out : "");
      atomic_store(&stop, 1);
    }
    mrtc_free(out);
    if (n % 16 == 0) feed_member((mrtc_client)clients[i], (int)(n >> 5) % 50, NULL);
    if (n % 16 == 1) mrtc_client_next_event(clients[i], (int)(n % 3), NULL);
    atomic_fetch_add(&calls, 1);
  }
  return NULL;
}

static int enough(void) { return atomic_load(&calls) > 1000 && atomic_load(&callbacks) > 100; }

static void *frees(void *client) { return (void *)(intptr_t)mrtc_client_free(*(mrtc_client *)client, NULL); }

int main(void) {
  char *out = NULL;
  pthread_t threads[THREADS];
  for (int i = 0; i < CLIENTS; i++) renew(i);
  for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, worker, (void *)(uintptr_t)(i + 1));
  /* For three seconds, and where little has happened by then, for up to a minute. */
  for (int i = 0; (i < 30 || (i < 600 && !enough())) && !atomic_load(&stop); i++) {
    nanosleep(&(struct timespec){0, 100000000}, NULL);
    renew(i % CLIENTS);
  }
  int wrong = atomic_exchange(&stop, 1);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  CHECK(!wrong, "nothing went wrong");
  CHECK(enough(), "%ld calls and %ld callbacks", (long)calls, (long)callbacks);
  for (int i = 0; i < CLIENTS; i++) mrtc_client_free(clients[i], NULL);

  /* Of those who free a client at once, one succeeds. */
  for (int i = 0; i < 50; i++) {
    mrtc_client c = new_client("real");
    open_session(c);
    int freed = 0;
    for (int j = 0; j < THREADS; j++) pthread_create(&threads[j], NULL, frees, &c);
    for (int j = 0; j < THREADS; j++) {
      void *status;
      pthread_join(threads[j], &status);
      freed += (intptr_t)status == MRTC_OK;
    }
    if (!CHECK(freed == 1, "freed %d times", freed)) break;
  }
  mrtc_client c = new_client("manual");
  OK(mrtc_client_free(c, &out));
  return summary();
}
