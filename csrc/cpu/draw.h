// draw_tile makes the elements of probes of any distribution, as float32 numbers. zo_kernels/distributions.py defines
// them. The operations here are the same, in the same order, so that all instruction sets agree to the last bit.
//
// Plan: a tile's signs and sparsity bits are bit strings made by generate.h. Uniforms and normals take a word each:
// call c = 0..31 of a block (counter word 3) makes elements c, 32 + c, 64 + c and 96 + c, so that with one call per
// lane every vector of output words belongs to consecutive elements.

struct alignas(64) DrawScratch {
  float z[kTileElements];
  SignBits sign, keep;
};

// Words of calls first, first + 1, ... of one block, one per lane.
ZO_INLINE void generate_calls(uint64_t seed, uint64_t block, uint32_t stream, uint32_t first, U32 (&word)[4]) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  U64 c[2][4], p0, p1;
  for (int half = 0; half < 2; ++half) {
    for (int k = 0; k < 3; ++k) c[half][k] = U64{};
    c[half][0] += block & 0xffffffffu;
    c[half][1] += block >> 32;
    c[half][2] += stream;
    for (int lane = 0; lane < kLanes / 2; ++lane)
      c[half][3][lane] = first + static_cast<uint32_t>(word_order(half, lane));
  }
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (int half = 0; half < 2; ++half) {
      p0 = widening_mul(c[half][0], kPhiloxM0);
      p1 = widening_mul(c[half][2], kPhiloxM1);
      c[half][0] = xor3(p1 >> 32, c[half][1], splat_key(k0));
      c[half][1] = p1;
      c[half][2] = xor3(p0 >> 32, c[half][3], splat_key(k1));
      c[half][3] = p0;
    }
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  for (int k = 0; k < 4; ++k) word[k] = interleave(c[0][k], c[1][k]);
}

ZO_INLINE F32 to_float(U32 v) { return __builtin_convertvector(reinterpret_cast<I32>(v), F32); }

ZO_INLINE F32 select(U32 mask, F32 a, F32 b) {
  return reinterpret_cast<F32>(bit_select(mask, reinterpret_cast<U32>(a), reinterpret_cast<U32>(b)));
}

template <int n>
ZO_INLINE F32 polynomial(const float (&coefficients)[n], F32 x) {
  F32 value = splat<F32>(coefficients[0]);
  for (int i = 1; i < n; ++i) value = value * x + coefficients[i];
  return value;
}

ZO_INLINE F32 uniform(U32 word) {
  return to_float(((word >> 8) << 1) + (1u - (1u << 24))) * 0x1p-24f * 1.7320508075688772f;
}

// ln((k + 1/2) 2^-31), for k < 2^31.
ZO_INLINE F32 log_uniform(U32 k) {
  constexpr float kLog[] = {-0.07634497f, 0.12761576f, -0.13160183f, 0.14201757f,
                            -0.16623357f, 0.20001227f, -0.2500082f,  0.3333333f};
  const I32 bits = reinterpret_cast<I32>((to_float(k) + 0.5f) * 0x1p-31f);
  const I32 exponent = (bits - 0x3f3504f3) >> 23;  // 0x3f3504f3 are the bits of sqrt(1/2)
  const F32 scaled = reinterpret_cast<F32>(bits - (exponent << 23)) - 1.0f;
  const F32 f = select(reinterpret_cast<U32>(exponent == 0), (to_float(k + 0x80000000u) + 0.5f) * 0x1p-31f, scaled);
  const F32 square = f * f;
  const F32 tail = square * f * polynomial(kLog, f) - 0.5f * square;
  return __builtin_convertvector(exponent, F32) * 0.693147182464599609375f + (f + tail);
}

// Makes two normals of x and y by the Box-Muller transform.
ZO_INLINE void normals(U32 a, U32 b, F32& x, F32& y) {
  constexpr float kSin[] = {-3.5950467e-05f, 0.002490001f, -0.080745436f, 0.78539819f};
  constexpr float kCos[] = {3.5303381e-06f, -0.00032594008f, 0.015854327f, -0.30842513f};
  const F32 r = square_root(log_uniform(a >> 1) * -2.0f);
  const U32 quarter = (b + (1u << 29)) >> 30;
  const F32 angle = to_float(b - (quarter << 30)) * 0x1p-29f;
  const F32 square = angle * angle;
  const F32 sin = angle * polynomial(kSin, square), cos = square * polynomial(kCos, square) + 1.0f;
  const U32 swap = reinterpret_cast<U32>((quarter & 1u) == 1u);
  const U32 x_sign = (quarter + 1u) >> 1 << 31, y_sign = quarter >> 1 << 31;
  x = r * reinterpret_cast<F32>(reinterpret_cast<U32>(select(swap, sin, cos)) ^ x_sign);
  y = r * reinterpret_cast<F32>(reinterpret_cast<U32>(select(swap, cos, sin)) ^ y_sign);
}

ZO_INLINE void draw_words(Stream stream, uint64_t seed, uint64_t first_block, int count, float* z) {
  for (int i = 0; i < count; i += 128) {
    for (int call = 0; call < 32; call += kLanes) {
      U32 word[4];
      F32 value[4];
      generate_calls(seed, first_block + static_cast<uint64_t>(i) / 128, stream, static_cast<uint32_t>(call), word);
      if (stream == kStreamNormal) {
        normals(word[0], word[1], value[0], value[1]);
        normals(word[2], word[3], value[2], value[3]);
      } else {
        for (int k = 0; k < 4; ++k) value[k] = uniform(word[k]);
      }
      for (int k = 0; k < 4; ++k) store(z + i + 32 * k + call, value[k]);
    }
  }
}

ZO_INLINE void draw_signs(int sparsity, uint64_t seed, uint64_t first_block, int count, DrawScratch& scratch) {
  const TileCounters counters = tile_counters(first_block, bit_order);
  const uint32_t high = static_cast<uint32_t>(first_block >> 32);
  generate_bits(counters, make_probe_key(seed, high, kStreamRademacher, 0), scratch.sign.bytes);
  __builtin_memset(&scratch.keep, 0xff, sizeof(scratch.keep));
  for (int number = 0; number < sparsity; ++number) {
    SignBits more;
    generate_bits(counters, make_probe_key(seed, high, kStreamSparsity, static_cast<uint32_t>(number)), more.bytes);
    for (int i = 0; i < kTileElements / 8; i += sizeof(U32))
      store(scratch.keep.bytes + i, load<U32>(scratch.keep.bytes + i) & load<U32>(more.bytes + i));
  }
  for (int i = 0; i < count; i += kLanes) {
    const I32 keep = reinterpret_cast<I32>(bit_to_sign(word_at<uint32_t>(scratch.keep, i))) >> 31;
    const F32 sign = times_sign(splat<F32>(1.0f), scratch.sign, i);
    store(scratch.z + i, reinterpret_cast<I32>(sign) & keep);
  }
}

// Draws the first `count` elements of a tile, and the rest of the last vector. Blocks of a tile share the high halves
// of their indices.
void draw_tile(const Distribution& distribution, uint64_t seed, uint64_t first_block, int count, DrawScratch& scratch) {
  switch (distribution.stream) {
    case kStreamNormal: return draw_words(kStreamNormal, seed, first_block, count, scratch.z);
    case kStreamUniform: return draw_words(kStreamUniform, seed, first_block, count, scratch.z);
    default: return draw_signs(distribution.sparsity, seed, first_block, count, scratch);
  }
}
