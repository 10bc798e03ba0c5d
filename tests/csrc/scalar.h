// The contract one element at a time, for test_kernels.cpp to compare the kernels with: written from csrc/philox.h and
// csrc/cpu/launch.h, with 16-bit formats taken from their definition. Also buffers that notice stray writes, and CHECK.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <string>

#include "cpu/launch.h"
#include "half_formats.h"
#include "philox.h"

namespace zo_tests {

using zo::DType;

inline int g_passed = 0, g_failed = 0;

inline void check(bool ok, const char* file, int line, const std::string& what) {
  ok ? ++g_passed : ++g_failed;
  if (!ok) std::printf("%s:%d: %s\n", file, line, what.c_str());
}
#define CHECK(condition) check((condition), __FILE__, __LINE__, #condition)
#define CHECK_SAME(actual, expected, what) check_same((actual), (expected), __FILE__, __LINE__, (what))

// p_j(seed), with the block of the last call kept: calls come in order of j.
inline int sign(uint64_t seed, int64_t j) {
  static uint64_t last_seed = 0, last_block = 0;
  static zo::Philox4 words = zo::philox_block(0, 0, zo::kStreamRademacher);
  const uint64_t block = static_cast<uint64_t>(j) / 128;
  if (seed != last_seed || block != last_block) words = zo::philox_block(seed, block, zo::kStreamRademacher);
  last_seed = seed;
  last_block = block;
  return (words.word[(j / 32) % 4] >> (j % 32)) & 1 ? 1 : -1;
}

// The 16 bits by which element j is rounded.
inline uint32_t rounding_bits(uint64_t seed, int64_t j) {
  const uint32_t call = static_cast<uint32_t>(j % 128 / 8);
  const uint64_t block = static_cast<uint64_t>(j) / 128;
  const uint32_t word = zo::philox_block(seed, block, zo::kStreamStochasticRounding, call).word[j % 8 / 2];
  return j % 2 ? word >> 16 : word & 0xffffu;
}

void test_distributions();  // test_distributions.cpp
void test_lists();          // test_cuda_lists.cpp
void test_cuda_distributions();  // test_cuda_distributions.cpp
void test_dnc(void (*set_threads)(int));       // test_dnc.cpp; null: one thread only
void test_activity(void (*set_threads)(int));  // test_activity.cpp; likewise

struct Range {
  int64_t numel, offset;
};

inline size_t size_in_bytes(DType type, int64_t numel) {
  return static_cast<size_t>(zo::size_of(type)) * static_cast<size_t>(numel);
}

inline const char* name_of(DType type) {
  const char* const names[] = {"float32", "float64", "bfloat16", "float16"};
  return names[static_cast<int>(type)];
}

inline std::string describe(const char* kernel, DType type, Range range) {
  return std::string(kernel) + " " + name_of(type) + " numel " + std::to_string(range.numel) + " offset " +
         std::to_string(range.offset) + " " + zo::cpu::active_isa();
}

template <class F>
void for_each_isa(F f) {
  for (const std::string& isa : zo::cpu::supported_isas()) {
    zo::cpu::set_active_isa(isa);
    f();
  }
  zo::cpu::set_active_isa("");
}

constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

// Elements in a heap block that ends with the last of them; `lead` elements before them must stay as they are.
class Buffer {
 public:
  Buffer(DType type, int64_t numel, int lead = 0)
      : type_(type), numel_(numel), lead_(lead), bytes_(new char[size_in_bytes(type, numel + lead)]) {
    std::memset(bytes_.get(), 0xff, size_in_bytes(type, numel + lead));  // NaN in every format
  }
  Buffer(const Buffer& other) : Buffer(other, other.lead_) {}
  Buffer(const Buffer& other, int lead) : Buffer(other.type_, other.numel_, lead) {
    std::memcpy(data(), other.data(), size_in_bytes(type_, numel_));
  }

  DType type() const { return type_; }
  int64_t numel() const { return numel_; }
  char* data() { return bytes_.get() + size_in_bytes(type_, lead_); }
  const char* data() const { return bytes_.get() + size_in_bytes(type_, lead_); }

  double get(int64_t i) const {
    const char* at = data() + size_in_bytes(type_, i);
    double d;
    float s;
    uint16_t h;
    switch (type_) {
      case DType::kFloat64: return std::memcpy(&d, at, 8), d;
      case DType::kFloat32: return std::memcpy(&s, at, 4), s;
      default: return std::memcpy(&h, at, 2), decode(h, type_ == DType::kFloat16 ? kHalf : kBrain);
    }
  }
  void put(int64_t i, double value) {
    char* at = data() + size_in_bytes(type_, i);
    const float s = static_cast<float>(value);  // 16-bit formats by way of float, as the contract has it
    const uint16_t h = encode(s, type_ == DType::kFloat16 ? kHalf : kBrain);
    switch (type_) {
      case DType::kFloat64: std::memcpy(at, &value, 8); break;
      case DType::kFloat32: std::memcpy(at, &s, 4); break;
      default: std::memcpy(at, &h, 2);
    }
  }
  bool lead_untouched() const {
    for (size_t i = 0; i < size_in_bytes(type_, lead_); ++i)
      if (bytes_[i] != '\xff') return false;
    return true;
  }

 private:
  DType type_;
  int64_t numel_;
  int lead_;
  std::unique_ptr<char[]> bytes_;
};

inline void check_same(const Buffer& actual, const Buffer& expected, const char* file, int line,
                       const std::string& what) {
  for (int64_t i = 0; i < expected.numel(); ++i) {
    const size_t at = size_in_bytes(expected.type(), i);
    if (std::memcmp(actual.data() + at, expected.data() + at, size_in_bytes(expected.type(), 1)) == 0) continue;
    if (std::isnan(actual.get(i)) && std::isnan(expected.get(i))) continue;
    return check(false, file, line, what + ": element " + std::to_string(i) + " is " + std::to_string(actual.get(i)) +
                                        ", not " + std::to_string(expected.get(i)));
  }
  check(actual.lead_untouched(), file, line, what + ": wrote before the first element");
}

// Operations rounded to the compute type of `type`.
inline bool is_double(DType type) { return type == DType::kFloat64; }
inline double add(DType type, double a, double b) {
  return is_double(type) ? a + b : static_cast<double>(static_cast<float>(a) + static_cast<float>(b));
}
inline double mul(DType type, double a, double b) {
  return is_double(type) ? a * b : static_cast<double>(static_cast<float>(a) * static_cast<float>(b));
}
inline double rint_in(DType type, double a) {
  return is_double(type) ? std::nearbyint(a) : static_cast<double>(std::nearbyintf(static_cast<float>(a)));
}

// The last operation of an update, of element j.
inline double rounded(DType type, const zo::Update& update, double v, int64_t j) {
  if (!update.rounds_at_random || zo::size_of(type) > 2) return v;
  return round_at_random(v, type == DType::kFloat16 ? kHalf : kBrain, rounding_bits(update.rounding_seed, j));
}

// Ordinary and special numbers in turn: zeros, subnormals, the largest, infinities, NaN, halfway cases of each format.
inline Buffer make_values(DType type, int64_t numel) {
  const double specials[] = {0.0, -0.0, 1e-45, -1e-40, 6e-8, -3e-5, 65504.0, 65519.9, -65520.0, 3.4e38, -3.39e38, 1e300,
                             5e-324, 1.00390625, 1.01171875, 1.00048828125, 1.00146484375, -1.0, 0.5,
                             std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(),
                             std::nan("")};
  Buffer x(type, numel);  // full of NaNs with every bit set
  uint64_t state = 88172645463325252u + static_cast<uint64_t>(numel);
  for (int64_t i = 0; i < numel; ++i) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;  // xorshift64
    const double uniform = static_cast<double>(state >> 11) * 0x1p-53;
    if (state % 20 == 0) continue;  // some stay: rounding their bit patterns as integers would carry into a number
    x.put(i, state % 3 ? 4.0 * uniform - 2.0 : specials[(state >> 8) % std::size(specials)]);
  }
  return x;
}

}  // namespace zo_tests
