#pragma once
#include "half_formats.h"
struct __half {
  uint16_t bits;
};
inline float __half2float(__half x) { return static_cast<float>(zo_tests::decode(x.bits, zo_tests::kHalf)); }
inline __half __float2half_rn(float v) { return {zo_tests::encode(v, zo_tests::kHalf)}; }
