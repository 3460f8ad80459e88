// matrixrtc.hpp: libmatrixrtc for C++17, header-only, over the C interface of matrixrtc.h.
//
// What belongs to the library is freed by destructors, what fails throws matrixrtc::Error, JSON is
// std::string (bring your own parser). Objects move and do not copy. Nothing but the standard
// library is needed.
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

  void join(const std::string &params) { detail::call(mrtc_session_join, handle_, detail::c_string(params)); }

  // Begins to leave; the event "left" tells the outcome.
  void leave() { detail::call(mrtc_session_leave, handle_); }

  // Leaves and waits: {"sent": whether the leave reached the server in time}.
  std::string leave_wait(Milliseconds timeout = forever) {
    return detail::call(mrtc_session_leave_wait, handle_, static_cast<int64_t>(timeout.count())).json;
  }

  std::string info() const { return detail::call(mrtc_session_info, handle_).json; }
  std::string memberships() const { return detail::call(mrtc_session_memberships, handle_).json; }
  std::string debug_snapshot() const { return detail::call(mrtc_session_debug_snapshot, handle_).json; }

  void on_membership_update() { detail::call(mrtc_session_on_membership_update, handle_); }
  void update_intent(const std::string &intent) {
    detail::call(mrtc_session_update_intent, handle_, detail::c_string(intent));
  }
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

  void start() { detail::call(mrtc_client_start, handle_); }
  void stop() { detail::call(mrtc_client_stop, handle_); }

  // Leaves the calls that are joined and ends sync; false when that took longer.
  bool stop_wait(Milliseconds timeout = forever) {
    return detail::call(mrtc_client_stop_wait, handle_, static_cast<int64_t>(timeout.count())).status == MRTC_OK;
  }

  Session open(const std::string &room_id, const std::string &options = "{}") {
    mrtc_session session = 0;
    detail::call(mrtc_session_open, handle_, detail::c_string(room_id), detail::c_string(options), &session);
    return Session(session);
  }

  std::string info() const { return detail::call(mrtc_client_info, handle_).json; }
  std::string sessions() const { return detail::call(mrtc_client_sessions, handle_).json; }
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

  // Host-driven mode.
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
