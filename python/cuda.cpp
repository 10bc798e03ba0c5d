// The CUDA kernels in zo_kernels._C, as cuda_*. zo_kernels/backends/cuda.py turns tensors into these arguments: device
// addresses, and the device and cudaStream_t that a call is enqueued on.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <limits>
#include <utility>

#include "arguments.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/resident.h"

namespace py = pybind11;

namespace zo_python {
namespace on_cuda {  // module.cpp, which is compiled together with this file, has functions of the same names
namespace {

zo::cuda::Queue queue_of(int device, uintptr_t stream) {
  if (device < 0) throw std::invalid_argument("device is negative");
  return {device, reinterpret_cast<void*>(stream)};
}

void probe(uintptr_t out, int dtype, int64_t numel, uint64_t seed, int64_t offset, int device, uintptr_t stream) {
  check_range(out, numel, offset);
  zo::cuda::probe(reinterpret_cast<void*>(out), to_dtype(dtype), numel, seed, offset, queue_of(device, stream));
}

void apply_probe(uintptr_t x, int x_dtype, uintptr_t out, int out_dtype, int64_t numel, double alpha, uint64_t seed,
                 int64_t offset, int device, uintptr_t stream) {
  check_range(x, numel, offset);
  check_range(out, numel, offset);
  zo::cuda::apply_probe(reinterpret_cast<const void*>(x), to_dtype(x_dtype), reinterpret_cast<void*>(out),
                        to_dtype(out_dtype), numel, {alpha, seed}, offset, queue_of(device, stream));
}

void apply_probes(uintptr_t x, int x_dtype, uintptr_t out, int out_dtype, int64_t numel, uintptr_t alpha,
                  uintptr_t seeds, int64_t num_seeds, int64_t offset, int device, uintptr_t stream) {
  check_range(x, numel, offset);
  check_seeds(seeds, num_seeds);
  if (num_seeds > 0) check_range(out, numel, offset);
  if (alpha == 0) throw std::invalid_argument("null address");
  zo::cuda::apply_probes(reinterpret_cast<const void*>(x), to_dtype(x_dtype), reinterpret_cast<void*>(out),
                         to_dtype(out_dtype), numel, reinterpret_cast<const double*>(alpha),
                         reinterpret_cast<const uint64_t*>(seeds), num_seeds, offset, queue_of(device, stream));
}

void swap_probe(uintptr_t x, int dtype, int64_t numel, double from_alpha, uint64_t from_seed, double to_alpha,
                uint64_t to_seed, int64_t offset, int device, uintptr_t stream) {
  check_range(x, numel, offset);
  zo::cuda::swap_probe(reinterpret_cast<void*>(x), to_dtype(dtype), numel, {from_alpha, from_seed}, {to_alpha, to_seed},
                       offset, queue_of(device, stream));
}

// rows: int64 [num_rows, 2] on the device, seed and quantised coefficient.
void accumulate_probes(uintptr_t x, int dtype, int64_t numel, uintptr_t rows, int64_t num_rows, int shift,
                       int64_t offset, double undo_alpha, uint64_t undo_seed, double decay,
                       double grid, std::optional<uint64_t> rounding_seed, int device,
                       uintptr_t stream) {
  check_range(x, numel, offset);
  check_seeds(rows, num_rows);
  zo::cuda::accumulate_probes(reinterpret_cast<void*>(x), to_dtype(dtype), numel,
                              reinterpret_cast<const zo::cuda::Row*>(rows), num_rows, shift, offset,
                              make_update(undo_alpha, undo_seed, decay, grid, rounding_seed), queue_of(device, stream));
}

// A list in device memory: int64 [count, 4], the fields of ListedPiece, whose pieces have so many tiles together.
zo::cuda::PieceList to_list(uintptr_t rows, int64_t count, int64_t num_tiles, int dtype) {
  if (rows == 0) throw std::invalid_argument("null address");
  if (count < 1 || count > std::numeric_limits<int32_t>::max() || num_tiles < 0)
    throw std::invalid_argument("this is not a list of pieces");
  static_assert(sizeof(zo::cuda::ListedPiece) == 32, "a row is four 64-bit words");
  return {reinterpret_cast<const zo::cuda::ListedPiece*>(rows), count, num_tiles, to_dtype(dtype)};
}

void apply_probe_list(uintptr_t x, int x_dtype, uintptr_t out, int out_dtype, int64_t count, int64_t num_tiles,
                      double alpha, uint64_t seed, int device, uintptr_t stream) {
  zo::cuda::apply_probe(to_list(x, count, num_tiles, x_dtype), to_list(out, count, num_tiles, out_dtype), {alpha, seed},
                        queue_of(device, stream));
}

void swap_probe_list(uintptr_t x, int dtype, int64_t count, int64_t num_tiles, double from_alpha, uint64_t from_seed,
                     double to_alpha, uint64_t to_seed, int device, uintptr_t stream) {
  zo::cuda::swap_probe(to_list(x, count, num_tiles, dtype), {from_alpha, from_seed}, {to_alpha, to_seed},
                       queue_of(device, stream));
}

void accumulate_probes_list(uintptr_t x, int dtype, int64_t count, int64_t num_tiles, uintptr_t rows, int64_t num_rows,
                            int shift, double undo_alpha, uint64_t undo_seed, double decay,
                            double grid, std::optional<uint64_t> rounding_seed, int device,
                            uintptr_t stream) {
  check_seeds(rows, num_rows);
  zo::cuda::accumulate_probes(to_list(x, count, num_tiles, dtype), reinterpret_cast<const zo::cuda::Row*>(rows),
                              num_rows, shift, make_update(undo_alpha, undo_seed, decay, grid, rounding_seed),
                              queue_of(device, stream));
}

// The functions for probes of any distribution: as those above, but rows have a seed and the bits of a double.
void probe_from(int distribution, int sparsity, uintptr_t out, int dtype, int64_t numel, uint64_t seed, int64_t offset,
                int device, uintptr_t stream) {
  check_range(out, numel, offset);
  zo::cuda::probe_from(to_distribution(distribution, sparsity), reinterpret_cast<void*>(out), to_dtype(dtype), numel, seed,
                       offset, queue_of(device, stream));
}

void apply_probe_from(int distribution, int sparsity, uintptr_t x, int x_dtype, uintptr_t out, int out_dtype, int64_t numel,
                      double alpha, uint64_t seed, int64_t offset, int device, uintptr_t stream) {
  check_range(x, numel, offset);
  check_range(out, numel, offset);
  zo::cuda::apply_probe_from(to_distribution(distribution, sparsity), reinterpret_cast<const void*>(x), to_dtype(x_dtype),
                             reinterpret_cast<void*>(out), to_dtype(out_dtype), numel, {alpha, seed}, offset,
                             queue_of(device, stream));
}

void accumulate_probes_from(int distribution, int sparsity, uintptr_t x, int dtype, int64_t numel, uintptr_t rows,
                            int64_t num_rows, double scale, int64_t offset, double undo_alpha, uint64_t undo_seed,
                            double decay, double grid, std::optional<uint64_t> rounding_seed, int device,
                            uintptr_t stream) {
  check_range(x, numel, offset);
  check_seeds(rows, num_rows);
  zo::cuda::accumulate_probes_from(to_distribution(distribution, sparsity), reinterpret_cast<void*>(x), to_dtype(dtype),
                                   numel, reinterpret_cast<const zo::cuda::DrawnRow*>(rows), num_rows, scale, offset,
                                   make_update(undo_alpha, undo_seed, decay, grid, rounding_seed),
                                   queue_of(device, stream));
}

void apply_probe_list_from(int distribution, int sparsity, uintptr_t x, int x_dtype, uintptr_t out, int out_dtype,
                           int64_t count, int64_t num_tiles, double alpha, uint64_t seed, int device,
                           uintptr_t stream) {
  zo::cuda::apply_probe_from(to_distribution(distribution, sparsity), to_list(x, count, num_tiles, x_dtype),
                             to_list(out, count, num_tiles, out_dtype), {alpha, seed}, queue_of(device, stream));
}

void accumulate_probes_list_from(int distribution, int sparsity, uintptr_t x, int dtype, int64_t count, int64_t num_tiles,
                                 uintptr_t rows, int64_t num_rows, double scale, double undo_alpha, uint64_t undo_seed,
                                 double decay, double grid, std::optional<uint64_t> rounding_seed, int device,
                                 uintptr_t stream) {
  check_seeds(rows, num_rows);
  zo::cuda::accumulate_probes_from(to_distribution(distribution, sparsity), to_list(x, count, num_tiles, dtype),
                                   reinterpret_cast<const zo::cuda::DrawnRow*>(rows), num_rows, scale,
                                   make_update(undo_alpha, undo_seed, decay, grid, rounding_seed),
                                   queue_of(device, stream));
}

// sizes: V, E, N, D, rows of the token table.
zo::cuda::ResidentArgs resident_args(const std::array<int64_t, 5>& sizes, int64_t batch_size) {
  for (const int64_t size : {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], batch_size})
    if (size < 1 || size > std::numeric_limits<int32_t>::max())
      throw std::invalid_argument("a size is not in [1, 2^31)");
  zo::cuda::ResidentArgs args = {};
  args.vocab_size = sizes[0];
  args.embed_dim = sizes[1];
  args.num_heads = sizes[2];
  args.head_dim = sizes[3];
  args.num_rows = sizes[4];
  args.batch_size = batch_size;
  return args;
}

void set_steps(zo::cuda::ResidentArgs& args, int64_t num_steps, int64_t steps_at_once) {
  if (num_steps < 1 || num_steps > std::numeric_limits<int32_t>::max() / args.batch_size)
    throw std::invalid_argument("the number of positions is not in [1, 2^31)");
  if (steps_at_once < 1 || steps_at_once > num_steps)
    throw std::invalid_argument("steps_at_once is not in [1, num_steps]");
  args.num_steps = num_steps;
  args.steps_at_once = steps_at_once;
}

int64_t resident_embed_dim(int device) { return zo::cuda::most_embed_dim(zo::cuda::device_limits(device)); }

std::pair<int64_t, int64_t> resident_bytes(const std::array<int64_t, 5>& sizes, int64_t batch_size) {
  const zo::cuda::ResidentBytes bytes = zo::cuda::resident_bytes(resident_args(sizes, batch_size));
  return {bytes.weights, bytes.step};
}

int64_t resident_parts(int64_t batch_size, int64_t num_steps, int64_t steps_at_once) {
  zo::cuda::ResidentArgs args = resident_args({1, 1, 1, 1, 1}, batch_size);
  set_steps(args, num_steps, steps_at_once);
  return zo::cuda::num_parts(args);
}

// The fields of ResidentArgs: float32 parameters as (address, offset) in its order.
void resident(const std::array<std::pair<uintptr_t, int64_t>, 6>& parameters, const std::array<int64_t, 5>& sizes,
              uintptr_t rows, uintptr_t tokens, uintptr_t targets, int64_t batch_size, int64_t num_steps,
              int64_t steps_at_once, uintptr_t seeds, int64_t num_seeds, double eps, uintptr_t h, uintptr_t c,
              uintptr_t scratch, uintptr_t nats, int device, uintptr_t stream) {
  zo::cuda::ResidentArgs args = resident_args(sizes, batch_size);
  set_steps(args, num_steps, steps_at_once);
  const int64_t V = sizes[0], E = sizes[1], D = sizes[3], H = sizes[2] * D;
  const int64_t numels[6] = {V * E, 4 * H * E, 4 * H * D, 4 * H, V * H, V};
  zo::cuda::Parameter* const fields[6] = {&args.embedding, &args.input_weight,  &args.recurrent_weight,
                                          &args.bias,      &args.output_weight, &args.output_bias};
  for (size_t i = 0; i < 6; ++i) {
    const auto& [address, offset] = parameters[i];
    check_range(address, numels[i], offset == -1 ? 0 : offset);
    *fields[i] = {reinterpret_cast<const float*>(address), offset};
  }
  check_seeds(seeds, num_seeds);
  if (rows == 0 || tokens == 0 || targets == 0 || nats == 0 || scratch == 0 || (h == 0) != (c == 0))
    throw std::invalid_argument("null address");
  args.rows = reinterpret_cast<const int64_t*>(rows);
  args.tokens = reinterpret_cast<const int32_t*>(tokens);
  args.targets = reinterpret_cast<const int32_t*>(targets);
  args.seeds = reinterpret_cast<const uint64_t*>(seeds);
  args.num_seeds = num_seeds;
  args.eps = static_cast<float>(eps);
  args.h = reinterpret_cast<float*>(h);
  args.c = reinterpret_cast<float*>(c);
  args.scratch = reinterpret_cast<char*>(scratch);
  args.nats = reinterpret_cast<double*>(nats);
  zo::cuda::evaluate_resident(args, queue_of(device, stream));
}

}  // namespace
}  // namespace on_cuda

void bind_cuda(py::module_& m) {
  using namespace on_cuda;
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def("cuda_build", &zo::cuda::build_description);
  m.def("cuda_device", &zo::cuda::device_description);
  m.def("cuda_problem", &zo::cuda::device_problem, no_gil);
  m.def("cuda_probe", &probe, no_gil);
  m.def("cuda_apply_probe", &apply_probe, no_gil);
  m.def("cuda_apply_probes", &apply_probes, no_gil);
  m.def("cuda_swap_probe", &swap_probe, no_gil);
  m.def("cuda_accumulate_probes", &accumulate_probes, no_gil);
  m.def("cuda_apply_probe_list", &apply_probe_list, no_gil);
  m.def("cuda_swap_probe_list", &swap_probe_list, no_gil);
  m.def("cuda_accumulate_probes_list", &accumulate_probes_list, no_gil);
  m.def("cuda_probe_from", &probe_from, no_gil);
  m.def("cuda_apply_probe_from", &apply_probe_from, no_gil);
  m.def("cuda_accumulate_probes_from", &accumulate_probes_from, no_gil);
  m.def("cuda_apply_probe_list_from", &apply_probe_list_from, no_gil);
  m.def("cuda_accumulate_probes_list_from", &accumulate_probes_list_from, no_gil);
  m.def("cuda_resident_embed_dim", &resident_embed_dim);
  m.def("cuda_resident_bytes", &resident_bytes);
  m.def("cuda_resident_parts", &resident_parts);
  m.def("cuda_resident", &resident, no_gil);
}

}  // namespace zo_python
