// AVX-512 (F, BW, DQ, VL): 16 lanes.

constexpr int kGroup = 4;    // seeds per table look-up: vpermd reads a table of 16
constexpr int kColumns = 2;  // bit columns summed at once: 16 sums in registers

ZO_INLINE U64 widening_mul(U64 a, uint32_t b) {
  return reinterpret_cast<U64>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(static_cast<long long>(b))));
}

// Low halves of a's 64-bit lanes into the even, of b's into the odd 32-bit lanes.
ZO_INLINE U32 interleave(U64 a, U64 b) {
  return reinterpret_cast<U32>(_mm512_mask_shuffle_epi32(reinterpret_cast<__m512i>(a), 0xaaaa,
                                                         reinterpret_cast<__m512i>(b), _MM_PERM_CCAA));
}

ZO_INLINE U32 unpack_low64(U32 a, U32 b) {
  return reinterpret_cast<U32>(_mm512_unpacklo_epi64(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}

ZO_INLINE U32 unpack_high64(U32 a, U32 b) {
  return reinterpret_cast<U32>(_mm512_unpackhi_epi64(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}

#include "halves.h"

ZO_INLINE U64 xor3(U64 a, U64 b, U64 c) {
  return reinterpret_cast<U64>(_mm512_ternarylogic_epi64(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b),
                                                         reinterpret_cast<__m512i>(c), 0x96));
}

// Bits of a where the mask is set, of b elsewhere.
ZO_INLINE U32 bit_select(U32 mask, U32 a, U32 b) {
  return reinterpret_cast<U32>(_mm512_ternarylogic_epi32(reinterpret_cast<__m512i>(mask),
                                                         reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b),
                                                         0xca));
}

using Table = I32;  // one vector holds the 2^kGroup entries

ZO_INLINE Table load_table(const int32_t* p) { return load<I32>(p); }

ZO_INLINE I32 look_up(Table table, U32 index) {  // only the low four bits of an index count
  return reinterpret_cast<I32>(
      _mm512_permutexvar_epi32(reinterpret_cast<__m512i>(index), reinterpret_cast<__m512i>(table)));
}

// Nibble m in the lowest four bits of each lane; other bits are arbitrary. Shifts share their two ports with permutes,
// which are the bottleneck, so 16-bit multiplies by powers of two do most of them.
ZO_INLINE U32 nibble_to_front(U32 nibbles, int m) {
  const U32 half = m < 4 ? nibbles : nibbles >> 16;
  if (m % 4 == 0) return half;
  const __m512i factor = _mm512_set1_epi16(static_cast<short>(1 << (16 - 4 * (m % 4))));
  return reinterpret_cast<U32>(_mm512_mulhi_epu16(reinterpret_cast<__m512i>(half), factor));
}

// rows[i] lane j <-> rows[j] lane i
ZO_INLINE void transpose(I32 (&rows)[16]) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(reinterpret_cast<__m512i>(rows[i]), reinterpret_cast<__m512i>(rows[i + 1]));
    a[i + 1] = _mm512_unpackhi_epi32(reinterpret_cast<__m512i>(rows[i]), reinterpret_cast<__m512i>(rows[i + 1]));
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
    a[i + 4] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
    a[i + 8] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
    a[i + 12] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    rows[i] = reinterpret_cast<I32>(_mm512_shuffle_i32x4(a[i], a[i + 8], 0x88));
    rows[i + 8] = reinterpret_cast<I32>(_mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd));
  }
}

// rows[i] lane j = element i of the vector at(j).
template <class At>
ZO_INLINE void load_transposed(At at, I32 (&rows)[16]) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = load<I32>(at(i));
  transpose(rows);
}

// Lane i: bit skip + i of the word (skip < 8) in the sign position; other bits are arbitrary.
ZO_INLINE U32 bit_to_sign(uint32_t word, int skip = 0) {
  const U32 distance = {31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16};
  return splat<U32>(word) << (distance - static_cast<uint32_t>(skip));
}

ZO_INLINE U64 bit_to_sign(uint64_t word) {
  const U64 distance = {63, 62, 61, 60, 59, 58, 57, 56};
  return splat<U64>(word) << distance;
}

ZO_INLINE F32 round_even(F32 v) {
  return reinterpret_cast<F32>(_mm512_roundscale_ps(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}

ZO_INLINE F64 round_even(F64 v) {
  return reinterpret_cast<F64>(_mm512_roundscale_pd(reinterpret_cast<__m512d>(v), _MM_FROUND_TO_NEAREST_INT));
}

ZO_INLINE F32 square_root(F32 v) { return reinterpret_cast<F32>(_mm512_sqrt_ps(reinterpret_cast<__m512>(v))); }

ZO_INLINE F32 from_float16(U16 h) { return reinterpret_cast<F32>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(h))); }

ZO_INLINE U16 to_float16(F32 f) {
  return reinterpret_cast<U16>(_mm512_cvtps_ph(reinterpret_cast<__m512>(f), _MM_FROUND_TO_NEAREST_INT));
}

// --- for the population forward: floats, where a fused multiply-add and a few ulp are allowed ---

constexpr int kTileVectors = 4;  // vectors of a tile of positions
constexpr int kSums = 16;        // vectors of sums that a loop keeps in registers
constexpr int kRowTile = 6;      // rows of the output projection at once
constexpr bool kInterleavesCells = false;  // or one vector after the other

ZO_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return reinterpret_cast<F32>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
}

// The larger, and the smaller, of two numbers; b if one of them is NaN.
ZO_INLINE F32 larger(F32 a, F32 b) {
  return reinterpret_cast<F32>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}

ZO_INLINE F32 smaller(F32 a, F32 b) {
  return reinterpret_cast<F32>(_mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}

// x * factor and its fraction: 2^(x * factor) = scale(2^fraction, power). A product above `most` counts as `most`, unless
// that is 0: then no product is above 0.
struct Power {
  F32 fraction, product;  // fraction: in [0, 1]
};
// (2^f - 1) / f, highest power first.
constexpr float kExp2[] = {0x1.e974fep-10f, 0x1.277854p-7f, 0x1.c91ce6p-5f, 0x1.ebdb56p-3f, 0x1.62e4bap-1f};

// (vreduceps is one operation, but takes longer than roundscale and a subtraction.)
ZO_INLINE Power power_of(F32 x, float factor, float most) {
  F32 t = x * splat<F32>(factor);
  if (most != 0.0f) t = smaller(splat<F32>(most), t);
  return {t - reinterpret_cast<F32>(_mm512_roundscale_ps(reinterpret_cast<__m512>(t), _MM_FROUND_TO_NEG_INF)), t};
}

// 0 or infinity where that is out of range; 0 for an infinite negative product, though its fraction, and with it v, is
// NaN.
ZO_INLINE F32 scale(F32 v, Power power) {
  return reinterpret_cast<F32>(
      _mm512_scalef_ps(reinterpret_cast<__m512>(v), reinterpret_cast<__m512>(power.product)));
}
