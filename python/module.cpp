// zo_kernels._C: the kernels of csrc for Python. The functions take addresses and sizes, check arguments that would
// crash a kernel, release the GIL, and do nothing else. zo_kernels/backends/cpu.py turns tensors into these arguments.
// forwards.cpp has the fused forwards, cuda.cpp the CUDA kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "cpu/launch.h"
#include "cpu/parallel.h"
#include "arguments.h"
#include "philox.h"

namespace py = pybind11;

namespace {

using zo::DType;
using namespace zo_python;

void probe(uintptr_t out, int dtype, int64_t numel, uint64_t seed, int64_t offset) {
  check_range(out, numel, offset);
  zo::cpu::probe(reinterpret_cast<void*>(out), to_dtype(dtype), numel, seed, offset);
}

void apply_probe(uintptr_t x, int x_dtype, uintptr_t out, int out_dtype, int64_t numel, double alpha, uint64_t seed,
                 int64_t offset) {
  check_range(x, numel, offset);
  check_range(out, numel, offset);
  zo::cpu::apply_probe(reinterpret_cast<const void*>(x), to_dtype(x_dtype), reinterpret_cast<void*>(out),
                       to_dtype(out_dtype), numel, {alpha, seed}, offset);
}

void swap_probe(uintptr_t x, int dtype, int64_t numel, double from_alpha, uint64_t from_seed, double to_alpha,
                uint64_t to_seed, int64_t offset) {
  check_range(x, numel, offset);
  zo::cpu::swap_probe(reinterpret_cast<void*>(x), to_dtype(dtype), numel, {from_alpha, from_seed},
                      {to_alpha, to_seed}, offset);
}

void accumulate_probes(uintptr_t x, int dtype, int64_t numel, uintptr_t quantised, uintptr_t seeds, int64_t num_seeds,
                       int shift, int64_t offset, double undo_alpha, uint64_t undo_seed, double decay,
                       double grid, std::optional<uint64_t> rounding_seed) {
  check_range(x, numel, offset);
  check_seeds(quantised, num_seeds);
  check_seeds(seeds, num_seeds);
  const zo::Update update = make_update(undo_alpha, undo_seed, decay, grid, rounding_seed);
  zo::cpu::accumulate_probes(reinterpret_cast<void*>(x), to_dtype(dtype), numel,
                             reinterpret_cast<const int32_t*>(quantised), reinterpret_cast<const uint64_t*>(seeds),
                             num_seeds, shift, offset, update);
}

void probe_from(int stream, int sparsity, uintptr_t out, int dtype, int64_t numel, uint64_t seed, int64_t offset) {
  check_range(out, numel, offset);
  zo::cpu::probe_from(to_distribution(stream, sparsity), reinterpret_cast<void*>(out), to_dtype(dtype), numel, seed,
                      offset);
}

void apply_probe_from(int stream, int sparsity, uintptr_t x, int x_dtype, uintptr_t out, int out_dtype, int64_t numel,
                      double alpha, uint64_t seed, int64_t offset) {
  check_range(x, numel, offset);
  check_range(out, numel, offset);
  zo::cpu::apply_probe_from(to_distribution(stream, sparsity), reinterpret_cast<const void*>(x), to_dtype(x_dtype),
                            reinterpret_cast<void*>(out), to_dtype(out_dtype), numel, {alpha, seed}, offset);
}

void accumulate_probes_from(int stream, int sparsity, uintptr_t x, int dtype, int64_t numel, uintptr_t coeffs,
                            uintptr_t seeds, int64_t num_seeds, double scale, int64_t offset, double undo_alpha,
                            uint64_t undo_seed, double decay, double grid, std::optional<uint64_t> rounding_seed) {
  check_range(x, numel, offset);
  check_seeds(coeffs, num_seeds);
  check_seeds(seeds, num_seeds);
  const zo::Update update = make_update(undo_alpha, undo_seed, decay, grid, rounding_seed);
  zo::cpu::accumulate_probes_from(to_distribution(stream, sparsity), reinterpret_cast<void*>(x), to_dtype(dtype), numel,
                                  reinterpret_cast<const double*>(coeffs), reinterpret_cast<const uint64_t*>(seeds),
                                  num_seeds, scale, offset, update);
}

// The functions on lists of pieces: as those above, for tables that `to_pieces` reads.
void apply_probe_list(const py::bytes& x, int x_dtype, const py::bytes& out, int out_dtype, double alpha,
                      uint64_t seed) {
  const zo::Pieces from = to_pieces(x, x_dtype), to = to_pieces(out, out_dtype);
  check_alike(from, to);
  zo::cpu::apply_probe(from, to, {alpha, seed});
}

void swap_probe_list(const py::bytes& x, int dtype, double from_alpha, uint64_t from_seed, double to_alpha,
                     uint64_t to_seed) {
  zo::cpu::swap_probe(to_pieces(x, dtype), {from_alpha, from_seed}, {to_alpha, to_seed});
}

void accumulate_probes_list(const py::bytes& x, int dtype, uintptr_t quantised, uintptr_t seeds, int64_t num_seeds,
                            int shift, double undo_alpha, uint64_t undo_seed, double decay,
                            double grid, std::optional<uint64_t> rounding_seed) {
  check_seeds(quantised, num_seeds);
  check_seeds(seeds, num_seeds);
  zo::cpu::accumulate_probes(to_pieces(x, dtype), reinterpret_cast<const int32_t*>(quantised),
                             reinterpret_cast<const uint64_t*>(seeds), num_seeds, shift,
                             make_update(undo_alpha, undo_seed, decay, grid, rounding_seed));
}

void apply_probe_list_from(int stream, int sparsity, const py::bytes& x, int x_dtype, const py::bytes& out,
                           int out_dtype, double alpha, uint64_t seed) {
  const zo::Pieces from = to_pieces(x, x_dtype), to = to_pieces(out, out_dtype);
  check_alike(from, to);
  zo::cpu::apply_probe_from(to_distribution(stream, sparsity), from, to, {alpha, seed});
}

void accumulate_probes_list_from(int stream, int sparsity, const py::bytes& x, int dtype, uintptr_t coeffs,
                                 uintptr_t seeds, int64_t num_seeds, double scale, double undo_alpha,
                                 uint64_t undo_seed, double decay, double grid, std::optional<uint64_t> rounding_seed) {
  check_seeds(coeffs, num_seeds);
  check_seeds(seeds, num_seeds);
  zo::cpu::accumulate_probes_from(to_distribution(stream, sparsity), to_pieces(x, dtype),
                                  reinterpret_cast<const double*>(coeffs), reinterpret_cast<const uint64_t*>(seeds),
                                  num_seeds, scale, make_update(undo_alpha, undo_seed, decay, grid, rounding_seed));
}

uint64_t fold_probes(int64_t numel, uintptr_t seeds, int64_t num_seeds, int64_t offset) {
  check_range(1, numel, offset);
  check_seeds(seeds, num_seeds);
  return zo::cpu::fold_probes(numel, reinterpret_cast<const uint64_t*>(seeds), num_seeds, offset);
}

py::tuple philox4x32_10(const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
  const zo::Philox4 out = zo::philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return py::make_tuple(out.word[0], out.word[1], out.word[2], out.word[3]);
}

py::dict streams() {
  py::dict table;
  table["RADEMACHER"] = static_cast<int>(zo::kStreamRademacher);
  table["NORMAL"] = static_cast<int>(zo::kStreamNormal);
  table["UNIFORM"] = static_cast<int>(zo::kStreamUniform);
  table["STOCHASTIC_ROUNDING"] = static_cast<int>(zo::kStreamStochasticRounding);
  table["SEEDS"] = static_cast<int>(zo::kStreamSeeds);
  table["SPARSITY"] = static_cast<int>(zo::kStreamSparsity);
  table["ACTIVITY"] = static_cast<int>(zo::kStreamActivity);
  return table;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.doc() = "Compiled kernels of zo_kernels; called through zo_kernels.ops.";
  m.def("probe", &probe, no_gil);
  m.def("apply_probe", &apply_probe, no_gil);
  m.def("swap_probe", &swap_probe, no_gil);
  m.def("accumulate_probes", &accumulate_probes, no_gil);
  m.def("probe_from", &probe_from, no_gil);
  m.def("apply_probe_from", &apply_probe_from, no_gil);
  m.def("accumulate_probes_from", &accumulate_probes_from, no_gil);
  m.def("apply_probe_list", &apply_probe_list, no_gil);
  m.def("swap_probe_list", &swap_probe_list, no_gil);
  m.def("accumulate_probes_list", &accumulate_probes_list, no_gil);
  m.def("apply_probe_list_from", &apply_probe_list_from, no_gil);
  m.def("accumulate_probes_list_from", &accumulate_probes_list_from, no_gil);
  m.def("fold_probes", &fold_probes, no_gil);
  m.def("philox4x32_10", &philox4x32_10);
  m.def("streams", &streams);
  m.def("compiled_isas", &zo::cpu::compiled_isas);
  m.def("supported_isas", &zo::cpu::supported_isas);
  m.def("active_isa", &zo::cpu::active_isa);
  m.def("set_isa", &zo::cpu::set_active_isa);
  m.def("max_threads", &zo::cpu::max_threads);
  m.def("has_openmp", &zo::cpu::has_openmp);
  zo_python::bind_forwards(m);
  zo_python::bind_cuda(m);
  m.attr("compiler") = ZO_COMPILER;
}
