/* Bad input: every function with handles that are none and text that is none. Each answers a clear
 * error, and everything else goes on. */
#include "check.h"
#include "every.h"

static mrtc_client client;
static mrtc_session session;
static mrtc_listener listener;

static uint64_t handle_for(enum kind kind) {
  return kind == SESSION ? session : kind == LISTENER ? listener : client;
}

static void still_works(const char *after) {
  char *out = NULL;
  int ok = mrtc_session_info(session, &out) == MRTC_OK && has(out, "\"room_id\":\"" ROOM "\"");
  CHECK(ok, "after %s the session works: %s", after, out ? out : "NULL");
  mrtc_free(out);
}

/* ---- handles ---- */

static void wrong_handle(uint64_t handle, const char *which) {
  for (int i = 0; i < FUNCTIONS; i++) {
    if (every[i].kind == NO_HANDLE) continue;
    char *out = NULL, what[128];
    snprintf(what, sizeof what, "%s of %s", every[i].name, which);
    mrtc_status want = every[i].kind == LISTENER ? MRTC_ERR_NOT_FOUND : MRTC_ERR_INVALID_HANDLE;
    expect_at(__LINE__, what, every[i].call(handle, "{}", &out), want, &out, NULL);
    CHECK(every[i].call(handle, NULL, NULL) == want, "%s without text and out", what);
  }
}

static uint64_t random_state = 0x9e3779b97f4a7c15;

static uint64_t random_number(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  return random_state ^= random_state << 17;
}

static void handles(void) {
  char *out = NULL;
  mrtc_client freed = new_client("manual");
  mrtc_session closed = 0, orphan = 0;
  mrtc_listener removed = 0;
  OK(mrtc_session_open(freed, "!closed:example.test", NULL, &closed, &out));
  OK(mrtc_session_open(freed, "!orphan:example.test", NULL, &orphan, &out));
  OK(mrtc_add_listener(freed, NULL, a_listener, NULL, 0, &removed, &out));
  OK(mrtc_session_close(closed, &out));
  OK(mrtc_client_free(freed, &out));

  wrong_handle(0, "handle 0");
  wrong_handle(UINT64_MAX, "the greatest handle");
  wrong_handle(freed, "a freed client");
  wrong_handle(closed, "a closed session");
  wrong_handle(orphan, "the session of a freed client");
  wrong_handle(removed, "a removed listener");
  wrong_handle(client ^ 1ull << 30, "another generation");
  for (int i = 0; i < 200; i++) wrong_handle(random_number() >> (i % 2 ? 0 : 11), "a random handle");
  for (int i = 0; i < FUNCTIONS; i++) {
    /* A handle of the wrong kind is no better. */
    uint64_t other = every[i].kind == CLIENT ? session : every[i].kind == EITHER ? listener : client;
    if (every[i].kind == NO_HANDLE) continue;
    mrtc_status want = every[i].kind == LISTENER ? MRTC_ERR_NOT_FOUND : MRTC_ERR_INVALID_HANDLE;
    CHECK(every[i].call(other, "{}", NULL) == want, "%s of another kind of handle", every[i].name);
  }
  for (int i = 0; i < 1000; i++) {
    mrtc_client again = new_client("manual");
    if (!CHECK(again != freed && again < 1ull << 53, "a handle is used once, and fits a double")) break;
    mrtc_client_free(again, NULL);
  }
  still_works("wrong handles");
}

/* ---- text ---- */

enum { HUGE_SIZE = 10 << 20 };

/* `before`, then the filling up to 10 MB, then `after`. */
static char *huge(const char *before, char filling, const char *after) {
  char *text = malloc(HUGE_SIZE + strlen(before) + strlen(after) + 1);
  size_t at = strlen(before);
  memcpy(text, before, at);
  memset(text + at, filling, HUGE_SIZE);
  strcpy(text + at + HUGE_SIZE, after);
  return text;
}

static void wrong_text(const char *text, const char *which) {
  for (int i = 0; i < FUNCTIONS; i++) {
    if (every[i].text != JSON && every[i].text != OPTIONAL && every[i].text != WHICH) continue;
    char *out = NULL, what[128];
    snprintf(what, sizeof what, "%s with %s", every[i].name, which);
    mrtc_status status = every[i].call(handle_for(every[i].kind), text, &out);
    if (text == NULL && every[i].text == OPTIONAL) {
      expect_at(__LINE__, what, status, MRTC_OK, &out, NULL);
    } else if (text == NULL && every[i].text == WHICH) {
      expect_at(__LINE__, what, status, strstr(every[i].name, "_wait") ? MRTC_ERR_WOULD_DEADLOCK : MRTC_ERR_INVALID_STATE, &out, NULL);
    } else {
      expect_at(__LINE__, what, status, MRTC_ERR_INVALID_ARGUMENT, &out, NULL);
    }
  }
}

static void unknown_field(const char *json, const char *path) {
  for (int i = 0; i < FUNCTIONS; i++) {
    char *out = NULL;
    if (every[i].text != JSON && every[i].text != WHICH && strcmp(every[i].name, "mrtc_session_open")) continue;
    if (!strcmp(every[i].name, "mrtc_session_update_application_data")) continue; /* takes any field */
    expect_at(__LINE__, every[i].name, every[i].call(handle_for(every[i].kind), json, &out), MRTC_ERR_INVALID_ARGUMENT, &out, path);
  }
}

static void texts(void) {
  wrong_text(NULL, "NULL");
  wrong_text("", "an empty text");
  wrong_text(" \n", "only white space");
  static const char *const no_object[] = {"null",   "true",    "1",      "\"text\"", "[]",         "[{}]",
                                          "nonsense", "{",     "{\"a\"", "{\"a\":}", "{\"a\":1,}", "{a:1}",
                                          "{} {}",  "{\"a\":01}", "{\"a\":1e}", "{\"a\":\"\\x\"}", "{\"a\":\"\\u12\"}",
                                          "{\"a\":nul}", "{\"a\":\"\n\"}", "{\"a\":\"b}", "{\"a\":[1}", "'{}'"};
  for (size_t i = 0; i < sizeof no_object / sizeof *no_object; i++) wrong_text(no_object[i], no_object[i]);
  static const char *const no_utf8[] = {"{\"a\":\"\xff\"}", "{\"a\":\"\xc3\"}", "{\"a\":\"\xc0\x80\"}",
                                        "{\"a\":\"\xed\xa0\x80\"}", "{\"a\":\"\xf5\x80\x80\x80\"}", "{\"\x80\":1}"};
  for (size_t i = 0; i < sizeof no_utf8 / sizeof *no_utf8; i++) wrong_text(no_utf8[i], "invalid UTF-8");

  char *big[] = {huge("{\"", 'a', "\":1"), huge("", '[', ""), huge("{\"a\":", '{', "}"), huge("", ' ', "")};
  for (size_t i = 0; i < sizeof big / sizeof *big; i++) {
    wrong_text(big[i], "10 MB");
    free(big[i]);
  }
  char *name = huge("{\"", 'a', "\":1}"), *value = huge("{\"nonsense\":\"", 'a', "\"}");
  unknown_field(name, NULL);
  unknown_field(value, "/nonsense");
  free(name);
  free(value);
  unknown_field("{\"nonsense\":1}", "/nonsense");
  unknown_field("{\"a~b/c\":1}", "/a~0b~1c");
  still_works("wrong JSON");
}

static void plain_texts(void) {
  char *out = NULL, *big = huge("", 'a', ""), *sigil = huge("!", 'a', ":example.test");
  mrtc_session opened = 7;
  const char *rooms[] = {NULL, "", "room", "#alias:example.test", "!\xff:example.test", big, sigil};
  for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++) {
    EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/room_id", mrtc_session_open(client, rooms[i], NULL, &opened, &out));
    CHECK(opened == 0, "a failure leaves no handle");
  }
  const char *names[] = {"", "\xff", big};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/event", mrtc_add_listener(client, names[i], a_listener, NULL, 0, NULL, &out));
    EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/event", mrtc_emit(client, names[i], NULL, NULL, &out));
  }
  EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/event", mrtc_emit(client, NULL, NULL, NULL, &out));
  EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/intent", mrtc_session_update_intent(session, big, &out));
  EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/intent", mrtc_session_update_intent(session, "\xff", &out));
  EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/user_id", mrtc_session_participant_keys(session, NULL, "D", &out));
  EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/user_id", mrtc_session_participant_keys(session, "\xff", "D", &out));
  EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/device_id", mrtc_session_participant_keys(session, "@a:b", NULL, &out));
  EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/event", mrtc_session_on_call_encryption(session, NULL, &out));
  const char *events[] = {"", "nonsense", "[]", "{}", "{\"type\":1}", "\xff", "{\"type\":\"io.element.call.encryption_keys\"}", big};
  for (size_t i = 0; i < sizeof events / sizeof *events; i++)
    OK(mrtc_session_on_call_encryption(session, events[i], &out));
  free(big);
  free(sigil);

  EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/callback", mrtc_add_listener(client, NULL, NULL, NULL, 0, NULL, &out));
  EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/flags", mrtc_add_listener(client, NULL, a_listener, NULL, 4, NULL, &out));
  EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/count", mrtc_listener_count(client, NULL, NULL, &out));
  EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/client", mrtc_client_new("{}", NULL, &out));
  EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/fd", mrtc_client_event_fd(client, NULL, &out));
  EXPECT(MRTC_ERR_INVALID_ARGUMENT, "/session", mrtc_session_open(client, ROOM, NULL, NULL, &out));
  still_works("wrong text");
}

/* ---- fields: the error points at the one that is wrong ---- */

#define MANAGED "\"homeserver_url\":\"http://127.0.0.1:1\""
#define HOST "\"mode\":\"host_driven\",\"user_id\":\"@a:b\",\"device_id\":\"D\""

static const struct {
  any_function *call;
  enum kind kind;
  const char *json, *path;
} wrong_fields[] = {
    {do_mrtc_client_new, NO_HANDLE, "{}", "/homeserver_url"},
    {do_mrtc_client_new, NO_HANDLE, "{\"homeserver_url\":1}", "/homeserver_url"},
    {do_mrtc_client_new, NO_HANDLE, "{\"homeserver_url\":\"nonsense\"}", "/homeserver_url"},
    {do_mrtc_client_new, NO_HANDLE, "{\"homeserver_url\":\"ftp://a\"}", "/homeserver_url"},
    {do_mrtc_client_new, NO_HANDLE, "{" MANAGED "}", "/access_token"},
    {do_mrtc_client_new, NO_HANDLE, "{" MANAGED ",\"password\":\"p\"}", "/user_id"},
    {do_mrtc_client_new, NO_HANDLE, "{" MANAGED ",\"password\":[],\"user_id\":\"@a:b\"}", "/password"},
    {do_mrtc_client_new, NO_HANDLE, "{" MANAGED ",\"access_token\":\"t\",\"user_id\":\"a\"}", "/user_id"},
    {do_mrtc_client_new, NO_HANDLE, "{" MANAGED ",\"access_token\":\"t\",\"proxy_url\":\"p\"}", "/proxy_url"},
    {do_mrtc_client_new, NO_HANDLE, "{" HOST ",\"max_membership_expiry_ms\":0}", "/max_membership_expiry_ms"},
    {do_mrtc_client_new, NO_HANDLE, "{" MANAGED ",\"access_token\":\"t\",\"ca_file\":\"/none\"}", "/ca_file"},
    {do_mrtc_client_new, NO_HANDLE, "{" MANAGED ",\"access_token\":\"t\",\"clock\":\"real\"}", "/clock"},
    {do_mrtc_client_new, NO_HANDLE, "{\"mode\":\"other\"}", "/mode"},
    {do_mrtc_client_new, NO_HANDLE, "{\"mode\":null}", "/mode"},
    {do_mrtc_client_new, NO_HANDLE, "{\"mode\":\"host_driven\"}", "/user_id"},
    {do_mrtc_client_new, NO_HANDLE, "{\"mode\":\"host_driven\",\"user_id\":\"@a:b\"}", "/device_id"},
    {do_mrtc_client_new, NO_HANDLE, "{" HOST ",\"clock\":\"sun\"}", "/clock"},
    {do_mrtc_client_new, NO_HANDLE, "{" HOST ",\"access_token\":\"t\"}", "/mode"},
    {do_mrtc_client_new, NO_HANDLE, "{" HOST ",\"mode\":\"host_driven\"}", "/mode"},
    {do_mrtc_client_set_access_token, CLIENT, "{}", "/access_token"},
    {do_mrtc_client_set_access_token, CLIENT, "{\"access_token\":1}", "/access_token"},
    {do_mrtc_client_set_access_token, CLIENT, "{\"access_token\":\"t\",\"refresh_token\":null}", "/refresh_token"},
    {do_mrtc_client_feed, CLIENT, "{}", NULL},
    {do_mrtc_client_feed, CLIENT, "{\"sync\":{},\"state\":{}}", NULL},
    {do_mrtc_client_feed, CLIENT, "{\"sync\":1}", "/sync"},
    {do_mrtc_client_feed, CLIENT, "{\"sync\":null}", "/sync"},
    {do_mrtc_client_feed, CLIENT, "{\"sync\":[]}", "/sync"},
    {do_mrtc_client_feed, CLIENT, "{\"state\":1}", "/state"},
    {do_mrtc_client_feed, CLIENT, "{\"state\":{\"room_id\":\"" ROOM "\"}}", "/state/events"},
    {do_mrtc_client_feed, CLIENT, "{\"state\":{\"room_id\":1,\"events\":[]}}", "/state/room_id"},
    {do_mrtc_client_feed, CLIENT, "{\"state\":{\"room_id\":\"r\",\"events\":[]}}", "/state/room_id"},
    {do_mrtc_client_feed, CLIENT, "{\"state\":{\"events\":[],\"complete\":true}}", "/state/room_id"},
    {do_mrtc_client_feed, CLIENT, "{\"state\":{\"room_id\":\"" ROOM "\",\"events\":[],\"complete\":1}}", "/state/complete"},
    {do_mrtc_client_feed, CLIENT, "{\"state\":{\"nonsense\":1}}", "/state/nonsense"},
    {do_mrtc_client_feed, CLIENT, "{\"to_device\":{}}", "/to_device"},
    {do_mrtc_client_feed, CLIENT, "{\"to_device\":[1]}", "/to_device/0"},
    {do_mrtc_client_feed, CLIENT, "{\"to_device\":[{}]}", "/to_device/0"},
    {do_mrtc_client_feed, CLIENT, "{\"to_device\":[{\"encrypted\":1}]}", "/to_device/0/encrypted"},
    {do_mrtc_client_feed, CLIENT, "{\"timeline\":{\"room_id\":\"" ROOM "\",\"events\":{}}}", "/timeline/events"},
    {do_mrtc_client_respond, CLIENT, "{}", "/status"},
    {do_mrtc_client_respond, CLIENT, "{\"id\":\"1\",\"status\":200}", "/id"},
    {do_mrtc_client_respond, CLIENT, "{\"id\":-1,\"status\":200}", "/id"},
    {do_mrtc_client_respond, CLIENT, "{\"id\":1.5,\"status\":200}", "/id"},
    {do_mrtc_client_respond, CLIENT, "{\"id\":1,\"status\":\"200\"}", "/status"},
    {do_mrtc_client_respond, CLIENT, "{\"id\":1,\"status\":200,\"network_error\":\"e\"}", "/status"},
    {do_mrtc_client_respond, CLIENT, "{\"id\":1,\"status\":200,\"headers\":{\"date\":1}}", "/headers/date"},
    {do_mrtc_client_respond, CLIENT, "{\"id\":1,\"deliveries\":[{\"user_id\":1}]}", "/deliveries/0/user_id"},
    {do_mrtc_client_advance, CLIENT, "{\"boot_ms\":\"1\"}", "/boot_ms"},
    {do_mrtc_client_advance, CLIENT, "{\"boot_ms\":-1}", "/boot_ms"},
    {do_mrtc_client_advance, CLIENT, "{\"boot_ms\":9007199254740992}", "/boot_ms"},
    {do_mrtc_client_advance, CLIENT, "{\"boot_ms\":1e3}", "/boot_ms"},
    {do_mrtc_client_advance, CLIENT, "{\"wall_ts\":-1}", "/wall_ts"},
    {do_mrtc_client_advance, CLIENT, "{\"wall_ts\":true}", "/wall_ts"},
    {do_mrtc_client_advance, CLIENT, "{\"wall_ts\":1,\"wall_ts\":2}", "/wall_ts"},
    {do_mrtc_session_open, CLIENT, "{\"application\":1}", "/application"},
    {do_mrtc_session_open, CLIENT, "{\"application\":\"a#b\"}", "/application"},
    {do_mrtc_session_open, CLIENT, "{\"call_id\":null}", "/call_id"},
    {do_mrtc_session_join, SESSION, "{\"foci_preferred\":1}", "/foci_preferred"},
    {do_mrtc_session_join, SESSION, "{\"foci_preferred\":[1]}", "/foci_preferred/0"},
    {do_mrtc_session_join, SESSION, "{\"foci_preferred\":[],\"dialect\":\"other\"}", "/dialect"},
    {do_mrtc_session_join, SESSION, "{\"foci_preferred\":[],\"foci_active\":1}", "/foci_active"},
    {do_mrtc_session_join, SESSION, "{\"foci_preferred\":[],\"call_intent\":1}", "/call_intent"},
    {do_mrtc_session_join, SESSION, "{\"foci_preferred\":[],\"delayed_leave_delay_ms\":-1}", "/delayed_leave_delay_ms"},
    {do_mrtc_session_join, SESSION, "{\"foci_preferred\":[],\"max_network_retries\":\"\"}", "/max_network_retries"},
    {do_mrtc_session_join, SESSION, "{\"foci_preferred\":[],\"manage_media_keys\":1}", "/manage_media_keys"},
    {do_mrtc_session_join, SESSION, "{\"foci_preferred\":[],\"key_transport\":\"pigeon\"}", "/key_transport"},
    {do_mrtc_session_join, SESSION, "{\"foci_preferred\":[],\"application_data\":[]}", "/application_data"},
    {do_mrtc_session_join, SESSION, "{\"foci_preferred\":[],\"application_data\":{\"expires\":1}}", "/application_data/expires"},
    {do_mrtc_session_sfu_token, SESSION, "{\"service_url\":1}", "/service_url"},
    {do_mrtc_session_sfu_token_wait, SESSION, "{\"service_url\":null}", "/service_url"},
    {do_mrtc_session_sfu_connected, SESSION, "{}", "/connected"},
    {do_mrtc_session_sfu_connected, SESSION, "{\"connected\":1}", "/connected"},
    {do_mrtc_session_sfu_connected, SESSION, "{\"connected\":true,\"http_status\":\"200\"}", "/http_status"},
    {do_mrtc_emit, EITHER, "{\"seq\":1}", "/seq"},
    {do_mrtc_emit, EITHER, "{\"a\":1,\"client\":1}", "/client"},
    {do_mrtc_emit, EITHER, "{\"a\":1,\"a\":1}", "/a"},
};

static void fields(void) {
  for (size_t i = 0; i < sizeof wrong_fields / sizeof *wrong_fields; i++) {
    char *out = NULL;
    mrtc_status status = wrong_fields[i].call(handle_for(wrong_fields[i].kind), wrong_fields[i].json, &out);
    expect_at(__LINE__, wrong_fields[i].json, status, MRTC_ERR_INVALID_ARGUMENT, &out, wrong_fields[i].path);
  }
  still_works("wrong fields");
}

/* ---- events of strangers: what has not the form of an event is passed over ---- */

static void strange_events(void) {
  static const char *const syncs[] = {
      "{}", "{\"rooms\":1}", "{\"rooms\":{\"join\":[]}}", "{\"rooms\":{\"join\":{\"x\":1,\"" ROOM "\":null}}}",
      "{\"rooms\":{\"join\":{\"" ROOM "\":{\"timeline\":{\"events\":{}}}}}}",
      "{\"rooms\":{\"join\":{\"" ROOM "\":{\"timeline\":{\"events\":[1,null,[],\"x\",{}]}}}}}",
      "{\"rooms\":{\"join\":{\"" ROOM "\":{\"state\":{\"events\":[{\"type\":\"org.matrix.msc3401.call.member\",\"state_key\":1,"
      "\"sender\":{},\"content\":[]}]}}}}}",
      "{\"rooms\":{\"leave\":[],\"ban\":3}}", "{\"rooms\":{},\"rooms\":{}}", "{\"to_device\":{\"events\":[{\"type\":[]}]}}"};
  for (size_t i = 0; i < sizeof syncs / sizeof *syncs; i++) {
    char *out = NULL, text[1024];
    snprintf(text, sizeof text, "{\"sync\":%s}", syncs[i]);
    OK(mrtc_client_feed(client, text, &out));
  }
  char *out = NULL;
  char *big = huge("{\"sync\":{\"rooms\":{\"join\":{\"" ROOM "\":{\"state\":{\"events\":[{\"type\":\"m.room.member\",\"state_key\":\"",
                   'a', "\",\"sender\":\"@a:b\",\"event_id\":\"$e\",\"content\":{\"membership\":\"join\"}}]}}}}}}");
  OK(mrtc_client_feed(client, big, &out));
  free(big);
  OK(feed_member(client, 1, &out));
  CHECK(mrtc_session_info(session, &out) == MRTC_OK && has(out, "\"member_count\":1"), "a member comes: %s", out);
  mrtc_free(out);
  still_works("strange events");
}

static void names(void) {
  CHECK(!strcmp(mrtc_status_name(MRTC_OK), "MRTC_OK"), "the name of success");
  CHECK(!strcmp(mrtc_status_name(MRTC_ERR_NOT_FOUND), "MRTC_ERR_NOT_FOUND"), "the name of an error");
  CHECK(!strcmp(mrtc_status_name(12345), "MRTC_ERR_UNKNOWN"), "the name of what is no status");
  CHECK(mrtc_abi_version() == MRTC_ABI_VERSION, "header and library fit");
  CHECK(strchr(mrtc_version(), '.') != NULL, "the version");
  mrtc_free(NULL);
}

int main(void) {
  char *out = NULL;
  names();
  client = new_client("manual");
  OK(mrtc_client_feed(client, "{\"state\":{\"room_id\":\"" ROOM "\",\"events\":[],\"complete\":true}}", &out));
  OK(mrtc_client_advance(client, "{\"boot_ms\":10000,\"wall_ts\":10000}", &out));
  session = open_session(client);
  OK(mrtc_add_listener(client, "never", a_listener, NULL, 0, &listener, &out));
  handles();
  texts();
  plain_texts();
  fields();
  strange_events();
  OK(mrtc_client_free(client, &out));
  return summary();
}
