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
    refused(MRTC_ERR_INVALID_HANDLE, "handle", "a client that was moved from answers an error", [&] { a.info(); });
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
  refused(MRTC_ERR_INVALID_HANDLE, "handle", "a session without its client answers an error", [&] { later.info(); });
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
  check(reached.get_future().wait_for(10s) == std::future_status::ready, "events arrive");
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
  refused(MRTC_ERR_INVALID_HANDLE, "handle", "no listener for a client that is gone",
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
  while (auto event = client.next_event(2s)) {
    asked = event->find(R"("event":"request")") != std::string::npos;
    if (asked)
      break;
  }
  check(asked, "the host is asked to make requests");
  check(session.info().find(R"("joined":true)") != std::string::npos, "joined");
  check(session.memberships().find("memberships") != std::string::npos, "memberships");
  check(session.debug_snapshot().find("phase") != std::string::npos, "a snapshot");
}

int main() {
  ownership();
  errors();
  listeners();
  races();
  queue_and_host();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
