// Any processor (x86-64 has SSE2, aarch64 NEON): 4 lanes, vector extension only.

constexpr int kGroup = 4;
constexpr int kColumns = 1;

ZO_INLINE U64 widening_mul(U64 a, uint32_t b) { return (a & 0xffffffffu) * uint64_t{b}; }

// Low halves of a's 64-bit lanes into the even, of b's into the odd 32-bit lanes.
ZO_INLINE U32 interleave(U64 a, U64 b) { return reinterpret_cast<U32>((a & 0xffffffffu) | (b << 32)); }

ZO_INLINE U32 unpack_low64(U32 a, U32 b) {
  const U64 even = {reinterpret_cast<U64>(a)[0], reinterpret_cast<U64>(b)[0]};
  return reinterpret_cast<U32>(even);
}

ZO_INLINE U32 unpack_high64(U32 a, U32 b) {
  const U64 odd = {reinterpret_cast<U64>(a)[1], reinterpret_cast<U64>(b)[1]};
  return reinterpret_cast<U32>(odd);
}

#include "halves.h"

ZO_INLINE U64 xor3(U64 a, U64 b, U64 c) { return a ^ b ^ c; }

// Bits of a where the mask is set, of b elsewhere.
ZO_INLINE U32 bit_select(U32 mask, U32 a, U32 b) { return (a & mask) | (b & ~mask); }

using Table = const int32_t*;

ZO_INLINE Table load_table(const int32_t* p) { return p; }

ZO_INLINE I32 look_up(Table table, U32 index) {
  return I32{table[index[0] & 15u], table[index[1] & 15u], table[index[2] & 15u], table[index[3] & 15u]};
}

// Nibble m in the lowest four bits of each lane; other bits are arbitrary.
ZO_INLINE U32 nibble_to_front(U32 nibbles, int m) { return nibbles >> (4 * m); }

// rows[i] lane j <-> rows[j] lane i
ZO_INLINE void transpose(I32 (&rows)[4]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < i; ++j) {
      const int32_t swapped = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = swapped;
    }
  }
}

// rows[i] lane j = element i of the vector at(j).
template <class At>
ZO_INLINE void load_transposed(At at, I32 (&rows)[4]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) rows[i] = load<I32>(at(i));
  transpose(rows);
}

// Lane i: bit skip + i of the word (skip < 8) in the sign position; other bits are arbitrary. (SSE2 can't shift lanes by
// different counts.)
ZO_INLINE U32 bit_to_sign(uint32_t word, int skip = 0) {
  const U32 lane_bit = {1, 2, 4, 8};
  return reinterpret_cast<U32>((splat<U32>(word >> skip) & lane_bit) != 0);
}

ZO_INLINE U64 bit_to_sign(uint64_t word) {
  const U64 lane_bit = {1, 2};
  return reinterpret_cast<U64>((splat<U64>(word) & lane_bit) != 0);
}

ZO_INLINE F32 round_even(F32 v) {
  return F32{__builtin_rintf(v[0]), __builtin_rintf(v[1]), __builtin_rintf(v[2]), __builtin_rintf(v[3])};
}

ZO_INLINE F64 round_even(F64 v) { return F64{__builtin_rint(v[0]), __builtin_rint(v[1])}; }

ZO_INLINE F32 square_root(F32 v) {
  return F32{__builtin_sqrtf(v[0]), __builtin_sqrtf(v[1]), __builtin_sqrtf(v[2]), __builtin_sqrtf(v[3])};
}

// float <-> float16 for one element: round to nearest, ties to even, subnormals kept.
ZO_INLINE float float_from_half(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t rest = h & 0x7fffu;
  uint32_t bits;
  if (rest >= 0x7c00u) {  // infinity, NaN (made quiet)
    bits = 0x7f800000u | (rest & 0x3ffu ? (rest << 13) | 0x400000u : 0u);
  } else if (rest >= 0x400u) {
    bits = (rest << 13) + (112u << 23);
  } else {  // zero, subnormal: the value is rest * 2^-24, exact in float
    const float value = static_cast<float>(rest) * 0x1p-24f;
    __builtin_memcpy(&bits, &value, 4);
  }
  bits |= sign;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

ZO_INLINE uint16_t half_from_float(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits > 0x7f800000u) {
    half = 0x7e00u | ((bits >> 13) & 0x3ffu);
  } else if (bits >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (bits >= 0x38800000u) {  // normal
    half = (bits + 0xfffu + ((bits >> 13) & 1u) - (112u << 23)) >> 13;
  } else {  // subnormal: adding 0.5 puts the unit of 2^-24 at the last bit of the sum, which is rounded for us
    float value;
    __builtin_memcpy(&value, &bits, 4);
    value += 0.5f;
    __builtin_memcpy(&half, &value, 4);
    half -= 0x3f000000u;
  }
  return static_cast<uint16_t>(sign | half);
}

ZO_INLINE F32 from_float16(U16 h) {
  return F32{float_from_half(h[0]), float_from_half(h[1]), float_from_half(h[2]), float_from_half(h[3])};
}

ZO_INLINE U16 to_float16(F32 f) {
  return U16{half_from_float(f[0]), half_from_float(f[1]), half_from_float(f[2]), half_from_float(f[3])};
}

// --- for the population forward: floats, where a fused multiply-add and a few ulp are allowed ---

constexpr int kTileVectors = 2;  // vectors of a tile of positions
constexpr int kSums = 8;         // vectors of sums that a loop keeps in registers
constexpr int kRowTile = 6;      // rows of the output projection at once
constexpr bool kInterleavesCells = false;  // or one vector after the other

ZO_INLINE F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }

ZO_INLINE F32 choose(I32 mask, F32 a, F32 b) {
  return reinterpret_cast<F32>((reinterpret_cast<I32>(a) & mask) | (reinterpret_cast<I32>(b) & ~mask));
}

// The larger, and the smaller, of two numbers; b if one of them is NaN.
ZO_INLINE F32 larger(F32 a, F32 b) { return choose(a > b, a, b); }

ZO_INLINE F32 smaller(F32 a, F32 b) { return choose(a < b, a, b); }

// x * factor as a whole number and a fraction: 2^(x * factor) = scale(2^fraction, power). A product above `most` counts as
// `most`, unless that is 0: then no product is above 0. One below -126 counts as -126.
struct Power {
  F32 fraction, product;  // fraction: in [0, 1]
};
// (2^f - 1) / f, highest power first.
constexpr float kExp2[] = {0x1.e974fep-10f, 0x1.277854p-7f, 0x1.c91ce6p-5f, 0x1.ebdb56p-3f, 0x1.62e4bap-1f};

ZO_INLINE Power power_of(F32 x, float factor, float most) {
  F32 t = x * splat<F32>(factor);
  if (most != 0.0f) t = smaller(splat<F32>(most), t);
  t = larger(splat<F32>(-126.0f), t);
  const F32 whole = __builtin_convertvector(__builtin_convertvector(t, I32), F32);
  return {t - (whole - choose(whole > t, splat<F32>(1.0f), F32{})), t};
}

ZO_INLINE F32 scale(F32 v, Power power) {
  const I32 whole = __builtin_convertvector(power.product - power.fraction, I32);
  return reinterpret_cast<F32>(reinterpret_cast<I32>(v) + (whole << 23));
}
