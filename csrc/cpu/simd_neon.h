// NEON of aarch64: 4 lanes, 32 registers.

constexpr int kGroup = 4;  // seeds per table look-up: tbl reads 16 bytes of one register, or 16 floats of four

// Words of Philox fill vectors: two widening multiplies make the products of a tile, and two unzips their low and high
// words. With a word in half of each lane it would be two multiplies, two narrowings and two shifts, and twice the XORs.

constexpr int kParts = 1;  // vectors that have a word of each block of a tile

using Words = U32;
struct Product {
  uint32x4_t first, second;  // of lanes 0 and 1, and 2 and 3: low and high words in turn
};

ZO_INLINE Product widening_mul(Words a, uint32_t b) {
  const uint32x4_t words = reinterpret_cast<uint32x4_t>(a);
  return {vreinterpretq_u32_u64(vmull_n_u32(vget_low_u32(words), b)),
          vreinterpretq_u32_u64(vmull_high_n_u32(words, b))};
}

ZO_INLINE Words low_words(Product p) { return reinterpret_cast<U32>(vuzp1q_u32(p.first, p.second)); }
ZO_INLINE Words high_words(Product p) { return reinterpret_cast<U32>(vuzp2q_u32(p.first, p.second)); }

ZO_INLINE Words splat_key(uint32_t key) { return splat<U32>(key); }

ZO_INLINE Words xor3(Words a, Words b, Words c) { return a ^ b ^ c; }

// Which block of the tile a lane makes, and word k of all of them.
ZO_INLINE int word_order(int /*part: always 0*/, int lane) { return lane; }
ZO_INLINE int bit_order(int /*part: always 0*/, int lane) { return lane; }
ZO_INLINE U32 join_parts(const Words (*part)[4], int k) { return part[0][k]; }

// The four words of each block behind each other, blocks in sequence.
ZO_INLINE void store_in_sequence(const Words (*word)[4], uint8_t* bytes) {
  const uint32x4x4_t words = {{reinterpret_cast<uint32x4_t>(word[0][0]), reinterpret_cast<uint32x4_t>(word[0][1]),
                               reinterpret_cast<uint32x4_t>(word[0][2]), reinterpret_cast<uint32x4_t>(word[0][3])}};
  vst4q_u32(reinterpret_cast<uint32_t*>(bytes), words);
}

// Bits of a where the mask is set, of b elsewhere.
ZO_INLINE U32 bit_select(U32 mask, U32 a, U32 b) {
  return reinterpret_cast<U32>(vbslq_u32(reinterpret_cast<uint32x4_t>(mask), reinterpret_cast<uint32x4_t>(a),
                                         reinterpret_cast<uint32x4_t>(b)));
}

using Table = uint8x16x4_t;  // 2^kGroup entries of 32 bits

ZO_INLINE Table load_table(const int32_t* p) {
  return {{load<uint8x16_t>(p), load<uint8x16_t>(p + 4), load<uint8x16_t>(p + 8), load<uint8x16_t>(p + 12)}};
}

ZO_INLINE I32 look_up(Table table, U32 index) {  // only the low four bits of an index count
  const U32 bytes = (index & 15u) * 0x04040404u + 0x03020100u;
  return reinterpret_cast<I32>(vqtbl4q_u8(table, reinterpret_cast<uint8x16_t>(bytes)));
}

// rows[i] lane j <-> rows[j] lane i
ZO_INLINE void transpose(I32 (&rows)[4]) {
  int64x2_t even[2], odd[2];  // of rows 0 and 1, and 2 and 3: columns 0 and 2, and 1 and 3
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const int32x4_t first = reinterpret_cast<int32x4_t>(rows[2 * i]);
    const int32x4_t second = reinterpret_cast<int32x4_t>(rows[2 * i + 1]);
    even[i] = vreinterpretq_s64_s32(vtrn1q_s32(first, second));
    odd[i] = vreinterpretq_s64_s32(vtrn2q_s32(first, second));
  }
  rows[0] = reinterpret_cast<I32>(vzip1q_s64(even[0], even[1]));
  rows[1] = reinterpret_cast<I32>(vzip1q_s64(odd[0], odd[1]));
  rows[2] = reinterpret_cast<I32>(vzip2q_s64(even[0], even[1]));
  rows[3] = reinterpret_cast<I32>(vzip2q_s64(odd[0], odd[1]));
}

// rows[i] lane j = element i of the vector at(j).
template <class At>
ZO_INLINE void load_transposed(At at, I32 (&rows)[4]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) rows[i] = load<I32>(at(i));
  transpose(rows);
}

// Lane i: bit skip + i of the word (skip < 8) in the sign position; other bits are arbitrary.
ZO_INLINE U32 bit_to_sign(uint32_t word, int skip = 0) {
  const uint32x4_t lane_bit = {1, 2, 4, 8};
  return reinterpret_cast<U32>(vtstq_u32(vdupq_n_u32(word >> skip), lane_bit));
}

ZO_INLINE U64 bit_to_sign(uint64_t word) {
  const uint64x2_t lane_bit = {1, 2};
  return reinterpret_cast<U64>(vtstq_u64(vdupq_n_u64(word), lane_bit));
}

ZO_INLINE F32 round_even(F32 v) { return reinterpret_cast<F32>(vrndnq_f32(reinterpret_cast<float32x4_t>(v))); }

ZO_INLINE F64 round_even(F64 v) { return reinterpret_cast<F64>(vrndnq_f64(reinterpret_cast<float64x2_t>(v))); }

ZO_INLINE F32 square_root(F32 v) { return reinterpret_cast<F32>(vsqrtq_f32(reinterpret_cast<float32x4_t>(v))); }

ZO_INLINE F32 from_float16(U16 h) { return reinterpret_cast<F32>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(h))); }

ZO_INLINE U16 to_float16(F32 f) { return reinterpret_cast<U16>(vcvt_f16_f32(reinterpret_cast<float32x4_t>(f))); }

// --- for the population forward: floats, where a fused multiply-add and a few ulp are allowed ---

constexpr int kTileVectors = 4;  // vectors of a tile of positions
constexpr int kSums = 24;        // vectors of sums that a loop keeps in registers
constexpr int kRowTile = 6;      // rows of the output projection at once: with 4 columns and a weight, 29 registers
constexpr bool kInterleavesCells = true;  // or one vector after the other

// (Where a or b is a number in all lanes, compilers take the form that multiplies by an element.)
ZO_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return reinterpret_cast<F32>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a),
                                         reinterpret_cast<float32x4_t>(b)));
}

// The larger, and the smaller, of two numbers; NaN if one of them is NaN.
ZO_INLINE F32 larger(F32 a, F32 b) {
  return reinterpret_cast<F32>(vmaxq_f32(reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
}

ZO_INLINE F32 smaller(F32 a, F32 b) {
  return reinterpret_cast<F32>(vminq_f32(reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
}

// x * factor as the nearest whole number and the rest: 2^(x * factor) = scale(2^fraction, power). A product above `most`
// counts as `most`, unless that is 0: then no product is above 0. One below -126 counts as -126. Bounds are put on x, so
// that one fused operation multiplies, rounds, and leaves the exponent of the scale at the end of the sum.
struct Power {
  F32 fraction, scale;  // fraction: in [-1/2, 1/2]
};
// (2^f - 1) / f, highest power first.
constexpr float kExp2[] = {0x1.5bae06p-10f, 0x1.3ce922p-7f, 0x1.c6b724p-5f, 0x1.ebf9cp-3f, 0x1.62e42ap-1f};

ZO_INLINE Power power_of(F32 x, float factor, float most) {
  const F32 lowest = splat<F32>(-126.0f / factor), highest = splat<F32>(most / factor);
  x = factor < 0.0f ? smaller(lowest, x) : larger(lowest, x);
  if (most != 0.0f) x = factor < 0.0f ? larger(highest, x) : smaller(highest, x);
  const F32 shifter = splat<F32>(0x1.8p23f + 127.0f);
  const F32 sum = fma(x, splat<F32>(factor), shifter);
  return {fma(x, splat<F32>(factor), shifter - sum), reinterpret_cast<F32>(reinterpret_cast<U32>(sum) << 23)};
}

ZO_INLINE F32 scale(F32 v, Power power) { return v * power.scale; }
