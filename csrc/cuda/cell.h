// The arithmetic of one unit of an LSTM, with few divisions.
//
// The GPU's unit for exponentials and reciprocals is what bounds the forward. So sigmoid(i) tanh(z) and sigmoid(f) c
// get a common denominator, sigmoid(o) tanh(c) another one, and two units share a reciprocal: 6 of these instructions a
// unit in place of 10. Exponentials come from pre-activations that are multiplied by -log2(e), tanh's by -2 log2(e).
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

namespace zo::cuda {

constexpr float kLog2e = 1.4426950408889634f;

// What pre-activations of a gate (i, f, z, o) are multiplied by.
__host__ __device__ constexpr float gate_scale(int gate) { return gate == 2 ? -2.0f * kLog2e : -kLog2e; }

// 2^x and 1/x, to about 2^-22 of the result; subnormal results are 0.
__device__ inline float power_of_two(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

__device__ inline float reciprocal(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

// The smaller one, and NaN if x is NaN: fminf would hide it.
__device__ inline float at_most(float x, float most) {
#if defined(__CUDACC__)
  float y;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(most));
  return y;
#else
  return x > most ? most : x;
#endif
}

struct Quotient {
  float above, below;
};

__device__ inline void divide(Quotient x, Quotient y, float& of_x, float& of_y) {
  const float r = reciprocal(x.below * y.below);
  of_x = x.above * (r * y.below);
  of_y = y.above * (r * x.below);
}

// e^-x where scaled = -x log2(e). At most 2^30, where the sigmoid is 1e-9: products of all denominators stay finite.
__device__ inline float exponential(float scaled) { return power_of_two(at_most(scaled, 30.0f)); }

// tanh as a quotient with a denominator in [1, 2].
__device__ inline Quotient tanh_quotient(float scaled) {  // scaled = -2 x log2(e)
  const float e = power_of_two(-fabsf(scaled));
  const int sign = ~__float_as_int(scaled) & static_cast<int>(0x80000000u);
  return {__int_as_float(__float_as_int(1.0f - e) | sign), 1.0f + e};
}

// The cell state sigmoid(f) c + sigmoid(i) tanh(z), from scaled pre-activations.
__device__ inline Quotient cell_state(float i, float f, float z, float c) {
  const Quotient tanh_z = tanh_quotient(z);
  const float below_i = 1.0f + exponential(i), below_f = 1.0f + exponential(f);
  const float below_iz = below_i * tanh_z.below;
  return {__fmaf_rn(c, below_iz, tanh_z.above * below_f), below_iz * below_f};
}

// The hidden state sigmoid(o) tanh(c).
__device__ inline Quotient hidden_state(float o, float c) {
  const Quotient tanh_c = tanh_quotient(c * gate_scale(2));
  return {tanh_c.above, tanh_c.below * (1.0f + exponential(o))};
}

}  // namespace zo::cuda
