// Tests of the CUDA kernels without a GPU: the .cu files, compiled by the host compiler over shim/cuda_runtime.h,
// against the CPU kernels bit for bit. Threads of a block run forwards and backwards: where a barrier is missing the two
// differ.
#include <cuda_runtime.h>

#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/launch.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "scalar.h"

namespace {

using namespace zo_tests;
using zo::Term;
using zo::cuda::Queue;

const Queue kQueue = {0, nullptr};

// Sizes around accesses (2 to 8 elements), words (32), blocks (128), tiles (4096) and thread blocks (16384); offsets on
// both sides of where the high half of the block index changes, and the end of the index space.
std::vector<Range> ranges() {
  std::vector<Range> all;
  for (int64_t numel : {0, 1, 2, 7, 8, 9, 31, 33, 127, 129, 300, 4095, 4096, 4097, 5003, 16384, 20481})
    all.push_back({numel, 128 * (numel % 7)});
  const int64_t edge = int64_t{1} << 39;
  for (int64_t blocks : {0, 1, 17, 32, 40}) all.push_back({4500, edge - 128 * blocks});
  all.push_back({4500, 5 * edge - 384});
  all.push_back({2559, std::numeric_limits<int64_t>::max() - 2559});
  return all;
}

std::string describe(const char* kernel, DType type, Range range, int lead) {
  return std::string(kernel) + " " + name_of(type) + " numel " + std::to_string(range.numel) + " offset " +
         std::to_string(range.offset) + " lead " + std::to_string(lead);
}

// Aligned and not; threads in both orders.
template <class F>
void for_each_way(F f) {
  for (const int lead : {0, 1, 16}) {
    shim::machine().backwards = lead == 0 || lead == 1;
    f(lead);
    shim::machine().backwards = false;
    if (lead == 0) f(lead);
  }
}

void test_probe(Range range, uint64_t seed) {
  for (DType type : kTypes) {
    Buffer expected(type, range.numel);
    zo::cpu::probe(expected.data(), type, range.numel, seed, range.offset);
    for_each_way([&](int lead) {
      Buffer out(type, range.numel, lead);
      zo::cuda::probe(out.data(), type, range.numel, seed, range.offset, kQueue);
      CHECK_SAME(out, expected, describe("probe", type, range, lead));
    });
  }
}

void test_apply(Range range, Term term) {
  for (DType in : kTypes) {
    const Buffer x = make_values(in, range.numel);
    for (DType out_type : kTypes) {
      Buffer expected(out_type, range.numel);
      zo::cpu::apply_probe(x.data(), in, expected.data(), out_type, range.numel, term, range.offset);
      for_each_way([&](int lead) {
        Buffer source(x, lead), out(out_type, range.numel, lead == 1 ? 16 : lead);
        zo::cuda::apply_probe(source.data(), in, out.data(), out_type, range.numel, term, range.offset, kQueue);
        CHECK_SAME(out, expected, describe("apply_probe", in, range, lead) + " to " + name_of(out_type));
        CHECK_SAME(source, x, describe("apply_probe's source", in, range, lead));
        if (in != out_type) return;
        zo::cuda::apply_probe(source.data(), in, source.data(), in, range.numel, term, range.offset, kQueue);
        CHECK_SAME(source, expected, describe("apply_probe in place", in, range, lead));
      });
    }
  }
}

void test_swap(Range range, Term from, Term to) {
  for (DType type : kTypes) {
    const Buffer x = make_values(type, range.numel);
    Buffer expected(x);
    zo::cpu::swap_probe(expected.data(), type, range.numel, from, to, range.offset);
    for_each_way([&](int lead) {
      Buffer actual(x, lead);
      zo::cuda::swap_probe(actual.data(), type, range.numel, from, to, range.offset, kQueue);
      CHECK_SAME(actual, expected, describe("swap_probe", type, range, lead));
    });
  }
}

void test_apply_probes(Range range, double alpha, const std::vector<uint64_t>& seeds) {
  const int64_t members = 2 * static_cast<int64_t>(seeds.size());
  for (DType in : kTypes) {
    const Buffer x = make_values(in, range.numel);
    for (DType out_type : kTypes) {
      Buffer expected(out_type, members * range.numel);
      for (int64_t m = 0; m < members; ++m)
        zo::cpu::apply_probe(x.data(), in, expected.data() + size_in_bytes(out_type, m * range.numel), out_type,
                             range.numel, {m % 2 ? -alpha : alpha, seeds[m / 2]}, range.offset);
      for_each_way([&](int lead) {
        Buffer source(x, lead), out(out_type, members * range.numel, lead);
        zo::cuda::apply_probes(source.data(), in, out.data(), out_type, range.numel, &alpha, seeds.data(), members / 2,
                               range.offset, kQueue);
        CHECK_SAME(out, expected, describe("apply_probes", in, range, lead) + " to " + name_of(out_type));
      });
    }
  }
}

void test_accumulate(Range range, const std::vector<int32_t>& quantised, int shift, const zo::Update& update) {
  std::vector<uint64_t> seeds;
  std::vector<zo::cuda::Row> rows;
  for (size_t i = 0; i < quantised.size(); ++i) {
    seeds.push_back(0x9e3779b97f4a7c15u * (i + 1));
    rows.push_back({seeds[i], quantised[i]});
  }
  const int64_t count = static_cast<int64_t>(rows.size());
  for (DType type : kTypes) {
    const Buffer x = make_values(type, range.numel);
    Buffer expected(x);
    zo::cpu::accumulate_probes(expected.data(), type, range.numel, quantised.data(), seeds.data(), count, shift,
                               range.offset, update);
    for_each_way([&](int lead) {
      Buffer actual(x, lead);
      zo::cuda::accumulate_probes(actual.data(), type, range.numel, rows.data(), count, shift, range.offset, update,
                                  kQueue);
      CHECK_SAME(actual, expected, describe("accumulate_probes", type, range, lead));
    });
  }
}

void test_many_members() {  // more than a grid has rows
  const int64_t count = 65537;
  std::vector<uint64_t> seeds(count);
  for (int64_t i = 0; i < count; ++i) seeds[i] = static_cast<uint64_t>(i) * 77;
  const float x[1] = {1.0f};
  const double alpha = 0.5;
  std::vector<float> out(2 * count, -1.0f);
  zo::cuda::apply_probes(x, DType::kFloat32, out.data(), DType::kFloat32, 1, &alpha, seeds.data(), count, 256, kQueue);
  bool right = true;
  for (int64_t i = 0; i < count; ++i) {
    const float step = 0.5f * static_cast<float>(sign(seeds[i], 256));
    right = right && out[2 * i] == 1.0f + step && out[2 * i + 1] == 1.0f - step;
  }
  CHECK(right);
}

void test_queue() {
  float x[4] = {};
  shim::machine().device = 0;
  zo::cuda::apply_probe(x, DType::kFloat32, x, DType::kFloat32, 4, {1.0, 3}, 0, {1, nullptr});
  CHECK(shim::machine().device == 0);  // back where it was
  const int launches = shim::machine().launches;
  bool refused = false;
  try {
    zo::cuda::apply_probe(x, DType::kFloat32, x, DType::kFloat32, 4, {1.0, 3}, 0, {2, nullptr});
  } catch (const std::runtime_error& error) {
    refused = std::string(error.what()) == "cudaSetDevice: an error of the shim";
  }
  CHECK(refused && shim::machine().launches == launches);
  shim::machine().error = cudaErrorInvalidDevice;
  refused = false;
  try {
    zo::cuda::probe(x, DType::kFloat32, 4, 3, 0, kQueue);
  } catch (const std::runtime_error& error) {
    refused = std::string(error.what()) == "probe: an error of the shim";
  }
  CHECK(refused && shim::machine().error == cudaSuccess);
  zo::cuda::probe(nullptr, DType::kFloat32, 0, 3, 0, {2, nullptr});  // nothing to do: no device is asked for
}

// What a device that does not run these kernels is said to lack, and that nothing is left of the attempt.
void test_device() {
  shim::Machine& m = shim::machine();
  const std::string old = "the NVIDIA driver is older than CUDA 13.0, which zo_kernels was built with: update the driver, "
                          "or build zo_kernels with an older nvcc";
  const std::pair<cudaError_t, std::string> problems[] = {
      {cudaSuccess, ""},
      {cudaErrorInsufficientDriver, old},
      {cudaErrorUnsupportedPtxVersion, old},
      {cudaErrorNoKernelImageForDevice,
       "a GPU of the shim has compute capability 7.5, and the kernels need 8.0 or newer"},
      {cudaErrorInvalidValue, "its kernels can't be loaded (an error of the shim)"},
  };
  for (const auto& [error, problem] : problems) {
    m.kernel_error = m.error = error;
    CHECK(zo::cuda::device_problem(1) == problem);
    CHECK(m.device == 0 && m.error == cudaSuccess);
  }
  m.kernel_error = cudaErrorInvalidDeviceFunction;
  m.compute_capability = 86;
  CHECK(zo::cuda::device_problem(0) == "a GPU of the shim has compute capability 8.6, and zo_kernels was built for "
                                       "80 90: build it with CUDAARCHS=86");
  m.kernel_error = cudaSuccess;
  CHECK(zo::cuda::device_problem(2) == "its kernels can't be loaded (an error of the shim)");
}

}  // namespace

int main() {
  zo::cpu::set_active_isa("baseline");  // the rival: tested against scalar loops in test_kernels.cpp
  const std::vector<int32_t> large = {1 << 30, -(1 << 29), 3, 0, -7, (1 << 28) + 1, -(1 << 27)};
  zo::Update all;
  all.has_undo = true;
  all.undo = {-0.125, 0xfedcba9876543210u};
  all.decay = 0.99;
  all.grid = 0x1p-20;
  zo::Update at_random = all;
  at_random.grid = 0.0;
  at_random.rounds_at_random = true;
  at_random.rounding_seed = 0xfedcba9876543210u;
  zo::Update tiny;
  tiny.has_undo = true;
  tiny.undo = {1e-41, 3};
  tiny.grid = 0x1p-126;
  for (const Range& range : ranges()) {
    test_probe(range, 0x9e3779b97f4a7c15u);
    test_apply(range, {0.3, 0xfedcba9876543210u});
    test_swap(range, {-0.3, ~uint64_t{0}}, {1e-41, 5});
    test_apply_probes(range, -0.7, {7, ~uint64_t{0}, 0x9e3779b97f4a7c15u});
    test_accumulate(range, {}, 0, {});
    test_accumulate(range, large, 31, {});
    test_accumulate(range, {std::numeric_limits<int32_t>::max()}, 126, tiny);
    test_accumulate(range, {5, -123456789}, -96, all);
    test_accumulate(range, {5, -123456789}, 50, at_random);
  }
  for (const double alpha : {0.0, -0.0, 1e-41, 1e-50, -3e38}) test_apply({300, 128}, {alpha, 42});
  test_accumulate({5000, 1280}, std::vector<int32_t>(1000, 2147483), 20, all);
  test_lists();
  test_cuda_distributions();
  test_many_members();
  test_queue();
  test_device();
  std::printf("%d checks passed, %d failed\n", g_passed, g_failed);
  return g_failed != 0;
}
