// Encrypts and decrypts frames of media as LiveKit's SDKs do, with the keys of a FrameKeys table.
// Reads lines "CODEC IDENTITY INDEX KEY FRAME", the last two in hex, of frames that others have
// encrypted, decrypts each, encrypts it again, and compares.
//
//   c++ -std=c++17 examples/frames.cpp -Iinclude -lcrypto -o frames && ./frames < tests/cpp/livekit_frames.txt
#if !__has_include(<openssl/evp.h>)
#error "this needs the headers of OpenSSL: apt-get install libssl-dev"
#endif
#include <algorithm>
#include <array>
#include <iostream>
#include <matrixrtc/frame_keys.hpp>
#include <memory>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

using matrixrtc::FrameKey, matrixrtc::FrameKeys;
using Bytes = std::vector<uint8_t>;
using Iv = std::array<uint8_t, 12>;

enum class Codec { opus, vp8, vp9, h264 };

// How many bytes of a frame stay in clear, for the SFU and the packetizer: of Opus the TOC byte, of
// VP8 what stands before the first partition, of H.264 (with start codes) all up to the first two
// bytes of the first slice. They are authenticated.
static size_t clear_bytes(Codec codec, const Bytes &frame) {
  size_t n = 0;
  if (codec == Codec::opus)
    n = 1;
  if (codec == Codec::vp8 && !frame.empty())
    n = frame[0] & 1 ? 3 : 10; // the lowest bit is 0 in a key frame
  for (size_t i = 0; codec == Codec::h264 && n == 0 && i + 3 < frame.size(); i++) {
    const bool start = frame[i] == 0 && frame[i + 1] == 0 && frame[i + 2] == 1;
    const int type = frame[i + 3] & 31;
    if (start && (type == 1 || type == 5)) // a slice
      n = i + 5;
  }
  return std::min(n, frame.size());
}

// H.264 may not have three bytes like those of a start code inside: 3 is put before the third one.
static Bytes escaped(const Bytes &in) {
  Bytes out;
  int zeros = 0;
  for (const uint8_t b : in) {
    if (zeros >= 2 && b <= 3) {
      out.push_back(3);
      zeros = 0;
    }
    out.push_back(b);
    zeros = b == 0 ? zeros + 1 : 0;
  }
  return out;
}

static Bytes unescaped(const Bytes &in) {
  Bytes out;
  int zeros = 0;
  for (const uint8_t b : in) {
    if (zeros >= 2 && b == 3) {
      zeros = 0;
      continue;
    }
    out.push_back(b);
    zeros = b == 0 ? zeros + 1 : 0;
  }
  return out;
}

// What a track is encrypted or decrypted with. One for each track, used by one thread.
class Cryptor {
public:
  explicit Cryptor(Codec codec) : codec_(codec), context_(EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_free) {}

  // frame: its clear bytes | ciphertext and tag | IV | length of the IV | index of the key.
  // An IV must never be used twice with one key: LiveKit's SDKs take the SSRC, the RTP timestamp,
  // and the timestamp less a counter of frames.
  std::optional<Bytes> encrypt(const FrameKey &key, const Iv &iv, const Bytes &frame) {
    const size_t clear = clear_bytes(codec_, frame);
    Bytes body(frame.size() - clear + tag_size);
    int n = 0;
    if (!begin(key, iv, 1) || EVP_EncryptUpdate(context_.get(), nullptr, &n, frame.data(), int(clear)) != 1 ||
        EVP_EncryptUpdate(context_.get(), body.data(), &n, frame.data() + clear, int(frame.size() - clear)) != 1 ||
        EVP_EncryptFinal_ex(context_.get(), body.data() + n, &n) != 1 ||
        EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_GCM_GET_TAG, tag_size, body.data() + body.size() - tag_size) != 1)
      return std::nullopt;
    body.insert(body.end(), iv.begin(), iv.end());
    body.push_back(uint8_t(iv.size()));
    body.push_back(key.index);
    if (codec_ == Codec::h264)
      body = escaped(body);
    Bytes out(frame.begin(), frame.begin() + long(clear));
    out.insert(out.end(), body.begin(), body.end());
    return out;
  }

  // None: there is no key of that index (yet), or the frame was not encrypted with it.
  std::optional<Bytes> decrypt(const FrameKeys::Participant &sender, const Bytes &frame) {
    const size_t clear = clear_bytes(codec_, frame);
    Bytes body(frame.begin() + long(clear), frame.end());
    if (codec_ == Codec::h264)
      body = unescaped(body);
    Iv iv;
    if (body.size() < tag_size + iv.size() + 2 || body[body.size() - 2] != iv.size())
      return std::nullopt;
    const auto key = sender.key(body.back());
    const size_t size = body.size() - tag_size - iv.size() - 2; // of what is encrypted
    std::copy_n(body.begin() + long(size + tag_size), iv.size(), iv.begin());
    Bytes out(frame.begin(), frame.begin() + long(clear));
    out.resize(clear + size);
    int n = 0;
    if (!key || !begin(*key, iv, 0) || EVP_DecryptUpdate(context_.get(), nullptr, &n, frame.data(), int(clear)) != 1 ||
        EVP_DecryptUpdate(context_.get(), out.data() + clear, &n, body.data(), int(size)) != 1 ||
        EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_GCM_SET_TAG, tag_size, body.data() + size) != 1 ||
        EVP_DecryptFinal_ex(context_.get(), out.data() + clear + n, &n) != 1)
      return std::nullopt;
    return out;
  }

private:
  static constexpr int tag_size = 16;

  bool begin(const FrameKey &key, const Iv &iv, int encrypt) {
    if (!key_ || *key_ != key) { // deriving takes longer than a frame does
      if (!derive(key))
        return false;
      key_ = key;
    }
    return EVP_CipherInit_ex(context_.get(), EVP_aes_128_gcm(), nullptr, derived_.data(), iv.data(), encrypt) == 1;
  }

  // HKDF of SHA-256, with the salt of LiveKit and 128 zeros as the info. (Their SDKs take PBKDF2
  // unless they are told otherwise: nothing of Element Call is heard with that.)
  bool derive(const FrameKey &key) {
    static constexpr unsigned char salt[] = "LKFrameEncryptionKey", info[128] = {};
    const std::unique_ptr<EVP_PKEY_CTX, decltype(&EVP_PKEY_CTX_free)> hkdf(EVP_PKEY_CTX_new_id(EVP_PKEY_HKDF, nullptr),
                                                                           EVP_PKEY_CTX_free);
    size_t size = derived_.size();
    return hkdf && EVP_PKEY_derive_init(hkdf.get()) == 1 && EVP_PKEY_CTX_set_hkdf_md(hkdf.get(), EVP_sha256()) == 1 &&
           EVP_PKEY_CTX_set1_hkdf_salt(hkdf.get(), salt, sizeof salt - 1) == 1 &&
           EVP_PKEY_CTX_set1_hkdf_key(hkdf.get(), key.bytes.data(), key.size) == 1 &&
           EVP_PKEY_CTX_add1_hkdf_info(hkdf.get(), info, sizeof info) == 1 &&
           EVP_PKEY_derive(hkdf.get(), derived_.data(), &size) == 1;
  }

  Codec codec_;
  std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)> context_;
  std::optional<FrameKey> key_; // that derived_ is derived from
  std::array<uint8_t, 16> derived_{};
};

static Bytes from_hex(const std::string &hex) {
  Bytes out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    out.push_back(uint8_t(std::stoul(hex.substr(i, 2), nullptr, 16)));
  return out;
}

// Whether a frame can be decrypted, is the same when it is encrypted again, and cannot be decrypted
// once a bit of it is another.
static bool holds(Codec codec, const FrameKeys::Participant &sender, const Bytes &frame) {
  Cryptor cryptor(codec);
  const auto plain = cryptor.decrypt(sender, frame);
  if (!plain)
    return false;
  const Bytes end = codec == Codec::h264 ? unescaped(frame) : frame;
  Iv iv;
  std::copy_n(end.end() - long(iv.size()) - 2, iv.size(), iv.begin());
  if (cryptor.encrypt(*sender.key(frame.back()), iv, *plain) != frame)
    return false;
  for (const size_t i : {size_t(0), frame.size() / 2, frame.size() - 3}) {
    Bytes changed = frame;
    changed[i] ^= 0x40;
    if (cryptor.decrypt(sender, changed))
      return false;
  }
  return true;
}

int main() {
  FrameKeys keys;
  unsigned frames = 0, failed = 0;
  for (std::string line; std::getline(std::cin, line);) {
    if (line.empty() || line[0] == '#')
      continue;
    std::string name, identity, key_hex, frame_hex;
    unsigned index = 0;
    std::istringstream(line) >> name >> identity >> index >> key_hex >> frame_hex;
    const Codec codec = name == "opus"  ? Codec::opus
                        : name == "vp8" ? Codec::vp8
                        : name == "vp9" ? Codec::vp9
                                        : Codec::h264;
    const Bytes raw = from_hex(key_hex);
    FrameKey key;
    key.index = uint8_t(index);
    key.size = uint8_t(raw.size());
    std::copy_n(raw.begin(), std::min(raw.size(), key.bytes.size()), key.bytes.begin());
    keys.set(identity, key); // in an engine, by the events of the session

    frames++;
    if (!holds(codec, keys.participant(identity), from_hex(frame_hex))) {
      failed++;
      std::cerr << "not decrypted: frame " << frames << ", " << name << ", key " << index << "\n";
    }
  }
  std::cout << frames << " frames, " << failed << " failed\n";
  return failed != 0 || frames == 0;
}
