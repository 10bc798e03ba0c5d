// AVX2 with F16C: 8 lanes.

constexpr int kGroup = 3;    // seeds per table look-up: vpermd reads a table of 8
constexpr int kColumns = 1;  // bit columns summed at once: 8 sums in registers

ZO_INLINE U64 widening_mul(U64 a, uint32_t b) {
  return reinterpret_cast<U64>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(static_cast<long long>(b))));
}

// Low halves of a's 64-bit lanes into the even, of b's into the odd 32-bit lanes.
ZO_INLINE U32 interleave(U64 a, U64 b) {
  return reinterpret_cast<U32>(
      _mm256_blend_epi32(reinterpret_cast<__m256i>(a), _mm256_slli_epi64(reinterpret_cast<__m256i>(b), 32), 0xaa));
}

ZO_INLINE U32 unpack_low64(U32 a, U32 b) {
  return reinterpret_cast<U32>(_mm256_unpacklo_epi64(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}

ZO_INLINE U32 unpack_high64(U32 a, U32 b) {
  return reinterpret_cast<U32>(_mm256_unpackhi_epi64(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}

#include "halves.h"

ZO_INLINE U64 xor3(U64 a, U64 b, U64 c) { return a ^ b ^ c; }

// Bits of a where the mask is set, of b elsewhere.
ZO_INLINE U32 bit_select(U32 mask, U32 a, U32 b) { return (a & mask) | (b & ~mask); }

using Table = I32;  // one vector holds the 2^kGroup entries

ZO_INLINE Table load_table(const int32_t* p) { return load<I32>(p); }

ZO_INLINE I32 look_up(Table table, U32 index) {  // only the low three bits of an index count
  return reinterpret_cast<I32>(
      _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(table), reinterpret_cast<__m256i>(index)));
}

// Nibble m in the lowest four bits of each lane; other bits are arbitrary.
ZO_INLINE U32 nibble_to_front(U32 nibbles, int m) { return nibbles >> (4 * m); }

// rows[i] lane j <-> rows[j] lane i
ZO_INLINE void transpose(I32 (&rows)[8]) {
  __m256i a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_epi32(reinterpret_cast<__m256i>(rows[i]), reinterpret_cast<__m256i>(rows[i + 1]));
    a[i + 1] = _mm256_unpackhi_epi32(reinterpret_cast<__m256i>(rows[i]), reinterpret_cast<__m256i>(rows[i + 1]));
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = reinterpret_cast<I32>(_mm256_permute2x128_si256(b[i], b[i + 4], 0x20));
    rows[i + 4] = reinterpret_cast<I32>(_mm256_permute2x128_si256(b[i], b[i + 4], 0x31));
  }
}

// rows[i] lane j = element i of the vector at(j). Halves are loaded to where they belong, which saves the eight operations
// of a transposition that cross them.
template <class At>
ZO_INLINE void load_transposed(At at, I32 (&rows)[8]) {
  __m256 a[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
      a[4 * half + i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(at(i) + 4 * half)),
                                             _mm_loadu_ps(at(i + 4) + 4 * half), 1);
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    const __m256 low01 = _mm256_unpacklo_ps(a[i], a[i + 1]), high01 = _mm256_unpackhi_ps(a[i], a[i + 1]);
    const __m256 low23 = _mm256_unpacklo_ps(a[i + 2], a[i + 3]), high23 = _mm256_unpackhi_ps(a[i + 2], a[i + 3]);
    rows[i] = reinterpret_cast<I32>(_mm256_shuffle_ps(low01, low23, 0x44));
    rows[i + 1] = reinterpret_cast<I32>(_mm256_shuffle_ps(low01, low23, 0xee));
    rows[i + 2] = reinterpret_cast<I32>(_mm256_shuffle_ps(high01, high23, 0x44));
    rows[i + 3] = reinterpret_cast<I32>(_mm256_shuffle_ps(high01, high23, 0xee));
  }
}

// Lane i: bit skip + i of the word (skip < 8) in the sign position; other bits are arbitrary.
ZO_INLINE U32 bit_to_sign(uint32_t word, int skip = 0) {
  const U32 distance = {31, 30, 29, 28, 27, 26, 25, 24};
  return splat<U32>(word) << (distance - static_cast<uint32_t>(skip));
}

ZO_INLINE U64 bit_to_sign(uint64_t word) {
  const U64 distance = {63, 62, 61, 60};
  return splat<U64>(word) << distance;
}

ZO_INLINE F32 round_even(F32 v) {
  return reinterpret_cast<F32>(
      _mm256_round_ps(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

ZO_INLINE F64 round_even(F64 v) {
  return reinterpret_cast<F64>(
      _mm256_round_pd(reinterpret_cast<__m256d>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

ZO_INLINE F32 square_root(F32 v) { return reinterpret_cast<F32>(_mm256_sqrt_ps(reinterpret_cast<__m256>(v))); }

ZO_INLINE F32 from_float16(U16 h) { return reinterpret_cast<F32>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(h))); }

ZO_INLINE U16 to_float16(F32 f) {
  return reinterpret_cast<U16>(_mm256_cvtps_ph(reinterpret_cast<__m256>(f), _MM_FROUND_TO_NEAREST_INT));
}

// --- for the population forward: floats, where a fused multiply-add and a few ulp are allowed ---

constexpr int kTileVectors = 3;  // vectors of a tile of positions
constexpr int kSums = 12;        // vectors of sums that a loop keeps in registers
constexpr int kRowTile = 4;      // rows of the output projection at once
constexpr bool kInterleavesCells = true;  // or one vector after the other

ZO_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return reinterpret_cast<F32>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
}

// The larger, and the smaller, of two numbers; b if one of them is NaN.
ZO_INLINE F32 larger(F32 a, F32 b) {
  return reinterpret_cast<F32>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}

ZO_INLINE F32 smaller(F32 a, F32 b) {
  return reinterpret_cast<F32>(_mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}

// x * factor as a whole number of eighths and a fraction: 2^(x * factor) = scale(2^fraction, power). A product above `most`
// counts as `most`, unless that is 0: then no product is above 0. One below -126 counts as -126. Bounds are put on x, so
// that one fused operation multiplies, rounds, and leaves the eighths at the end of the sum. The table look-up runs on
// a port that products do not use, and saves two of them.
struct Power {
  F32 fraction, scale;  // fraction: in [-1/16, 1/16]
};
constexpr float kExp2[] = {0x1.c690cap-5f, 0x1.ec0c22p-3f, 0x1.62e432p-1f};  // (2^f - 1) / f, highest power first

ZO_INLINE Power power_of(F32 x, float factor, float most) {
  const F32 lowest = splat<F32>(-126.0f / factor), highest = splat<F32>(most / factor);
  x = factor < 0.0f ? smaller(lowest, x) : larger(lowest, x);
  if (most != 0.0f) x = factor < 0.0f ? larger(highest, x) : smaller(highest, x);
  const F32 shifter = splat<F32>(0x1.8p20f);
  const F32 sum = fma(x, splat<F32>(factor), shifter);
  const I32 eighths = reinterpret_cast<I32>(sum);
  // The bits of 2^(j/8), less what adding j eighths to the exponent puts into the mantissa.
  const I32 roots = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
  const I32 root = look_up(roots, reinterpret_cast<U32>(eighths));
  return {fma(x, splat<F32>(factor), shifter - sum), reinterpret_cast<F32>(root + (eighths << 20))};
}

ZO_INLINE F32 scale(F32 v, Power power) { return v * power.scale; }
