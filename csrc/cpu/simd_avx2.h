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

// Lane i: bit i of the word in the sign position; other bits are arbitrary.
ZO_INLINE U32 bit_to_sign(uint32_t word) {
  const U32 distance = {31, 30, 29, 28, 27, 26, 25, 24};
  return splat<U32>(word) << distance;
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

constexpr int kTileVectors = 2;  // vectors of a tile of positions
constexpr int kSums = 8;         // vectors of sums that a loop keeps in registers
constexpr int kRowTile = 6;      // rows of the output projection at once

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

// t - floor(t), in [0, 1], for |t| < 2^31.
ZO_INLINE F32 fraction_of(F32 t) {
  return t - (reinterpret_cast<F32>(_mm256_floor_ps(reinterpret_cast<__m256>(t))));
}

// v * 2^floor(t), where t - floor(t) = f, for t >= -126 and v in [1, 2].
ZO_INLINE F32 scale_by_power(F32 v, F32 t, F32 f) {
  return reinterpret_cast<F32>(reinterpret_cast<I32>(v) + (__builtin_convertvector(t - f, I32) << 23));
}

// The range of scale_by_power.
ZO_INLINE F32 bounded_power(F32 t) { return larger(splat<F32>(-126.0f), t); }
