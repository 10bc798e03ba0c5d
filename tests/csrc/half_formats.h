// The 16-bit floating-point formats, from their definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace zo_tests {

struct Format {  // a 16-bit floating-point format
  int exponent_bits, mantissa_bits;
};
constexpr Format kBrain = {8, 7}, kHalf = {5, 10};

inline double decode(uint16_t bits, Format f) {
  const int bias = (1 << (f.exponent_bits - 1)) - 1, exponents = (1 << f.exponent_bits) - 1;
  const int exponent = (bits >> f.mantissa_bits) & exponents, mantissa = bits & ((1 << f.mantissa_bits) - 1);
  double value;
  if (exponent == exponents) {
    value = mantissa ? std::nan("") : std::numeric_limits<double>::infinity();
  } else {
    value = std::ldexp(mantissa + (exponent ? 1 << f.mantissa_bits : 0),
                       (exponent ? exponent : 1) - bias - f.mantissa_bits);
  }
  return bits & 0x8000 ? -value : value;
}

// To nearest, ties to even: nearbyint of the value in units of its last place, which is exact in double.
inline uint16_t encode(double value, Format f) {
  const int bias = (1 << (f.exponent_bits - 1)) - 1, one = 1 << f.mantissa_bits;
  const int infinity = ((1 << f.exponent_bits) - 1) << f.mantissa_bits;
  const int sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return static_cast<uint16_t>(infinity | one >> 1);
  if (std::isinf(value)) return static_cast<uint16_t>(sign | infinity);
  int exponent;
  std::frexp(value, &exponent);
  exponent = std::max(exponent - 1, 1 - bias);
  int units = static_cast<int>(std::nearbyint(std::ldexp(std::fabs(value), f.mantissa_bits - exponent)));
  if (units == 2 * one) {
    units = one;
    ++exponent;
  }
  if (exponent > bias) return static_cast<uint16_t>(sign | infinity);
  return static_cast<uint16_t>(sign | (units < one ? units : ((exponent + bias) << f.mantissa_bits) + units - one));
}

// By 16 random bits: to the next larger magnitude if they and the fraction of a unit in the last place, cut after 16
// bits, make a whole unit.
inline double round_at_random(double value, Format f, uint32_t random) {
  if (!std::isfinite(value)) return value;
  int exponent;
  std::frexp(value, &exponent);
  exponent = std::max(exponent - 1, 2 - (1 << (f.exponent_bits - 1))) - f.mantissa_bits;  // of a unit
  const double parts = std::floor(std::ldexp(std::fabs(value), 16 - exponent));
  return std::copysign(std::ldexp(std::floor((parts + random) / 65536.0), exponent), value);
}

}  // namespace zo_tests
