// Tests of the kernels for probes of any distribution, on every instruction set: elements against their definition, one
// at a time, then the ops against the elements. (Python's tests compare the last bits of normals.)
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cpu/launch.h"
#include "distribution_cases.h"
#include "philox.h"
#include "scalar.h"

namespace zo_tests {
namespace {

using zo::Distribution;

uint32_t word(uint64_t seed, int64_t j, zo::Stream stream, uint32_t number) {
  const uint64_t block = static_cast<uint64_t>(j) / 128;
  const zo::Philox4 counter = {{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), stream, number}};
  const zo::Philox4 words =
      zo::philox4x32_10(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return words.word[(j / 32) % 4];
}

// Element j before rounding.
double element(Distribution distribution, uint64_t seed, int64_t j) {
  const uint32_t call = static_cast<uint32_t>(j % 32);
  if (distribution.stream == zo::kStreamUniform) {
    const uint32_t high = word(seed, j, zo::kStreamUniform, call) >> 8;
    return (2.0 * high + 1.0 - 0x1p24) * 0x1p-24 * std::sqrt(3.0);
  }
  if (distribution.stream == zo::kStreamNormal) {
    const bool second = (j / 32) % 2;
    const int64_t first = second ? j - 32 : j;
    const uint32_t a = word(seed, first, zo::kStreamNormal, call), b = word(seed, first + 32, zo::kStreamNormal, call);
    const double r = std::sqrt(-2.0 * std::log(((a >> 1) + 0.5) * 0x1p-31)), angle = std::acos(-1.0) * b * 0x1p-31;
    return r * (second ? std::sin(angle) : std::cos(angle));
  }
  for (int number = 0; number < distribution.sparsity; ++number)
    if (!((word(seed, j, zo::kStreamSparsity, static_cast<uint32_t>(number)) >> call) & 1)) return 0.0;
  return sign(seed, j);
}

bool close(double actual, double expected) {
  const double unit = std::ldexp(1.0, std::ilogb(expected == 0.0 ? 1.0 : expected) - 23);
  return std::abs(actual - expected) <= 5.0 * unit + 2e-14;
}

// The elements as float32 numbers, in a buffer of their own length.
Buffer draw(Distribution distribution, Range range, uint64_t seed) {
  Buffer z(DType::kFloat32, range.numel, 3);
  zo::cpu::probe_from(distribution, z.data(), DType::kFloat32, range.numel, seed, range.offset);
  return z;
}

void test_elements(Distribution distribution, Range range, uint64_t seed) {
  zo::cpu::set_active_isa("baseline");
  const Buffer z = draw(distribution, range, seed);
  const bool exact = distribution.stream == zo::kStreamRademacher;
  bool right = true;
  for (int64_t i = 0; i < range.numel; ++i) {
    const double expected = element(distribution, seed, range.offset + i);
    right = right && (exact ? z.get(i) == expected : close(z.get(i), expected));
  }
  CHECK(right);
  for_each_isa([&] {
    CHECK_SAME(draw(distribution, range, seed), z, describe("probe_from", DType::kFloat32, range));
    for (DType type : kTypes) {
      Buffer expected(type, range.numel), actual(type, range.numel, 1);
      for (int64_t i = 0; i < range.numel; ++i) expected.put(i, z.get(i));
      zo::cpu::probe_from(distribution, actual.data(), type, range.numel, seed, range.offset);
      CHECK_SAME(actual, expected, describe("probe_from", type, range));
    }
  });
}

void test_apply(Distribution distribution, Range range, zo::Term term) {
  const Buffer z = draw(distribution, range, term.seed);
  for (DType in : kTypes) {
    const Buffer x = make_values(in, range.numel);
    for (DType out_type : kTypes) {
      Buffer expected(out_type, range.numel);
      const double alpha = mul(in, term.alpha, 1.0);
      for (int64_t i = 0; i < range.numel; ++i) expected.put(i, add(in, x.get(i), mul(in, alpha, z.get(i))));
      for_each_isa([&] {
        Buffer source(x, 3), out(out_type, range.numel, 1);
        zo::cpu::apply_probe_from(distribution, source.data(), in, out.data(), out_type, range.numel, term,
                                  range.offset);
        CHECK_SAME(out, expected, describe("apply_probe_from", in, range) + " to " + name_of(out_type));
        CHECK_SAME(source, x, describe("apply_probe_from's source", in, range));
      });
    }
  }
}

void test_accumulate(Distribution distribution, Range range, int64_t num_seeds, const zo::Update& update) {
  const std::unique_ptr<double[]> coeffs(new double[static_cast<size_t>(num_seeds)]);
  const std::unique_ptr<uint64_t[]> seeds(new uint64_t[static_cast<size_t>(num_seeds)]);
  std::vector<double> sums(static_cast<size_t>(range.numel));
  for (int64_t k = 0; k < num_seeds; ++k) {
    coeffs[static_cast<size_t>(k)] = k % 2 ? -0.1 * static_cast<double>(k) : 1e-3;
    seeds[static_cast<size_t>(k)] = 0x9e3779b97f4a7c15u * static_cast<uint64_t>(k);
    const Buffer z = draw(distribution, range, seeds[static_cast<size_t>(k)]);
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += coeffs[static_cast<size_t>(k)] * z.get(static_cast<int64_t>(i));
  }
  const double scale = 0x1p-3;
  const Buffer undone = draw(distribution, range, update.undo.seed);
  for (DType type : kTypes) {
    const Buffer x = make_values(type, range.numel);
    Buffer expected(x);
    for (int64_t i = 0; i < range.numel; ++i) {
      double v = x.get(i);
      if (update.has_undo) v = add(type, v, mul(type, update.undo.alpha, undone.get(i)));
      v = mul(type, v, update.decay);
      v = add(type, v, mul(type, sums[static_cast<size_t>(i)], scale));
      if (update.grid != 0.0) v = mul(type, rint_in(type, mul(type, v, 1.0 / update.grid)), update.grid);
      expected.put(i, rounded(type, update, v, range.offset + i));
    }
    for_each_isa([&] {
      Buffer actual(x, 3);
      zo::cpu::accumulate_probes_from(distribution, actual.data(), type, range.numel, coeffs.get(), seeds.get(),
                                      num_seeds, scale, range.offset, update);
      CHECK_SAME(actual, expected, describe("accumulate_probes_from", type, range));
    });
  }
}

}  // namespace

void test_distributions() {
  const int64_t edge = int64_t{1} << 39;
  const Range ranges[] = {{0, 0},      {1, 128},          {33, 0},          {127, 256},
                          {129, 0},    {513, 128},        {1025, 0},        {2049, 384},
                          {300, edge}, {2500, edge - 384}, {4097, 3 * edge - 2176},
                          {2559, std::numeric_limits<int64_t>::max() - 2559}};
  int turn = 0;
  for (const Range range : ranges) {
    for (const Distribution distribution : kDistributions) {
      test_elements(distribution, range, turn % 2 ? ~uint64_t{0} : 0x9e3779b97f4a7c15u);
      test_apply(distribution, range, {turn % 3 ? 0.3 : -3e38, 5});
      test_accumulate(distribution, range, turn % 5, update_of_turn(turn));
      ++turn;
    }
  }
}

}  // namespace zo_tests
