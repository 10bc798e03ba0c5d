// Element types on the device: their storage and compute types, and runs of elements that move 16 bytes at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "../types.h"

namespace zo::cuda {

template <DType type>
struct Element;

template <>
struct Element<DType::kFloat32> {
  using Stored = float;
  using Compute = float;
  static __device__ float get(float x) { return x; }
  static __device__ float put(float v) { return v; }
  static __device__ float put(double v) { return __double2float_rn(v); }
};

template <>
struct Element<DType::kFloat64> {
  using Stored = double;
  using Compute = double;
  static __device__ double get(double x) { return x; }
  static __device__ double put(double v) { return v; }  // of a float too
};

// The 16-bit types from double by way of float, as torch casts.
template <>
struct Element<DType::kBFloat16> {
  using Stored = __nv_bfloat16;
  using Compute = float;
  static __device__ float get(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __nv_bfloat16 put(float v) { return __float2bfloat16_rn(v); }
  static __device__ __nv_bfloat16 put(double v) { return put(__double2float_rn(v)); }
  // By 16 random bits, to a float that `put` does not change. docs/contract.md has the rule.
  static __device__ float round_at_random(float v, uint32_t random) {
    const uint32_t bits = static_cast<uint32_t>(__float_as_int(v));
    if ((bits & 0x7fffffffu) >= 0x7f800000u) return v;
    return __int_as_float(static_cast<int>((bits + random) & 0xffff0000u));
  }
};

template <>
struct Element<DType::kFloat16> {
  using Stored = __half;
  using Compute = float;
  static __device__ float get(__half x) { return __half2float(x); }
  static __device__ __half put(float v) { return __float2half_rn(v); }
  static __device__ __half put(double v) { return put(__double2float_rn(v)); }
  static __device__ float round_at_random(float v, uint32_t random) {
    const uint32_t bits = static_cast<uint32_t>(__float_as_int(v)), magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) return v;
    uint32_t rounded = (magnitude + (random >> 3)) & 0xffffe000u;  // float16 has 13 bits less
    if (magnitude < 0x38800000u) {  // below 2^-14 its numbers are multiples of 2^-24
      const float fixed = __fmul_rn(__int_as_float(static_cast<int>(magnitude)), 0x1p40f);
      const uint32_t steps = (static_cast<uint32_t>(fixed) + random) >> 16;
      rounded = static_cast<uint32_t>(__float_as_int(__fmul_rn(static_cast<float>(steps), 0x1p-24f)));
    }
    return __int_as_float(static_cast<int>(rounded | (bits & 0x80000000u)));
  }
};

// Elements that move together, a multiple of 16 bytes. As uint4, and by an intrinsic: the compiler splits plain stores.
template <class T, int count>
struct alignas(16) Chunk {
  static constexpr int kWords = count * static_cast<int>(sizeof(T)) / 16;
  static_assert(kWords * 16 == count * static_cast<int>(sizeof(T)), "whole accesses");

  T at[count];

  __device__ void load(const T* from) {
    uint4 words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const uint4*>(from)[i];
    __builtin_memcpy(at, words, sizeof(words));
  }

  __device__ void store(T* to) const {
    uint4 words[kWords];
    __builtin_memcpy(words, at, sizeof(words));
#pragma unroll
    for (int i = 0; i < kWords; ++i) __stwb(reinterpret_cast<uint4*>(to) + i, words[i]);
  }
};

// +value where bit `bit` of word is set, else -value: a sign flip, exact for every value.
__device__ inline float times_sign(float value, uint32_t word, int bit) {
  return __int_as_float(__float_as_int(value) ^ static_cast<int>((~(word >> bit) & 1u) << 31));
}
__device__ inline double times_sign(double value, uint32_t word, int bit) {
  return __longlong_as_double(__double_as_longlong(value) ^ static_cast<int64_t>(uint64_t{~(word >> bit) & 1u} << 63));
}

// Rounds each operation, without contraction, whatever the compiler's flags.
__device__ inline float add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double add(double a, double b) { return __dadd_rn(a, b); }
__device__ inline float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double multiply(double a, double b) { return __dmul_rn(a, b); }

template <DType type>
struct TypeTag {
  static constexpr DType value = type;
};

template <class Function>
void with_dtype(DType type, Function function) {
  switch (type) {
    case DType::kFloat32: return function(TypeTag<DType::kFloat32>{});
    case DType::kFloat64: return function(TypeTag<DType::kFloat64>{});
    case DType::kBFloat16: return function(TypeTag<DType::kBFloat16>{});
    case DType::kFloat16: return function(TypeTag<DType::kFloat16>{});
  }
}

__host__ __device__ inline bool aligned(const void* address, int64_t stride_bytes = 0) {
  return (reinterpret_cast<uintptr_t>(address) | static_cast<uintptr_t>(stride_bytes)) % 16 == 0;
}

}  // namespace zo::cuda
