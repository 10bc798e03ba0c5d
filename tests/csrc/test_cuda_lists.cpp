// Lists of pieces in one launch: each piece as the CPU kernels have it, one at a time.
#include <cuda_runtime.h>

#include <vector>

#include "cpu/launch.h"
#include "cuda/launch.h"
#include "lists.h"
#include "scalar.h"

namespace zo_tests {
namespace {

using zo::Term;

const zo::cuda::Queue kQueue = {0, nullptr};

void test_list(const std::vector<Range>& where, DType type, int lead) {
  const Term term = {0.3, 0xfedcba9876543210u}, next = {1e-41, 5};
  List x(where, type, lead);
  for (DType out_type : kTypes) {
    List out(where, out_type, lead ? 16 : 0);
    out.compare(
        "apply_probe to",
        [&](size_t k, Buffer& expected, Range at) {
          zo::cpu::apply_probe(x.pieces[k].data(), type, expected.data(), out_type, at.numel, term, at.offset);
        },
        [&] { zo::cuda::apply_probe(x.list, out.list, term, kQueue); });
  }
  x.compare(
      "apply_probe",
      [&](size_t, Buffer& y, Range at) {
        zo::cpu::apply_probe(y.data(), type, y.data(), type, at.numel, term, at.offset);
      },
      [&] { zo::cuda::apply_probe(x.list, x.list, term, kQueue); });
  x.compare(
      "swap_probe",
      [&](size_t, Buffer& y, Range at) { zo::cpu::swap_probe(y.data(), type, at.numel, term, next, at.offset); },
      [&] { zo::cuda::swap_probe(x.list, term, next, kQueue); });
  zo::Update all;
  all.has_undo = true;
  all.undo = {-0.125, 77};
  all.decay = 0.99;
  all.grid = 0x1p-20;
  all.rounds_at_random = true;
  all.rounding_seed = ~uint64_t{0};
  const int32_t quantised[3] = {1 << 30, -(1 << 29), 3};
  const uint64_t seeds[3] = {1, 0x9e3779b97f4a7c15u, ~uint64_t{0}};
  const zo::cuda::Row rows[3] = {{seeds[0], quantised[0]}, {seeds[1], quantised[1]}, {seeds[2], quantised[2]}};
  for (const int64_t count : {0, 3}) {
    for (const zo::Update& update : {zo::Update{}, all}) {
      x.compare(
          "accumulate_probes",
          [&](size_t, Buffer& y, Range at) {
            zo::cpu::accumulate_probes(y.data(), type, at.numel, quantised, seeds, count, 31, at.offset, update);
          },
          [&] { zo::cuda::accumulate_probes(x.list, rows, count, 31, update, kQueue); });
    }
  }
}

}  // namespace

void test_lists() {
  std::vector<int64_t> many;
  for (int64_t i = 0; i < 300; ++i) many.push_back(i * 1237 % 301 * (i % 50 == 0 ? 40 : 1));
  const std::vector<std::vector<Range>> lists = {
      place({0, 0, 4096, 1, 0, 4097, 129, 8492, 127, 0, 16384, 0}, (int64_t{1} << 39) - 4096 - 1280),
      place({20481}, int64_t{1} << 56),
      place({0, 0}, 0),
      place(many, 128),
  };
  for (const auto& where : lists) {
    for (DType type : kTypes) {
      for (const int lead : {0, 1}) {
        if (lead && where.size() == 300 && type != DType::kFloat32) continue;  // enough
        shim::machine().backwards = lead == 0;
        test_list(where, type, lead);
      }
    }
  }
  shim::machine().backwards = false;
}

}  // namespace zo_tests
