// matrixrtc.hpp without a homeserver: ownership, moves, errors, the life of listeners.

#include <atomic>
#include <cstdio>
#include <future>
#include <matrixrtc.hpp>
#include <thread>
#include <type_traits>
#include <vector>

using namespace matrixrtc;
using namespace std::chrono_literals;

static int passed, failed;

static void check(bool ok, const char *what) {
  ++(ok ? passed : failed);
  if (!ok)
    std::printf("FAILED: %s\n", what);
}

template <typename F> static void refused(mrtc_status status, const std::string &part, const char *what, F f) {
  try {
    f();
    check(false, what);
  } catch (const Error &e) {
    const bool named = std::string(e.what()).find(part) != std::string::npos && e.name() != nullptr;
    if (e.status() != status || !named)
      std::printf("%s: %s\n", e.name(), e.what());
    check(e.status() == status && named, what);
  }
}

static Client host_driven() { return Client(R"({"mode": "host_driven", "user_id": "@us:x", "device_id": "D"})"); }

static const char *const room = R"({"state": {"room_id": "!r:x", "complete": true, "events": [
  {"type": "m.room.create", "state_key": "", "sender": "@us:x", "content": {"room_version": "10"}, "event_id": "$1",
   "origin_server_ts": 1},
  {"type": "m.room.member", "state_key": "@us:x", "sender": "@us:x", "content": {"membership": "join"},
   "event_id": "$2", "origin_server_ts": 1}]}})";

static_assert(!std::is_copy_constructible_v<Client> && std::is_nothrow_move_constructible_v<Client>);
static_assert(!std::is_copy_assignable_v<Session> && std::is_nothrow_move_assignable_v<Session>);
static_assert(!std::is_copy_constructible_v<Listener> && std::is_nothrow_move_assignable_v<Listener>);

static void ownership() {
  uint64_t freed = 0;
  {
    Client a = host_driven();
    freed = a.handle();
    Client b = std::move(a);
    check(b.handle() == freed && a.handle() == 0, "a moved client leaves nothing behind");
    check(b.info().find("host_driven") != std::string::npos, "the moved client lives");
    refused(MRTC_ERR_INVALID_HANDLE, "no such", "a client that was moved from answers an error", [&] { a.info(); });
    b = host_driven();
    check(b.handle() != freed, "an assigned client is another");
    check(mrtc_client_info(freed, nullptr) == MRTC_ERR_INVALID_HANDLE, "what it was before is freed");
    freed = b.handle();
  }
  check(mrtc_client_info(freed, nullptr) == MRTC_ERR_INVALID_HANDLE, "its end frees a client");

  Client client = host_driven();
  uint64_t closed = 0;
  {
    Session session = client.open("!r:x");
    closed = session.handle();
    refused(MRTC_ERR_INVALID_STATE, "open", "one room, one call, one session", [&] { client.open("!r:x"); });
  }
  check(mrtc_session_info(closed, nullptr) == MRTC_ERR_INVALID_HANDLE, "its end closes a session");
  Session later = client.open("!r:x");
  client.free();
  client.free();
  refused(MRTC_ERR_INVALID_HANDLE, "no such", "a session without its client answers an error", [&] { later.info(); });
}

static void errors() {
  refused(MRTC_ERR_INVALID_ARGUMENT, "/homserver_url", "unknown fields are named",
          [] { Client(R"({"homserver_url": "http://x"})"); });
  refused(MRTC_ERR_INVALID_ARGUMENT, "message", "no JSON", [] { Client(""); });
  refused(MRTC_ERR_INVALID_ARGUMENT, "NUL", "a NUL in a string", [] { Client(std::string("{}\0{}", 5)); });
  Client client = host_driven();
  refused(MRTC_ERR_INVALID_ARGUMENT, "room", "no room id", [&] { client.open("room"); });
  Session session = client.open("!r:x");
  refused(MRTC_ERR_INVALID_ARGUMENT, "/foci_prefered", "join names unknown fields",
          [&] { session.join(R"({"foci_prefered": []})"); });
  refused(MRTC_ERR_INVALID_STATE, "message", "leave without join", [&] { session.leave(); });
  refused(MRTC_ERR_WOULD_DEADLOCK, "host", "host-driven clients cannot wait", [&] { session.leave_wait(1ms); });
}

// Waits until the library's thread has delivered everything that was emitted before.
static void drain(Client &client) {
  std::promise<void> reached;
  Listener last = client.on("drain", [&](const Event &) { reached.set_value(); });
  client.emit("drain");
  check(reached.get_future().wait_for(60s) == std::future_status::ready, "events arrive");
}

static void listeners() {
  Client client = host_driven();
  std::string calls;
  {
    Listener b = client.on("e", [&](const Event &e) { calls += std::string("b") + std::string(e.name); });
    Listener a = client.on("e", [&](const Event &) { calls += 'a'; }, MRTC_PREPEND);
    Listener once = client.on("e", [&](const Event &) { calls += '1'; }, MRTC_ONCE);
    Listener all = client.on_any([&](const Event &e) { calls += e.name == "e" ? "*" : ""; });
    check(client.listener_count("e") == 3 && client.listener_count() == 4, "they are counted");
    check(client.emit("e", R"({"n": 1})"), "somebody listened");
    client.emit("e");
    drain(client);
    check(calls == "abe1*abe*", calls.c_str());
    Listener moved = std::move(a);
    b = Listener();
    client.emit("e");
    drain(client);
    check(calls == "abe1*abe*a*", calls.c_str());
  }
  check(!client.emit("e"), "nobody listens any more");
  drain(client);
  check(calls == "abe1*abe*a*", "a listener ends with its object");

  {
    Listener a = client.on("e", [&](const Event &) { calls += '!'; });
    Listener b = client.on("other", [&](const Event &) { calls += '?'; });
    client.remove_all_listeners("e");
    check(client.listener_count("e") == 0 && client.listener_count() == 1, "those of one event are removed");
    client.remove_all_listeners();
    check(!client.emit("e") && !client.emit("other"), "all are removed");
    drain(client);
    check(calls == "abe1*abe*a*", "and not called");
  }

  // A listener that removes itself from inside; what it captured lives until it has returned.
  auto self = std::make_unique<Listener>();
  auto guard = std::make_shared<std::string>("captured");
  std::string seen;
  *self = client.on("e", [&seen, &self, guard](const Event &) {
    self.reset();
    seen += *guard;
  });
  client.emit("e");
  client.emit("e");
  drain(client);
  check(seen == "captured" && guard.use_count() == 1, "a listener may remove itself");

  // Destroying waits for the function that is running.
  std::promise<void> entered, released;
  std::atomic<bool> returned{false};
  for (const uint32_t flags : {0u, uint32_t(MRTC_ONCE)}) {
    entered = {}, released = {}, returned = false;
    auto slow = std::make_unique<Listener>(client.on(
        "e",
        [&](const Event &) {
          entered.set_value();
          released.get_future().wait();
          returned = true;
        },
        flags));
    client.emit("e");
    entered.get_future().wait();
    std::thread release([&] { released.set_value(); });
    slow.reset();
    check(returned, "destroying a listener waits for its function");
    release.join();
  }

  // A listener outlives its client.
  Listener orphan = client.on("e", [](const Event &) {});
  client.free();
  orphan.remove();
  refused(MRTC_ERR_INVALID_HANDLE, "no such", "no listener for a client that is gone",
          [&] { orphan = client.on("e", [](const Event &) {}); });
}

static void races() {
  for (int i = 0; i < 50; i++) {
    auto client = std::make_unique<Client>(host_driven());
    std::atomic<int> n{0};
    std::vector<Listener> kept;
    for (int k = 0; k < 4; k++)
      kept.push_back(client->on("e", [&n](const Event &) { ++n; }, k % 2 ? uint32_t(MRTC_ONCE) : 0u));
    for (int k = 0; k < 20; k++)
      client->emit("e");
    std::thread remover([&] { kept.clear(); });
    client.reset();
    remover.join();
    const int after = n;
    check(after <= 42, "no more calls than events");
  }
}

static void queue_and_host() {
  Client client = host_driven();
  check(!client.next_event(0ms), "nothing yet");
  Session session = client.open("!r:x");
  client.feed(room);
  session.join(R"({"foci_preferred": [{"type": "livekit", "livekit_service_url": "https://sfu.x"}]})");
  bool asked = false;
  while (auto event = client.next_event(60s)) {
    asked = event->find(R"("event":"request")") != std::string::npos;
    if (asked)
      break;
  }
  check(asked, "the host is asked to make requests");
  check(session.info().find(R"("joined":true)") != std::string::npos, "joined");
  check(session.memberships().find("memberships") != std::string::npos, "memberships");
  check(session.debug_snapshot().find("phase") != std::string::npos, "a snapshot");
}

static bool has(const std::string &text, const std::string &part) { return text.find(part) != std::string::npos; }

// A host-driven call in which this program is the homeserver, the host's Olm and the other member.
static void media_keys() {
  Client client(R"({"mode": "host_driven", "user_id": "@us:x", "device_id": "D", "clock": "manual"})");
  const auto at = [&client](int64_t ms) {
    client.advance(R"({"boot_ms": )" + std::to_string(ms) + R"(, "wall_ts": )" + std::to_string(1700000000000 + ms) + "}");
  };
  at(0);
  check(!client.next_event(0ms), "from here on events are kept for us");
  Session session = client.open("!r:x");
  client.feed(room);
  session.join(R"({"foci_preferred": [], "manage_media_keys": true, "key_transport": "to_device"})");
  client.feed(R"({"state": {"room_id": "!r:x", "events": [
    {"type": "m.room.member", "state_key": "@them:x", "sender": "@them:x", "content": {"membership": "join"},
     "event_id": "$3", "origin_server_ts": 1700000000000},
    {"type": "org.matrix.msc3401.call.member", "state_key": "_@them:x_T_m.call", "sender": "@them:x",
     "content": {"application": "m.call", "call_id": "", "device_id": "T", "foci_preferred": [],
                 "focus_active": {"type": "livekit", "focus_selection": "multi_sfu"}},
     "event_id": "$4", "origin_server_ts": 1700000000000}]}})");

  bool sent = false, undelivered = false;
  while (auto event = client.next_event(0ms)) {
    undelivered |= has(*event, "encryption_key_undelivered") && has(*event, R"("reason":"no_session")");
    if (!has(*event, R"("event":"request")"))
      continue;
    const auto from = event->find(R"("id":)") + 5;
    const std::string answer = R"({"id": )" + event->substr(from, event->find(',', from) - from) + ", ";
    if (has(*event, "encrypt_and_send_to_device")) {
      sent = has(*event, R"("recipients":[{"user_id":"@them:x","device_id":"T"}])") && has(*event, R"("index":0)");
      client.respond(answer + R"("deliveries": [{"user_id": "@them:x", "device_id": "T", "reason": "no_session"}]})");
    } else
      client.respond(
          answer +
          R"("status": 200, "body": {"capabilities": {}, "delayed_events": [], "delay_id": "d", "event_id": "$5"}})");
  }
  check(sent, "our key is sent to the member's device");
  check(undelivered, "a device that was not reached is told");

  check(has(session.participant_keys("@them:x", "T"), R"("keys":null)"), "none of theirs is known");
  client.feed(R"({"to_device": [{"type": "io.element.call.encryption_keys", "sender": "@them:x", "sender_device": "T",
    "encrypted": true, "content": {"keys": {"index": 3, "key": "AAECAwQFBgcICQoLDA0ODw"},
    "member": {"id": "@them:x:T", "claimed_device_id": "T"}, "room_id": "!r:x",
    "session": {"application": "m.call", "call_id": "", "scope": "m.room"}, "sent_ts": 1700000000000}}]})");
  session.on_call_encryption(R"({"type": "io.element.call.encryption_keys", "sender": "@them:x", "event_id": "$k",
    "origin_server_ts": 1700000000000, "content": {"keys": [{"index": 4, "key": "AAECAwQFBgcICQoLDA0ODw"}],
    "device_id": "T", "call_id": "", "sent_ts": 1700000000000}})");
  session.on_call_encryption(R"({"type": "io.element.call.encryption_keys", "content": {"keys": 7}})");
  const std::string theirs = session.participant_keys("@them:x", "T");
  check(has(theirs, R"("index":3)") && has(theirs, R"("index":4)") && !has(theirs, R"("own":true)"), "both transports");
  const std::string all = session.encryption_keys();
  check(has(all, R"("own":true,"in_use":true)") && has(all, R"("key":"AAECAwQFBgcICQoLDA0ODw")"), "all keys");
  check(!has(session.debug_snapshot(), "AAECAwQFBgcICQoLDA0ODw"), "a snapshot shows no key");

  const auto told = [&client] {
    std::string names;
    while (auto event = client.next_event(0ms)) {
      const auto from = event->find(R"("event":")") + 9;
      names += event->substr(from, event->find('"', from) - from) + " ";
    }
    return names;
  };
  const std::string before = told();
  check(before == "encryption_key_changed encryption_key_changed ", before.c_str());
  session.reemit_encryption_keys();
  const std::string again = told();
  check(again == "encryption_key_changed encryption_key_changed encryption_key_changed ", again.c_str());
  at(1000);
  check(has(client.next_event(0ms).value_or(""), "encrypt_and_send_to_device"), "what was undelivered is tried again");
  refused(MRTC_ERR_INVALID_ARGUMENT, "NUL", "a NUL in a user", 
          [&] { session.participant_keys(std::string("@\0", 2), ""); });
}

int main() {
  ownership();
  errors();
  listeners();
  races();
  queue_and_host();
  media_keys();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
