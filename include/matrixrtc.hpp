// matrixrtc.hpp: libmatrixrtc for C++17, header-only, over the C interface of matrixrtc.h.
//
// What belongs to the library is freed by destructors, what fails throws matrixrtc::Error, JSON is
// std::string (bring your own parser). Objects move and do not copy. Nothing but the standard
// library is needed. Session::join is mrtc_session_join, and so on: what goes in, what comes out and
// which errors there are stands in matrixrtc.h.
//
//   matrixrtc::Client client(R"({"homeserver_url": "...", "access_token": "..."})");
//   client.start();
//   auto session = client.open("!room:example.org");
//   auto listener = session.on("memberships_changed", [](const matrixrtc::Event &e) { ... });
//   session.join(R"({"foci_preferred": [...]})");
//
// LISTENERS are called on the library's thread, never two at once. A Listener is the registration:
// once it is gone, its function is not running and will not run again (destroyed inside the
// function itself: it does not run again). An exception that leaves a listener ends the process,
// as one that leaves a thread does.
//
// THREADS. Any member function may be called from any thread, several at once; moving and
// destroying an object is for one thread, as with every C++ object.
#ifndef MATRIXRTC_HPP
#define MATRIXRTC_HPP

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include <matrixrtc.h>

namespace matrixrtc {

using Milliseconds = std::chrono::milliseconds;

// Waits for as long as it takes.
inline constexpr Milliseconds forever{-1};

// What the library refused. what() is its error object, JSON with "message" and, where they apply,
// "path", "errcode", "http_status" and "retry_after_ms".
class Error : public std::runtime_error {
public:
  Error(mrtc_status status, const std::string &json) : std::runtime_error(json), status_(status) {}

  mrtc_status status() const noexcept { return status_; }
  const char *name() const noexcept { return mrtc_status_name(status_); }

private:
  mrtc_status status_;
};

// One event as a listener gets it; the views are valid during the call.
struct Event {
  uint64_t handle; // of the client or session that the listener was added to
  std::string_view name;
  std::string_view json;
};

namespace detail {

// Receives the trailing `out` of a C function.
class Out {
public:
  Out() = default;
  Out(const Out &) = delete;
  Out &operator=(const Out &) = delete;
  ~Out() { mrtc_free(text_); }

  char **address() noexcept { return &text_; }
  std::string text() const { return text_ ? text_ : ""; }

private:
  char *text_ = nullptr;
};

// A C string ends at a NUL: what stands behind one would be lost silently.
inline const char *c_string(const std::string &s) {
  if (s.find('\0') != std::string::npos)
    throw Error(MRTC_ERR_INVALID_ARGUMENT,
                R"({"status":"MRTC_ERR_INVALID_ARGUMENT","message":"expected a string without NUL characters"})");
  return s.c_str();
}

struct Result {
  mrtc_status status; // MRTC_OK or MRTC_TIMEOUT
  std::string json;
};

// Calls a C function that takes `out` last, and throws its error.
template <typename... Parameters, typename... Arguments>
Result call(mrtc_status (*function)(Parameters...), Arguments... arguments) {
  Out out;
  const mrtc_status status = function(arguments..., out.address());
  if (status < 0)
    throw Error(status, out.text());
  return {status, out.text()};
}

inline std::optional<std::string> if_in_time(Result result) {
  if (result.status == MRTC_TIMEOUT)
    return std::nullopt;
  return std::move(result.json);
}

} // namespace detail

// The version of the library, as "1.2.3".
inline std::string version() { return mrtc_version(); }

// A function that is called for events, until this object is gone.
class Listener {
public:
  using Function = std::function<void(const Event &)>;

  Listener() = default;
  Listener(Listener &&other) noexcept
      : id_(std::exchange(other.id_, 0)), key_(std::exchange(other.key_, 0)), entry_(std::move(other.entry_)) {}
  Listener &operator=(Listener &&other) noexcept {
    if (this != &other) {
      remove();
      id_ = std::exchange(other.id_, 0);
      key_ = std::exchange(other.key_, 0);
      entry_ = std::move(other.entry_);
    }
    return *this;
  }
  Listener(const Listener &) = delete;
  Listener &operator=(const Listener &) = delete;
  ~Listener() { remove(); }

  // After this the function is not running and will not run again.
  void remove() noexcept {
    if (!entry_)
      return;
    mrtc_remove_listener(id_, nullptr); // gone already where its client is, or after ONCE
    Registry::get().forget(key_);
    const auto entry = std::move(entry_);
    const std::lock_guard<std::recursive_mutex> not_running(entry->mutex);
    entry->removed = true;
  }

private:
  friend class Emitter;

  struct Entry {
    explicit Entry(Function f) : function(std::move(f)) {}

    std::recursive_mutex mutex; // held while the function runs, which may remove itself
    Function function;
    bool removed = false;
  };

  // The library holds keys, not pointers: an event that is on its way when its listener goes
  // (ONCE, or a client freed meanwhile by another thread) finds nothing.
  class Registry {
  public:
    static Registry &get() {
      static Registry *const registry = new Registry; // events may come until the process ends
      return *registry;
    }

    std::uintptr_t add(std::shared_ptr<Entry> entry) {
      const std::lock_guard<std::mutex> lock(mutex_);
      entries_.emplace(++last_, std::move(entry));
      return last_;
    }

    void forget(std::uintptr_t key) noexcept {
      const std::lock_guard<std::mutex> lock(mutex_);
      entries_.erase(key);
    }

    std::shared_ptr<Entry> find(std::uintptr_t key) {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = entries_.find(key);
      return found == entries_.end() ? nullptr : found->second;
    }

  private:
    std::mutex mutex_;
    std::unordered_map<std::uintptr_t, std::shared_ptr<Entry>> entries_;
    std::uintptr_t last_ = 0;
  };

  Listener(uint64_t handle, const char *event, Function function, uint32_t flags)
      : entry_(std::make_shared<Entry>(std::move(function))) {
    key_ = Registry::get().add(entry_);
    try {
      detail::call(mrtc_add_listener, handle, event, &Listener::trampoline, reinterpret_cast<void *>(key_), flags,
                   &id_);
    } catch (...) {
      Registry::get().forget(key_);
      throw;
    }
  }

  static void trampoline(uint64_t handle, const char *event, const char *json, size_t len, void *user_data) noexcept {
    const auto entry = Registry::get().find(reinterpret_cast<std::uintptr_t>(user_data));
    if (!entry)
      return;
    const std::lock_guard<std::recursive_mutex> running(entry->mutex);
    if (!entry->removed)
      entry->function(Event{handle, event, std::string_view(json, len)});
  }

  mrtc_listener id_ = 0;
  std::uintptr_t key_ = 0;
  std::shared_ptr<Entry> entry_;
};

// What clients and sessions have in common.
class Emitter {
public:
  Emitter(const Emitter &) = delete;
  Emitter &operator=(const Emitter &) = delete;

  // For the functions of matrixrtc.h, and valid for as long as this object is; 0 where it was closed
  // or moved from.
  uint64_t handle() const noexcept { return handle_; }

  // Calls function for each event of this name, for as long as the answer is kept. flags are
  // MRTC_ONCE and MRTC_PREPEND.
  [[nodiscard]] Listener on(const std::string &event, Listener::Function function, uint32_t flags = 0) {
    return Listener(handle_, detail::c_string(event), std::move(function), flags);
  }

  // Calls function for every event.
  [[nodiscard]] Listener on_any(Listener::Function function, uint32_t flags = 0) {
    return Listener(handle_, nullptr, std::move(function), flags);
  }

  // Removes the functions of all events, or of one, before their Listener objects go.
  void remove_all_listeners() {
    detail::call(mrtc_remove_all_listeners, handle_, static_cast<const char *>(nullptr));
  }
  void remove_all_listeners(const std::string &event) {
    detail::call(mrtc_remove_all_listeners, handle_, detail::c_string(event));
  }

  // How many listeners there are, in all or for one event.
  size_t listener_count() const {
    size_t count = 0;
    detail::call(mrtc_listener_count, handle_, static_cast<const char *>(nullptr), &count);
    return count;
  }

  size_t listener_count(const std::string &event) const {
    size_t count = 0;
    detail::call(mrtc_listener_count, handle_, detail::c_string(event), &count);
    return count;
  }

  // Sends an event of the host's own; whether anybody listened.
  bool emit(const std::string &event, const std::string &json = "{}") {
    int had_listeners = 0;
    detail::call(mrtc_emit, handle_, detail::c_string(event), detail::c_string(json), &had_listeners);
    return had_listeners != 0;
  }

protected:
  Emitter() = default;
  Emitter(Emitter &&other) noexcept : handle_(std::exchange(other.handle_, 0)) {}
  ~Emitter() = default;

  uint64_t handle_ = 0;
};

// One call of one room. Made by Client::open; closed when it is gone.
class Session : public Emitter {
public:
  Session(Session &&) noexcept = default;
  Session &operator=(Session &&other) noexcept {
    if (this != &other) {
      close();
      handle_ = std::exchange(other.handle_, 0);
    }
    return *this;
  }
  ~Session() { close(); }

  // Announces this device and keeps it announced, in the background. Events tell what comes of it.
  void join(const std::string &params) { detail::call(mrtc_session_join, handle_, detail::c_string(params)); }

  // Begins to leave; the event "left" tells the outcome.
  void leave() { detail::call(mrtc_session_leave, handle_); }

  // Leaves and waits: {"sent": whether the leave reached the server in time}.
  std::string leave_wait(Milliseconds timeout = forever) {
    return detail::call(mrtc_session_leave_wait, handle_, static_cast<int64_t>(timeout.count())).json;
  }

  // What is true of the session now.
  std::string info() const { return detail::call(mrtc_session_info, handle_).json; }
  // The members, oldest first: {"memberships": [...]}.
  std::string memberships() const { return detail::call(mrtc_session_memberships, handle_).json; }
  // Media keys, as JSON {"keys": [...]}; of a device of which none is known, "keys" is null.
  std::string encryption_keys() const { return detail::call(mrtc_session_encryption_keys, handle_).json; }
  std::string participant_keys(const std::string &user_id, const std::string &device_id) const {
    return detail::call(mrtc_session_participant_keys, handle_, detail::c_string(user_id), detail::c_string(device_id))
        .json;
  }
  // Tells every key that is held once more, as events "encryption_key_changed".
  void reemit_encryption_keys() { detail::call(mrtc_session_reemit_encryption_keys, handle_); }
  // A room event with keys; one that is malformed is logged and ignored.
  void on_call_encryption(const std::string &event) {
    detail::call(mrtc_session_on_call_encryption, handle_, detail::c_string(event));
  }

  // What a client must connect to.
  std::string sfus() const { return detail::call(mrtc_session_sfus, handle_).json; }
  // The token for an SFU ({"service_url"}, or {} for where we publish), if there is one yet.
  std::optional<std::string> sfu_token(const std::string &json = "{}") const {
    return detail::if_in_time(detail::call(mrtc_session_sfu_token, handle_, detail::c_string(json)));
  }
  // Waits for it.
  std::optional<std::string> sfu_token_wait(const std::string &json = "{}", Milliseconds timeout = forever) const {
    return detail::if_in_time(
        detail::call(mrtc_session_sfu_token_wait, handle_, detail::c_string(json), static_cast<int64_t>(timeout.count())));
  }
  // Tells of the engine's connection to an SFU: {"connected", "service_url"?, "error"?, "http_status"?}.
  void sfu_connected(const std::string &json) {
    detail::call(mrtc_session_sfu_connected, handle_, detail::c_string(json));
  }
  // Has the delayed leave handed over to the authorisation service while we are connected.
  void delegate_leave(bool delegate = true) { detail::call(mrtc_session_delegate_leave, handle_, delegate ? 1 : 0); }
  // Why the session is as it is, for a bug report; without secrets.
  std::string debug_snapshot() const { return detail::call(mrtc_session_debug_snapshot, handle_).json; }

  // Looks at the members again. Not needed where the library syncs.
  void on_membership_update() { detail::call(mrtc_session_on_membership_update, handle_); }
  // "" removes it.
  void update_intent(const std::string &intent) {
    detail::call(mrtc_session_update_intent, handle_, detail::c_string(intent));
  }
  // Replaces the further fields of our membership by those of an object.
  void update_application_data(const std::string &json) {
    detail::call(mrtc_session_update_application_data, handle_, detail::c_string(json));
  }

  // Leaves in the background if joined. Closing twice is nothing.
  void close() noexcept {
    if (handle_ != 0)
      mrtc_session_close(std::exchange(handle_, 0), nullptr);
  }

private:
  friend class Client;
  explicit Session(uint64_t handle) { handle_ = handle; }
};

// One device of one Matrix account; freed when it is gone.
class Client : public Emitter {
public:
  explicit Client(const std::string &config) { detail::call(mrtc_client_new, detail::c_string(config), &handle_); }
  Client(Client &&) noexcept = default;
  Client &operator=(Client &&other) noexcept {
    if (this != &other) {
      free();
      handle_ = std::exchange(other.handle_, 0);
    }
    return *this;
  }
  ~Client() { free(); }

  // Logs in and syncs, in the background; the event "sync_state" tells what comes of it.
  void start() { detail::call(mrtc_client_start, handle_); }
  // Begins to leave what is joined and then to end sync and requests.
  void stop() { detail::call(mrtc_client_stop, handle_); }

  // Leaves the calls that are joined and ends sync; false when that took longer.
  bool stop_wait(Milliseconds timeout = forever) {
    return detail::call(mrtc_client_stop_wait, handle_, static_cast<int64_t>(timeout.count())).status == MRTC_OK;
  }

  // Opens the call of a room.
  Session open(const std::string &room_id, const std::string &options = "{}") {
    mrtc_session session = 0;
    detail::call(mrtc_session_open, handle_, detail::c_string(room_id), detail::c_string(options), &session);
    return Session(session);
  }

  // What is true of the client now.
  std::string info() const { return detail::call(mrtc_client_info, handle_).json; }
  // Where the homeserver offers to have the media of calls: {"transports": [...], "known"}.
  std::string transports() const { return detail::call(mrtc_client_transports, handle_).json; }
  // Every call that is going on in the rooms of the account: {"sessions": [...]}.
  std::string sessions() const { return detail::call(mrtc_client_sessions, handle_).json; }
  // {"access_token", "refresh_token"?}: a new token of the same device.
  void set_access_token(const std::string &json) {
    detail::call(mrtc_client_set_access_token, handle_, detail::c_string(json));
  }

  // The next event of the queue, nothing when none came in time.
  std::optional<std::string> next_event(Milliseconds timeout = forever) {
    return detail::if_in_time(detail::call(mrtc_client_next_event, handle_, static_cast<int64_t>(timeout.count())));
  }

  // Readable while events wait; the caller closes it.
  int event_fd() {
    int fd = -1;
    detail::call(mrtc_client_event_fd, handle_, &fd);
    return fd;
  }

  // Host-driven mode: what the host has received, the answer to an event "request", and the time.
  void feed(const std::string &json) { detail::call(mrtc_client_feed, handle_, detail::c_string(json)); }
  void respond(const std::string &json) { detail::call(mrtc_client_respond, handle_, detail::c_string(json)); }
  std::string advance(const std::string &json) {
    return detail::call(mrtc_client_advance, handle_, detail::c_string(json)).json;
  }

  // Calls that are joined are left to their delayed leave. Freeing twice is nothing.
  void free() noexcept {
    if (handle_ != 0)
      mrtc_client_free(std::exchange(handle_, 0), nullptr);
  }
};

} // namespace matrixrtc

#endif
