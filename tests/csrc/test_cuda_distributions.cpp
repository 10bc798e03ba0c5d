// The CUDA kernels for probes of any distribution, compiled and run as in test_cuda.cpp: on one piece and on lists, bit
// for bit what the CPU kernels make.
#include <cuda_runtime.h>

#include <limits>
#include <string>
#include <vector>

#include "cpu/launch.h"
#include "cuda/launch.h"
#include "distribution_cases.h"
#include "lists.h"
#include "scalar.h"

namespace zo_tests {
namespace {

using zo::Distribution;
using zo::Term;

const zo::cuda::Queue kQueue = {0, nullptr};

struct Rows {
  std::vector<uint64_t> seeds;
  std::vector<double> coeffs;
  std::vector<zo::cuda::DrawnRow> on_device;

  explicit Rows(int64_t count) {
    for (int64_t k = 0; k < count; ++k) {
      seeds.push_back(0x9e3779b97f4a7c15u * static_cast<uint64_t>(k));
      coeffs.push_back(k % 2 ? -0.1 * static_cast<double>(k) : 1e-3);
      on_device.push_back({seeds.back(), coeffs.back()});
    }
  }
  int64_t count() const { return static_cast<int64_t>(seeds.size()); }
};

std::string describe(const char* op, Distribution distribution, DType type, Range range) {
  return std::string(op) + " of stream " + std::to_string(distribution.stream) + ", sparsity " +
         std::to_string(distribution.sparsity) + ", " + name_of(type) + " numel " + std::to_string(range.numel) +
         " offset " + std::to_string(range.offset);
}

void test_one(Distribution distribution, Range range, const Rows& rows, const zo::Update& update) {
  const Term term = {0.3, 0xfedcba9876543210u};
  for (DType type : kTypes) {
    Buffer expected(type, range.numel), actual(type, range.numel, 1);
    zo::cpu::probe_from(distribution, expected.data(), type, range.numel, term.seed, range.offset);
    zo::cuda::probe_from(distribution, actual.data(), type, range.numel, term.seed, range.offset, kQueue);
    CHECK_SAME(actual, expected, describe("probe_from", distribution, type, range));

    const Buffer x = make_values(type, range.numel);
    const Buffer source(x, 3);
    for (DType out_type : kTypes) {
      Buffer wanted(out_type, range.numel), out(out_type, range.numel, 1);
      zo::cpu::apply_probe_from(distribution, x.data(), type, wanted.data(), out_type, range.numel, term,
                                range.offset);
      zo::cuda::apply_probe_from(distribution, source.data(), type, out.data(), out_type, range.numel, term,
                                 range.offset, kQueue);
      CHECK_SAME(out, wanted, describe("apply_probe_from", distribution, type, range) + " to " + name_of(out_type));
      CHECK_SAME(source, x, describe("apply_probe_from's source", distribution, type, range));
    }

    Buffer sum(x), moved(x, 3);
    zo::cpu::accumulate_probes_from(distribution, sum.data(), type, range.numel, rows.coeffs.data(), rows.seeds.data(),
                                    rows.count(), 0.125, range.offset, update);
    zo::cuda::accumulate_probes_from(distribution, moved.data(), type, range.numel, rows.on_device.data(), rows.count(),
                                     0.125, range.offset, update, kQueue);
    CHECK_SAME(moved, sum, describe("accumulate_probes_from", distribution, type, range));
  }
}

void test_list(Distribution distribution, const std::vector<Range>& where, DType type, const Rows& rows,
               const zo::Update& update) {
  const Term term = {-0.3, 5};
  List x(where, type, 1);
  for (DType out_type : kTypes) {
    List out(where, out_type, 1);
    out.compare(
        describe("apply_probe_from to", distribution, type, where[0]),
        [&](size_t k, Buffer& expected, Range at) {
          zo::cpu::apply_probe_from(distribution, x.pieces[k].data(), type, expected.data(), out_type, at.numel, term,
                                    at.offset);
        },
        [&] { zo::cuda::apply_probe_from(distribution, x.list, out.list, term, kQueue); });
  }
  x.compare(
      describe("accumulate_probes_from", distribution, type, where[0]),
      [&](size_t, Buffer& y, Range at) {
        zo::cpu::accumulate_probes_from(distribution, y.data(), type, at.numel, rows.coeffs.data(), rows.seeds.data(),
                                        rows.count(), 0.125, at.offset, update);
      },
      [&] {
        zo::cuda::accumulate_probes_from(distribution, x.list, rows.on_device.data(), rows.count(), 0.125, update,
                                         kQueue);
      });
}

}  // namespace

void test_cuda_distributions() {
  const int64_t edge = int64_t{1} << 39;
  const Range ranges[] = {{0, 0},   {1, 128},          {33, 0},      {127, 256},
                          {129, 0}, {4097, 128},       {300, edge},  {2500, edge - 384},
                          {9000, 0}, {2559, std::numeric_limits<int64_t>::max() - 2559}};
  int turn = 0;
  for (const Range range : ranges) {
    for (const Distribution distribution : kDistributions) {
      shim::machine().backwards = turn % 2 == 1;
      test_one(distribution, range, Rows(turn % 5), update_of_turn(turn));
      ++turn;
    }
  }
  for (const Distribution distribution : kDistributions) {
    for (DType type : kTypes) {
      shim::machine().backwards = turn % 2 == 0;
      const std::vector<Range> where = place({0, 300, 0, 4097, 5, 8192, 0}, edge - 512);
      test_list(distribution, where, type, Rows(turn % 3), update_of_turn(turn));
      ++turn;
    }
  }
  shim::machine().backwards = false;
}

}  // namespace zo_tests
