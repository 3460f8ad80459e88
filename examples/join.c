/* Joins the call of a room, prints what happens there, leaves after thirty events, or when for five
 * seconds there were none.
 *
 *   cc examples/join.c -Iinclude -Lbuild -lmatrixrtc -o join && ./join URL TOKEN ROOM */
#include <matrixrtc.h>
#include <stdio.h>
#include <stdlib.h>

static char *out; /* what the last call had to say */

static mrtc_status check(mrtc_status status) {
  if (status < 0) {
    fprintf(stderr, "%s\n", out ? out : mrtc_status_name(status));
    exit(1);
  }
  return status;
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: %s HOMESERVER_URL ACCESS_TOKEN ROOM_ID\n", argv[0]);
    return 2;
  }
  char config[2048];
  if (snprintf(config, sizeof config, "{\"homeserver_url\": \"%s\", \"access_token\": \"%s\"}", argv[1], argv[2]) >=
      (int)sizeof config)
    return 2;

  mrtc_client client;
  mrtc_session session;
  check(mrtc_client_new(config, &client, &out));
  check(mrtc_client_next_event(client, 0, &out)); /* from here on events are kept for us */
  check(mrtc_client_start(client, &out));
  check(mrtc_session_open(client, argv[3], NULL, &session, &out));
  check(mrtc_session_join(session,
                          "{\"foci_preferred\": [{\"type\": \"livekit\","
                          " \"livekit_service_url\": \"https://sfu.example.org\"}]}",
                          &out));
  for (int i = 0; i < 30 && check(mrtc_client_next_event(client, 5000, &out)) == MRTC_OK; i++) {
    puts(out);
    mrtc_free(out);
  }
  check(mrtc_session_leave_wait(session, 5000, &out)); /* {"sent": true} */
  puts(out);
  mrtc_free(out);
  check(mrtc_client_stop_wait(client, 5000, &out)); /* nothing of it runs when the process ends */
  return check(mrtc_client_free(client, &out));
}
