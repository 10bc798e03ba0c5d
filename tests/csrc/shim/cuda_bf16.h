#pragma once
#include "half_formats.h"
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  return static_cast<float>(zo_tests::decode(x.bits, zo_tests::kBrain));
}
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return {zo_tests::encode(v, zo_tests::kBrain)}; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }
