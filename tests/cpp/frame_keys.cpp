// frame_keys.hpp: what events do to it, what is no event of ours, and media threads that read while
// others write. Built with AddressSanitizer and with ThreadSanitizer.

#include <atomic>
#include <cstdio>
#include <matrixrtc/frame_keys.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

using namespace matrixrtc;

static int passed, failed;

static void check(bool ok, const char *what) {
  ++(ok ? passed : failed);
  if (!ok)
    std::printf("FAILED: %s\n", what);
}

static const std::string key16 = "AAECAwQFBgcICQoLDA0ODw";                      // 0, 1, ... 15
static const std::string key32 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"; // 0, 1, ... 31

static std::string key_event(const std::string &identity, int index, const std::string &key, bool own = false,
                             bool in_use = true) {
  return R"({"event":"encryption_key_changed","client":1,"session":2,"room_id":"!r:x","seq":3,"ts":4,"user_id":"@a:x",)"
         R"("device_id":"A","member_id":"m","sfu_identity":")" +
         identity + R"(","index":)" + std::to_string(index) + R"(,"key":")" + key + R"(","own":)" +
         (own ? "true" : "false") + R"(,"in_use":)" + (in_use ? "true" : "false") + R"(,"fingerprint":"be45cb26"})";
}

static std::string left_event(const std::string &identity) {
  return R"({"event":"memberships_changed","joined":[{"sfu_identity":"b","application_data":{"x":[1,-2.5e3,null,{}]}}],)"
         R"("left":[{"reason":"left","membership":{"user_id":"@a:x","transports":[{"type":"livekit"}],"sfu_identity":")" +
         identity + R"("}}],"updated":[],"count":1})";
}

static FrameKey made(uint8_t index, uint8_t size, uint8_t first, uint8_t step = 1) {
  FrameKey key;
  key.index = index;
  key.size = size;
  for (size_t i = 0; i < size; i++)
    key.bytes[i] = static_cast<uint8_t>(first + step * i);
  return key;
}

static bool take(FrameKeys &keys, const std::string &json) {
  return keys.on_event(json.find("\"joined\"") == json.npos ? "encryption_key_changed" : "memberships_changed", json);
}

static void events() {
  FrameKeys keys;
  const auto a = keys.participant("a");
  check(!a.key(0) && !keys.encrypting(), "a table begins empty");
  check(take(keys, key_event("a", 0, key16)) && a.key(0) == made(0, 16, 0), "a participant is there before its key");
  check(take(keys, key_event("a", 255, key32)) && a.key(255) == made(255, 32, 0), "a key of 32 bytes");
  check(a.key(0) == made(0, 16, 0) && !a.key(1), "two keys are held");
  check(keys.participant("a").key(255).has_value() && !keys.participant("b").key(255), "each has its own keys");
  check(take(keys, key_event("a", 0, key32)) && a.key(0) == made(0, 32, 0), "a key replaces one of its index");

  check(take(keys, key_event("me", 4, key16, true, false)) && !keys.encrypting(), "an own key waits to be in use");
  check(take(keys, key_event("me", 4, key16, true)) && keys.encrypting() == made(4, 16, 0), "it is in use");
  check(take(keys, key_event("me", 5, key32, true, false)) && keys.encrypting()->index == 4, "the next one waits");
  check(!keys.participant("me").key(4), "we hear nothing of ourselves");

  check(take(keys, key_event("b", 0, key16)) && take(keys, left_event("a")), "a member leaves");
  check(!a.key(0) && !a.key(255) && !keys.participant("a").key(0), "its keys are gone");
  check(keys.participant("b").key(0).has_value() && keys.encrypting().has_value(), "those of others are not");
  check(take(keys, key_event("a", 1, key16)) && a.key(1) == made(1, 16, 0), "it comes back, and is heard as before");

  check(keys.on_event("status_changed", "{}") && keys.on_event("of my own", "not even JSON"), "others are ignored");
  check(keys.on_event("left", R"({"sent":true})") && !a.key(1) && !keys.encrypting(), "our leave is the end of all keys");
}

static void handles() {
  auto keys = std::make_unique<FrameKeys>();
  const auto a = keys->participant("a");
  check(take(*keys, key_event("a", 0, key16)) && a.key(0).has_value(), "a handle sees its keys");
  for (int i = 0; i < 1000; i++) {
    keys->set("x" + std::to_string(i), made(0, 16, 1));
    keys->participant("y" + std::to_string(i));
    keys->drop("x" + std::to_string(i));
  }
  check(keys->participant("a").key(0).has_value(), "those who come and go push out nobody");
  keys.reset();
  check(!a.key(0), "a handle outlives its table, the keys do not");
}

static void texts() {
  FrameKeys keys;
  check(take(keys, key_event(R"(\u003c\"\\\/\b\f\n\r\t\u00e9\u20ac\ud83d\ude00\u0041)", 7, key16)) &&
            keys.participant("<\"\\/\b\f\n\r\t\u00e9\u20ac\U0001F600A").key(7).has_value(),
        "an identity with every escape of JSON");
  check(take(keys, key_event("\u00e9\U0001F600", 7, key16)) && keys.participant("\u00e9\U0001F600").key(7).has_value(),
        "an identity beyond ASCII");
  check(take(keys, " { \"index\" : 9 ,\n\t\"sfu_identity\": \"s\",\r\"key\": \"" + key16 + "\" } ") &&
            keys.participant("s").key(9).has_value(),
        "white space, and fields in another order");
  check(take(keys, "{\"deep\":" + std::string(100000, '[') + std::string(100000, ']') + "," +
                       key_event("deep", 1, key16).substr(1)) &&
            keys.participant("deep").key(1).has_value(),
        "depth takes no stack");

  for (const std::string &bad : {
           std::string(""), std::string("{}"), std::string("[]"), std::string("null"), std::string("{\"index\":1"),
           key_event("x", 256, key16), key_event("x", -1, key16), key_event("x", 99999, key16), key_event("", 1, key16),
           key_event("x", 1, ""), key_event("x", 1, "A"), key_event("x", 1, "AAAAA"), key_event("x", 1, key16 + "=="),
           key_event("x", 1, "AAEC-_QFBgcICQoLDA0ODw"), key_event("x", 1, key32 + "AA"), key_event("x", 1, key32 + key32),
           key_event("\\u12", 1, key16), key_event("\\ud83d", 1, key16), key_event("\\ude00", 1, key16),
           key_event("\\ud83d\\u0041", 1, key16), key_event("\\x", 1, key16), key_event("x\\", 1, key16),
       }) {
    check(!take(keys, bad), bad.c_str());
  }
  check(!keys.on_event("memberships_changed", R"({"left":[{"membership":{"sfu_identity":7}}]})"), "an identity of a number");
  check(!keys.participant("x").key(1), "what could not be read changed nothing");
}

// Every cut and many changes of real events: nothing is read beyond their end.
static void damaged() {
  std::mt19937 random(1);
  FrameKeys keys;
  size_t refused = 0;
  for (const std::string &good : {key_event("\\u00e9\\ud83d\\ude00", 1, key32), left_event("a\\n")}) {
    for (size_t n = 0; n < good.size(); n++) {
      const std::vector<char> cut(good.data(), good.data() + n); // no NUL behind it
      refused += !keys.on_event("encryption_key_changed", {cut.data(), n});
      refused += !keys.on_event("memberships_changed", {cut.data(), n});
    }
    check(refused >= 2 * good.size() - 2, "what is cut short is refused");
    refused = 0;
    for (int i = 0; i < 20000; i++) {
      std::vector<char> changed(good.begin(), good.end());
      for (int n = 0; n < 3; n++)
        changed[random() % changed.size()] = "\"\\{}[],:u0 \xff"[random() % 12];
      refused += !keys.on_event("encryption_key_changed", {changed.data(), changed.size()});
      keys.on_event("memberships_changed", {changed.data(), changed.size()});
    }
    check(refused > 0, "what was damaged is refused");
    refused = 0;
  }
}

// Keys whose bytes all follow from the first: one that is torn between two writings is none of them.
static bool whole(const FrameKey &key) {
  return (key.size == 16 || key.size == 32) && key == made(key.index, key.size, key.bytes[0], key.size == 16 ? 3 : 5);
}

static FrameKey random_key(std::mt19937 &random, uint8_t index) {
  const bool small = random() % 2;
  return made(index, small ? 16 : 32, static_cast<uint8_t>(random()), small ? 3 : 5);
}

static void threads() {
  FrameKeys keys;
  std::atomic<bool> stop{false};
  std::atomic<size_t> torn{0}, read{0};
  std::vector<std::thread> readers, writers;
  for (int n = 0; n < 3; n++)
    readers.emplace_back([&] {
      const auto a = keys.participant("a");
      while (!stop) {
        for (unsigned index = 0; index < 4; index++)
          if (const auto key = a.key(static_cast<uint8_t>(index))) {
            torn += !whole(*key) || key->index != index;
            read++;
          }
        if (const auto key = keys.encrypting()) {
          torn += !whole(*key);
          read++;
        }
      }
    });
  for (unsigned n = 0; n < 2; n++)
    writers.emplace_back([&, n] {
      std::mt19937 random(n);
      for (int i = 0; i < 30000 || read < 1000; i++) {
        keys.set("a", random_key(random, static_cast<uint8_t>(random() % 4)));
        keys.use(random_key(random, static_cast<uint8_t>(i)));
        if (i % 64 == 0)
          keys.drop("a");
        if (i % 1024 == 0)
          keys.clear();
        keys.participant("b" + std::to_string(i % 100));
      }
    });
  for (auto &writer : writers)
    writer.join();
  stop = true;
  for (auto &reader : readers)
    reader.join();
  check(torn == 0, "nobody reads half of one key and half of another");
}

int main() {
  events();
  handles();
  texts();
  damaged();
  threads();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
