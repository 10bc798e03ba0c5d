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

// Words of calls first, first + 1, ... of one block, one per lane of `count` vectors.
template <int count>
ZO_INLINE void generate_calls(const CallKey& key, uint32_t first, U32 (&word)[count][4]) {
  Words part[kParts * count][4];
  generate_call_parts<count>(key, first, word_order, part);
#pragma GCC unroll 4
  for (int i = 0; i < count; ++i)
    for (int k = 0; k < 4; ++k) word[i][k] = join_parts(part + kParts * i, k);
}

ZO_INLINE F32 to_float(U32 v) { return __builtin_convertvector(reinterpret_cast<I32>(v), F32); }

ZO_INLINE F32 select(U32 mask, F32 a, F32 b) {
  return reinterpret_cast<F32>(bit_select(mask, reinterpret_cast<U32>(a), reinterpret_cast<U32>(b)));
}

// The same polynomial of n vectors, whose chains run side by side.
template <int n, int terms>
ZO_INLINE void polynomial(const float (&coefficients)[terms], const F32 (&x)[n], F32 (&value)[n]) {
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i) value[i] = splat<F32>(coefficients[0]);
#pragma GCC unroll 8
  for (int k = 1; k < terms; ++k)
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i) value[i] = value[i] * x[i] + coefficients[k];
}

ZO_INLINE F32 uniform(U32 word) {
  return to_float(((word >> 8) << 1) + (1u - (1u << 24))) * 0x1p-24f * 1.7320508075688772f;
}

// ln((k + 1/2) 2^-31), for k < 2^31.
template <int n>
ZO_INLINE void log_uniform(const U32 (&k)[n], F32 (&log)[n]) {
  constexpr float kLog[] = {-0.07634497f, 0.12761576f, -0.13160183f, 0.14201757f,
                            -0.16623357f, 0.20001227f, -0.2500082f,  0.3333333f};
  I32 exponent[n];
  F32 f[n], value[n];
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i) {
    const I32 bits = reinterpret_cast<I32>((to_float(k[i]) + 0.5f) * 0x1p-31f);
    exponent[i] = (bits - 0x3f3504f3) >> 23;  // 0x3f3504f3 are the bits of sqrt(1/2)
    const F32 scaled = reinterpret_cast<F32>(bits - (exponent[i] << 23)) - 1.0f;
    f[i] = select(reinterpret_cast<U32>(exponent[i] == 0), (to_float(k[i] + 0x80000000u) + 0.5f) * 0x1p-31f, scaled);
  }
  polynomial(kLog, f, value);
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i) {
    const F32 square = f[i] * f[i];
    const F32 tail = square * f[i] * value[i] - 0.5f * square;
    log[i] = __builtin_convertvector(exponent[i], F32) * 0.693147182464599609375f + (f[i] + tail);
  }
}

// Makes two normals each, x and y, of the words a and b by the Box-Muller transform.
template <int n>
ZO_INLINE void normals(const U32 (&a)[n], const U32 (&b)[n], F32 (&x)[n], F32 (&y)[n]) {
  constexpr float kSin[] = {-3.5950467e-05f, 0.002490001f, -0.080745436f, 0.78539819f};
  constexpr float kCos[] = {3.5303381e-06f, -0.00032594008f, 0.015854327f, -0.30842513f};
  U32 k[n], quarter[n];
  F32 log[n], angle[n], square[n], sin[n], cos[n];
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i) {
    k[i] = a[i] >> 1;
    quarter[i] = (b[i] + (1u << 29)) >> 30;
    angle[i] = to_float(b[i] - (quarter[i] << 30)) * 0x1p-29f;
    square[i] = angle[i] * angle[i];
  }
  log_uniform(k, log);
  polynomial(kSin, square, sin);
  polynomial(kCos, square, cos);
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i) {
    const F32 r = square_root(log[i] * -2.0f);
    const F32 sine = angle[i] * sin[i], cosine = square[i] * cos[i] + 1.0f;
    const U32 swap = reinterpret_cast<U32>((quarter[i] & 1u) == 1u);
    const U32 x_sign = (quarter[i] + 1u) >> 1 << 31, y_sign = quarter[i] >> 1 << 31;
    x[i] = r * reinterpret_cast<F32>(reinterpret_cast<U32>(select(swap, sine, cosine)) ^ x_sign);
    y[i] = r * reinterpret_cast<F32>(reinterpret_cast<U32>(select(swap, cosine, sine)) ^ y_sign);
  }
}

ZO_INLINE void draw_words(Stream stream, uint64_t seed, uint64_t first_block, int count, float* z) {
  constexpr int n = 2;  // vectors of calls at once
  for (int i = 0; i < count; i += 128) {
    const CallKey key(seed, first_block + static_cast<uint64_t>(i) / 128, stream);
    for (int call = 0; call < 32; call += n * kLanes) {
      U32 word[n][4];
      generate_calls<n>(key, static_cast<uint32_t>(call), word);
      float* to = z + i + call;
      if (stream == kStreamNormal) {
        U32 a[2 * n], b[2 * n];
        F32 x[2 * n], y[2 * n];
#pragma GCC unroll 4
        for (int j = 0; j < 2 * n; ++j) {
          a[j] = word[j / 2][2 * (j % 2)];
          b[j] = word[j / 2][2 * (j % 2) + 1];
        }
        normals(a, b, x, y);
#pragma GCC unroll 4
        for (int j = 0; j < 2 * n; ++j) {
          store(to + j / 2 * kLanes + 64 * (j % 2), x[j]);
          store(to + j / 2 * kLanes + 64 * (j % 2) + 32, y[j]);
        }
      } else {
        for (int j = 0; j < n; ++j)
          for (int k = 0; k < 4; ++k) store(to + j * kLanes + 32 * k, uniform(word[j][k]));
      }
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
