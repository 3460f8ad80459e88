// frame_keys.hpp: the media keys of one call where a media engine needs them: by SFU identity and
// index, read on the media threads without a lock. C++17, header-only; it needs no other header.
//
//   matrixrtc::FrameKeys keys;
//   auto listener = session.on_any([&](const matrixrtc::Event &e) { keys.on_event(e.name, e.json); });
//   session.reemit_encryption_keys(); // what came before there was a listener
//
//   auto sender = keys.participant(sfu_identity);               // once for each track that is received
//   if (auto key = sender.key(index)) ...                       // for each frame: to decrypt with
//   if (auto key = keys.encrypting()) ...                       // for each frame: to encrypt with
//
// THREADS. All functions may be called from any thread, several at once. key and encrypting wait for
// nobody, whatever the threads that fill the table do in the meantime; they allocate nothing. The
// others take a mutex.
#ifndef MATRIXRTC_FRAME_KEYS_HPP
#define MATRIXRTC_FRAME_KEYS_HPP

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace matrixrtc {

// The raw material of a media key: what LiveKit derives the key of its cipher from.
struct FrameKey {
  uint8_t index = 0;
  uint8_t size = 0; // in bytes
  std::array<uint8_t, 32> bytes{};

  bool operator==(const FrameKey &other) const noexcept {
    return index == other.index && size == other.size && bytes == other.bytes;
  }
  bool operator!=(const FrameKey &other) const noexcept { return !(*this == other); }
};

namespace detail {

// One key, written by one thread at a time and read by any number. Of two copies the readers have
// the one that was written last, so that only a second writing during a read makes it read again.
// Acquire and release pair on every word: who sees one of a writing sees that it has begun.
class KeySlot {
public:
  std::optional<FrameKey> load() const noexcept {
    FrameKey key;
    for (;;) {
      const uint64_t done = done_.load(std::memory_order_acquire);
      const Words &words = copies_[done % 2];
      const uint64_t head = words[0].load(std::memory_order_acquire);
      key.index = static_cast<uint8_t>(head >> 8);
      key.size = static_cast<uint8_t>(head);
      for (size_t i = 0; i < key.bytes.size(); i += 8) {
        const uint64_t word = words[1 + i / 8].load(std::memory_order_acquire);
        for (size_t j = 0; j < 8; j++)
          key.bytes[i + j] = static_cast<uint8_t>(word >> (8 * j));
      }
      if (begun_.load(std::memory_order_relaxed) > done + 1)
        continue;
      if (key.size == 0)
        return std::nullopt;
      return key;
    }
  }

  void store(const FrameKey &key) noexcept {
    const uint64_t number = done_.load(std::memory_order_relaxed) + 1;
    begun_.store(number, std::memory_order_relaxed);
    Words &words = copies_[number % 2];
    words[0].store(static_cast<uint64_t>(key.index) << 8 | key.size, std::memory_order_release);
    for (size_t i = 0; i < key.bytes.size(); i += 8) {
      uint64_t word = 0;
      for (size_t j = 0; j < 8; j++)
        word |= static_cast<uint64_t>(key.bytes[i + j]) << (8 * j);
      words[1 + i / 8].store(word, std::memory_order_release);
    }
    done_.store(number, std::memory_order_release);
  }

  // Leaves nothing of the key in either copy.
  void wipe() noexcept {
    store(FrameKey{});
    store(FrameKey{});
  }

private:
  static_assert(std::atomic<uint64_t>::is_always_lock_free, "the media threads must not wait");
  using Words = std::array<std::atomic<uint64_t>, 1 + 32 / 8>;

  std::atomic<uint64_t> begun_{0}, done_{0}; // writings
  Words copies_[2]{};
};

// The keys of one participant.
class KeyRing {
public:
  KeyRing() = default;
  KeyRing(const KeyRing &) = delete;
  KeyRing &operator=(const KeyRing &) = delete;
  ~KeyRing() {
    wipe();
    for (auto &slot : slots_)
      delete slot.load(std::memory_order_relaxed);
  }

  std::optional<FrameKey> load(uint8_t index) const noexcept {
    const KeySlot *slot = slots_[index].load(std::memory_order_acquire);
    return slot ? slot->load() : std::nullopt;
  }

  void store(const FrameKey &key) {
    KeySlot *slot = slots_[key.index].load(std::memory_order_relaxed);
    if (slot) {
      slot->store(key);
      return;
    }
    auto made = std::make_unique<KeySlot>();
    made->store(key);
    slots_[key.index].store(made.release(), std::memory_order_release);
  }

  void wipe() noexcept {
    for (auto &slot : slots_)
      if (KeySlot *s = slot.load(std::memory_order_relaxed))
        s->wipe();
  }

private:
  std::array<std::atomic<KeySlot *>, 256> slots_{}; // made when first written, gone with the ring
};

// Reads the JSON of events, front to back. Where it is not what was expected, everything further
// fails.
class EventReader {
public:
  explicit EventReader(std::string_view json) noexcept : at_(json.data()), end_(json.data() + json.size()) {}

  // Calls field(name) with the value next; it must read that, or skip it.
  template <typename F> bool object(F field) {
    return list('{', '}', [&] {
      std::string name;
      return string(name) && next(':') && field(name);
    });
  }

  template <typename F> bool array(F element) { return list('[', ']', element); }

  bool string(std::string &out) {
    out.clear();
    if (!next('"'))
      return false;
    while (at_ != end_) {
      const char c = *at_++;
      if (c == '"')
        return true;
      if (c != '\\') {
        out += c;
      } else if (!escape(out)) {
        return fail();
      }
    }
    return fail();
  }

  bool boolean(bool &out) {
    out = word("true");
    return out || word("false") || fail();
  }

  bool byte(uint8_t &out) {
    space();
    unsigned n = 0;
    const char *first = at_;
    for (; at_ != end_ && *at_ >= '0' && *at_ <= '9' && n <= 255; at_++)
      n = 10 * n + static_cast<unsigned>(*at_ - '0');
    out = static_cast<uint8_t>(n);
    return (at_ != first && n <= 255) || fail();
  }

  // Passes over a value, however deep.
  bool skip() {
    std::string ignored;
    size_t depth = 0;
    do {
      space();
      if (at_ == end_)
        return fail();
      const char c = *at_;
      if (c == '"') {
        if (!string(ignored))
          return false;
      } else if (c == '{' || c == '[') {
        depth++;
        at_++;
      } else if (c == '}' || c == ']') {
        if (depth == 0)
          return fail();
        depth--;
        at_++;
      } else if (depth > 0 && (c == ',' || c == ':')) {
        at_++;
      } else if (!literal()) {
        return fail();
      }
    } while (depth > 0);
    return true;
  }

private:
  template <typename F> bool list(char open, char close, F element) {
    if (!next(open))
      return false;
    if (peek(close))
      return next(close);
    do {
      if (!element())
        return fail();
    } while (peek(',') && next(','));
    return next(close);
  }

  bool fail() noexcept {
    at_ = end_;
    return false;
  }

  void space() noexcept {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r'))
      at_++;
  }

  bool peek(char c) noexcept {
    space();
    return at_ != end_ && *at_ == c;
  }

  bool next(char c) noexcept {
    if (!peek(c))
      return fail();
    at_++;
    return true;
  }

  bool word(std::string_view w) noexcept {
    space();
    if (static_cast<size_t>(end_ - at_) < w.size() || std::string_view(at_, w.size()) != w)
      return false;
    at_ += w.size();
    return true;
  }

  // A number, true, false or null.
  bool literal() noexcept {
    const char *first = at_;
    while (at_ != end_ && ((*at_ >= '0' && *at_ <= '9') || (*at_ >= 'a' && *at_ <= 'z') || *at_ == '-' || *at_ == '+' ||
                           *at_ == '.' || *at_ == 'E'))
      at_++;
    return at_ != first;
  }

  bool escape(std::string &out) {
    static constexpr std::string_view names = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
    if (at_ == end_)
      return false;
    const char c = *at_++;
    if (c != 'u') {
      const size_t i = names.find(c);
      if (i == names.npos)
        return false;
      out += meant[i];
      return true;
    }
    uint32_t code = 0;
    if (!hex(code))
      return false;
    if (code >= 0xd800 && code < 0xdc00) {
      uint32_t low = 0;
      if (!word("\\u") || !hex(low) || low < 0xdc00 || low > 0xdfff)
        return false;
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code < 0xe000) {
      return false;
    }
    utf8(out, code);
    return true;
  }

  bool hex(uint32_t &out) noexcept {
    if (end_ - at_ < 4)
      return false;
    for (int i = 0; i < 4; i++) {
      const char c = *at_++;
      const char lower = static_cast<char>(c | 0x20);
      if (c >= '0' && c <= '9')
        out = out << 4 | static_cast<uint32_t>(c - '0');
      else if (lower >= 'a' && lower <= 'f')
        out = out << 4 | static_cast<uint32_t>(lower - 'a' + 10);
      else
        return false;
    }
    return true;
  }

  static void utf8(std::string &out, uint32_t code) {
    const auto add = [&](uint32_t byte) { out += static_cast<char>(byte); };
    if (code < 0x80) {
      add(code);
    } else if (code < 0x800) {
      add(0xc0 | code >> 6);
      add(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
      add(0xe0 | code >> 12);
      add(0x80 | (code >> 6 & 0x3f));
      add(0x80 | (code & 0x3f));
    } else {
      add(0xf0 | code >> 18);
      add(0x80 | (code >> 12 & 0x3f));
      add(0x80 | (code >> 6 & 0x3f));
      add(0x80 | (code & 0x3f));
    }
  }

  const char *at_, *end_;
};

// The bytes of unpadded base64; false where it is none, or of more than a key has.
inline bool key_bytes(std::string_view base64, FrameKey &key) noexcept {
  static constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (base64.size() % 4 == 1 || base64.size() * 3 / 4 > key.bytes.size())
    return false;
  uint32_t bits = 0;
  unsigned held = 0;
  key.size = 0;
  for (const char c : base64) {
    const size_t digit = digits.find(c);
    if (digit == digits.npos)
      return false;
    bits = bits << 6 | static_cast<uint32_t>(digit);
    held += 6;
    if (held >= 8) {
      held -= 8;
      key.bytes[key.size++] = static_cast<uint8_t>(bits >> held);
    }
  }
  return key.size > 0;
}

} // namespace detail

// The media keys of one session.
class FrameKeys {
public:
  // The keys of one participant, those that are still to come as well. It may outlive the table.
  class Participant {
  public:
    // The key to decrypt a frame with that names this index.
    std::optional<FrameKey> key(uint8_t index) const noexcept { return ring_->load(index); }

  private:
    friend class FrameKeys;
    explicit Participant(std::shared_ptr<const detail::KeyRing> ring) : ring_(std::move(ring)) {}

    std::shared_ptr<const detail::KeyRing> ring_;
  };

  FrameKeys() = default;
  FrameKeys(const FrameKeys &) = delete;
  FrameKeys &operator=(const FrameKeys &) = delete;
  ~FrameKeys() { clear(); }

  Participant participant(const std::string &sfu_identity) {
    const std::lock_guard<std::mutex> locked(mutex_);
    return Participant(entry(sfu_identity).ring);
  }

  // Our own key that is in use. None: nothing may be sent yet.
  std::optional<FrameKey> encrypting() const noexcept { return own_.load(); }

  // Takes in an event of the session: encryption_key_changed; memberships_changed, which drops the
  // keys of those who left; left, which drops all. Others are ignored. False: it could not be read.
  bool on_event(std::string_view name, std::string_view json) {
    if (name == "encryption_key_changed")
      return key_changed(json);
    if (name == "memberships_changed")
      return members_changed(json);
    if (name == "left")
      clear();
    return true;
  }

  // Holds the key of another participant, in place of one with the same index.
  void set(const std::string &sfu_identity, const FrameKey &key) {
    const std::lock_guard<std::mutex> locked(mutex_);
    Entry &e = entry(sfu_identity);
    e.ring->store(key);
    e.keyed = true;
  }

  // Has our own frames encrypted with this key from now on.
  void use(const FrameKey &key) {
    const std::lock_guard<std::mutex> locked(mutex_);
    own_.store(key);
  }

  // Forgets the keys of a participant.
  void drop(const std::string &sfu_identity) {
    const std::lock_guard<std::mutex> locked(mutex_);
    const auto found = participants_.find(sfu_identity);
    if (found == participants_.end())
      return;
    found->second.ring->wipe();
    found->second.keyed = false;
    if (found->second.unused())
      participants_.erase(found);
  }

  // Forgets all keys, our own as well.
  void clear() {
    const std::lock_guard<std::mutex> locked(mutex_);
    own_.wipe();
    for (auto &[identity, e] : participants_) {
      e.ring->wipe();
      e.keyed = false;
    }
    sweep();
  }

private:
  struct Entry {
    std::shared_ptr<detail::KeyRing> ring;
    bool keyed = false;

    bool unused() const noexcept { return !keyed && ring.use_count() == 1; }
  };

  Entry &entry(const std::string &sfu_identity) {
    if (participants_.size() >= sweep_at_)
      sweep();
    Entry &e = participants_[sfu_identity];
    if (!e.ring)
      e.ring = std::make_shared<detail::KeyRing>();
    return e;
  }

  // Those without keys are kept for as long as somebody looks at them.
  void sweep() {
    for (auto i = participants_.begin(); i != participants_.end();)
      i = i->second.unused() ? participants_.erase(i) : std::next(i);
    sweep_at_ = 2 * participants_.size() + 16;
  }

  bool key_changed(std::string_view json) {
    detail::EventReader reader(json);
    std::string identity, base64;
    FrameKey key;
    bool own = false, in_use = false;
    const bool read = reader.object([&](const std::string &name) {
      return name == "sfu_identity" ? reader.string(identity)
             : name == "key"        ? reader.string(base64)
             : name == "index"      ? reader.byte(key.index)
             : name == "own"        ? reader.boolean(own)
             : name == "in_use"     ? reader.boolean(in_use)
                                    : reader.skip();
    });
    const bool good = read && !identity.empty() && detail::key_bytes(base64, key);
    if (good && !own)
      set(identity, key);
    if (good && own && in_use)
      use(key);
    return good;
  }

  bool members_changed(std::string_view json) {
    detail::EventReader reader(json);
    const auto membership = [&](const std::string &name) {
      std::string identity;
      if (name != "sfu_identity")
        return reader.skip();
      if (!reader.string(identity))
        return false;
      drop(identity);
      return true;
    };
    return reader.object([&](const std::string &name) {
      if (name != "left")
        return reader.skip();
      return reader.array([&] {
        return reader.object(
            [&](const std::string &field) { return field == "membership" ? reader.object(membership) : reader.skip(); });
      });
    });
  }

  std::mutex mutex_; // of those who write
  detail::KeySlot own_;
  std::unordered_map<std::string, Entry> participants_;
  size_t sweep_at_ = 16;
};

} // namespace matrixrtc

#endif
