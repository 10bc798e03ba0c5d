// Draws the elements of probes of any distribution. zo_kernels/distributions.py defines them; the operations here are
// those of cpu/draw.h, in the same order and each rounded, so that the bits are the same.
//
// Plan: a warp draws a Philox block at a time, lane c its elements c, 32 + c, 64 + c and 96 + c. Uniforms and normals
// take a word each, and call c of a block (counter word 3) has those of these four elements: lanes share nothing. Of
// sparse probes a block needs one call for the signs and one for each power of two, which as many lanes make at once.
#pragma once

#include "../philox.h"
#include "elements.h"

namespace zo::cuda {

constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kPerLane = 4;  // elements of a block that a lane has, 32 apart

template <int terms>
__device__ inline float polynomial(const float (&coefficients)[terms], float x) {
  float value = coefficients[0];
#pragma unroll
  for (int k = 1; k < terms; ++k) value = add(multiply(value, x), coefficients[k]);
  return value;
}

__device__ inline float uniform(uint32_t word) {
  const float odd = __int2float_rn(static_cast<int>(((word >> 8) << 1) + (1u - (1u << 24))));
  return multiply(multiply(odd, 0x1p-24f), 1.7320508075688772f);
}

// ln((k + 1/2) 2^-31), for k < 2^31.
__device__ inline float log_uniform(uint32_t k) {
  constexpr float kLog[] = {-0.07634497f, 0.12761576f, -0.13160183f, 0.14201757f,
                            -0.16623357f, 0.20001227f, -0.2500082f,  0.3333333f};
  const int bits = __float_as_int(multiply(add(__int2float_rn(static_cast<int>(k)), 0.5f), 0x1p-31f));
  const int exponent = (bits - 0x3f3504f3) >> 23;  // 0x3f3504f3 are the bits of sqrt(1/2)
  const float scaled = add(__int_as_float(bits - exponent * (1 << 23)), -1.0f);
  const float near_one = multiply(add(__int2float_rn(static_cast<int>(k + 0x80000000u)), 0.5f), 0x1p-31f);
  const float f = exponent == 0 ? near_one : scaled;
  const float square = multiply(f, f);
  const float tail = add(multiply(multiply(square, f), polynomial(kLog, f)), -multiply(0.5f, square));
  return add(multiply(__int2float_rn(exponent), 0.693147182464599609375f), add(f, tail));
}

__device__ inline float flip_sign(float value, uint32_t top_bit) {
  return __int_as_float(__float_as_int(value) ^ static_cast<int>(top_bit));
}

// Makes two normals, x and y, of the words a and b by the Box-Muller transform.
__device__ inline void normals(uint32_t a, uint32_t b, float& x, float& y) {
  constexpr float kSin[] = {-3.5950467e-05f, 0.002490001f, -0.080745436f, 0.78539819f};
  constexpr float kCos[] = {3.5303381e-06f, -0.00032594008f, 0.015854327f, -0.30842513f};
  const uint32_t quarter = (b + (1u << 29)) >> 30;
  const float angle = multiply(__int2float_rn(static_cast<int>(b - (quarter << 30))), 0x1p-29f);
  const float square = multiply(angle, angle);
  const float r = __fsqrt_rn(multiply(log_uniform(a >> 1), -2.0f));
  const float sine = multiply(angle, polynomial(kSin, square));
  const float cosine = add(multiply(square, polynomial(kCos, square)), 1.0f);
  const bool swap = quarter & 1u;
  x = multiply(r, flip_sign(swap ? sine : cosine, ((quarter + 1u) >> 1) << 31));
  y = multiply(r, flip_sign(swap ? cosine : sine, (quarter >> 1) << 31));
}

// Draws four elements of a block in each lane; all lanes take part. `stream` is that of a Distribution.
template <Stream stream>
__device__ inline void draw(uint64_t seed, uint64_t block, int sparsity, int lane, float (&z)[kPerLane]) {
  if constexpr (stream == kStreamRademacher) {
    // Lane 0 makes the signs, and those behind it the bits that must all be 1.
    const uint32_t number = static_cast<uint32_t>(lane) - 1u;
    const Philox4 made =
        philox_block(seed, block, lane == 0 ? kStreamRademacher : kStreamSparsity, lane == 0 ? 0u : number);
#pragma unroll
    for (int k = 0; k < kPerLane; ++k) {
      const uint32_t sign = __shfl_sync(kAllLanes, made.word[k], 0);
      const uint32_t keep =
          __reduce_and_sync(kAllLanes, number < static_cast<uint32_t>(sparsity) ? made.word[k] : ~0u);
      z[k] = (keep >> lane) & 1u ? times_sign(1.0f, sign, lane) : 0.0f;
    }
  } else {
    const Philox4 made = philox_block(seed, block, stream, static_cast<uint32_t>(lane));
    if constexpr (stream == kStreamNormal) {
      normals(made.word[0], made.word[1], z[0], z[1]);
      normals(made.word[2], made.word[3], z[2], z[3]);
    } else {
#pragma unroll
      for (int k = 0; k < kPerLane; ++k) z[k] = uniform(made.word[k]);
    }
  }
}

// 16 random bits for each of the same elements. A call makes those of eight consecutive ones: half of the warp makes
// the block's, and each lane gets its own from another.
__device__ inline void draw_random_bits(uint64_t seed, uint64_t block, int lane, uint32_t (&random)[kPerLane]) {
  const Philox4 made = philox_block(seed, block, kStreamStochasticRounding, static_cast<uint32_t>(lane) % 16u);
#pragma unroll
  for (int k = 0; k < kPerLane; ++k) {
    uint32_t pair = 0;
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const uint32_t shown = __shfl_sync(kAllLanes, made.word[word], 4 * k + lane / 8);
      if (lane % 8 / 2 == word) pair = shown;
    }
    random[k] = lane % 2 == 0 ? pair & 0xffffu : pair >> 16;
  }
}

}  // namespace zo::cuda
