// zo_kernels._C: the kernels of csrc for Python. The functions take addresses and sizes, check arguments that would
// crash a kernel, release the GIL, and do nothing else. zo_kernels/backends/cpu.py turns tensors into these arguments.
// cuda.cpp has the CUDA kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/activity/activity.h"
#include "cpu/dnc/dnc.h"
#include "cpu/launch.h"
#include "cpu/parallel.h"
#include "cpu/population/population.h"
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

// The fields of PopulationArgs: parameters as (address, offset) in its order, those that the model lacks at address 0;
// sizes V, E, L, N, D.
void evaluate_population(int cell, int dtype, const std::array<std::pair<uintptr_t, int64_t>, 11>& parameters,
                         const std::array<int64_t, 5>& sizes, bool residual, uintptr_t tokens, uintptr_t targets,
                         int64_t batch_size, int64_t num_steps, uintptr_t seeds, int64_t num_seeds, int num_signs,
                         double eps, bool bfloat16, uintptr_t h, uintptr_t c, uintptr_t nats, uintptr_t correct,
                         uintptr_t logits) {
  if (cell < 0 || cell > 2) throw std::invalid_argument("cell code " + std::to_string(cell) + " is not in 0..2");
  if (to_dtype(dtype) == DType::kFloat64) throw std::invalid_argument("the population forward computes in float32");
  if (num_signs != 1 && num_signs != 2) throw std::invalid_argument("num_signs is neither 1 nor 2");
  for (const int64_t size : {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], batch_size, num_steps})
    if (size < 1) throw std::invalid_argument("a size is below 1");
  check_seeds(seeds, num_seeds);
  zo::cpu::PopulationArgs args = {};
  args.cell = static_cast<zo::cpu::Cell>(cell);
  args.type = to_dtype(dtype);
  zo::cpu::Parameter* const fields[11] = {
      &args.embedding,   &args.input_weight,       &args.recurrent_weight,       &args.bias,       &args.output_weight,
      &args.output_bias, &args.upper_input_weight, &args.upper_recurrent_weight, &args.upper_bias, &args.norm_weight,
      &args.norm_bias};
  const zo::cpu::CellShape shape = zo::cpu::cell_shape(args.cell);
  const int64_t V = sizes[0], E = sizes[1], L = sizes[2], D = sizes[4], H = sizes[3] * D;
  const int64_t input = shape.input_rows * H, recurrent = shape.recurrent_rows * H * D, bias = shape.rows * H;
  const int64_t numels[11] = {V * E,       input * E, recurrent, bias, V * H, V, (L - 1) * input * H, (L - 1) * recurrent,
                              (L - 1) * bias, L * H,     L * H};
  args.layer_norm = parameters[9].first != 0;
  for (size_t i = 0; i < 11; ++i) {
    if ((i >= 6 && i < 9 && L == 1) || (i >= 9 && !args.layer_norm)) continue;
    if (parameters[i].first == 0) throw std::invalid_argument("null address");
    if (parameters[i].second != -1) check_range(parameters[i].first, numels[i], parameters[i].second);
    *fields[i] = {reinterpret_cast<const void*>(parameters[i].first), numels[i], parameters[i].second};
  }
  args.vocab_size = V;
  args.embed_dim = E;
  args.num_layers = L;
  args.num_heads = sizes[3];
  args.head_dim = D;
  args.residual = residual;
  args.tokens = reinterpret_cast<const int64_t*>(tokens);
  args.targets = reinterpret_cast<const int64_t*>(targets);
  args.batch_size = batch_size;
  args.num_steps = num_steps;
  args.seeds = reinterpret_cast<const uint64_t*>(seeds);
  args.num_seeds = num_seeds;
  args.num_signs = num_signs;
  args.eps = eps;
  args.bfloat16 = bfloat16;
  if (tokens == 0 || nats == 0 || (h != 0 && c == 0 && shape.has_cell_state))
    throw std::invalid_argument("null address");
  args.h = reinterpret_cast<float*>(h);
  args.c = reinterpret_cast<float*>(c);
  args.nats = reinterpret_cast<double*>(nats);
  args.correct = reinterpret_cast<int64_t*>(correct);
  args.logits = reinterpret_cast<float*>(logits);
  zo::cpu::evaluate_population(args);
}

// The fields of DncArgs: parameters as (address, offset) in the order of the model's, sizes V, E, H, N, W, R.
void evaluate_dnc(int model, int dtype, const std::vector<std::pair<uintptr_t, int64_t>>& parameters,
                  const std::array<int64_t, 6>& sizes, uintptr_t initial_memory, uintptr_t tokens, uintptr_t targets,
                  int64_t batch_size, int64_t num_steps, uintptr_t seeds, int64_t num_seeds, int num_signs, double eps,
                  const std::vector<uintptr_t>& states, uintptr_t nats, uintptr_t correct) {
  if (model != 0 && model != 1) throw std::invalid_argument("model code " + std::to_string(model) + " is not in 0..1");
  if (to_dtype(dtype) == DType::kFloat64) throw std::invalid_argument("the population forward computes in float32");
  if (num_signs != 1 && num_signs != 2) throw std::invalid_argument("num_signs is neither 1 nor 2");
  for (const int64_t size : {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], batch_size, num_steps})
    if (size < 1) throw std::invalid_argument("a size is below 1");
  check_seeds(seeds, num_seeds);
  zo::cpu::DncArgs args = {};
  args.model = static_cast<zo::cpu::DncModel>(model);
  args.type = to_dtype(dtype);
  args.sizes = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
  const bool paper = model == 1;
  const int64_t V = sizes[0], E = sizes[1], H = sizes[2], W = sizes[4], R = sizes[5], reads = R * W;
  const int64_t inputs = E + reads, outputs = H + reads;
  const int64_t interface = paper ? reads + 3 * W + 1 : reads + 3 * W + 5 * R + 3;
  using Field = std::pair<zo::cpu::Parameter*, int64_t>;
  std::vector<Field> fields = {{&args.embedding, V * E}};
  const auto norm = [&](zo::cpu::DncNorm& n, int64_t size) {
    fields.insert(fields.end(), {{&n.weight, size}, {&n.bias, size}});
  };
  if (paper) norm(args.input_norm, inputs);
  fields.insert(fields.end(), {{&args.controller_weight, 4 * H * (inputs + H)}, {&args.controller_bias, 4 * H}});
  if (paper) {
    fields.emplace_back(&args.recurrent_bias, 4 * H);
    norm(args.hidden_norm, H);
  }
  fields.insert(fields.end(), {{&args.interface_weight, interface * H}, {&args.interface_bias, interface}});
  if (paper) {
    norm(args.read_key_norm, W);
    norm(args.write_key_norm, W);
    norm(args.memory_norm, W);
    norm(args.output_norm, outputs);
  }
  fields.insert(fields.end(), {{&args.output_weight, V * outputs}, {&args.output_bias, V}});
  if (parameters.size() != fields.size()) throw std::invalid_argument("the number of parameters is wrong");
  for (size_t i = 0; i < fields.size(); ++i) {
    if (parameters[i].first == 0) throw std::invalid_argument("null address");
    if (parameters[i].second != -1) check_range(parameters[i].first, fields[i].second, parameters[i].second);
    *fields[i].first = {reinterpret_cast<const void*>(parameters[i].first), fields[i].second, parameters[i].second};
  }
  const size_t num_states = paper ? 4 : zo::cpu::kDncStates;
  if (!states.empty() && states.size() != num_states) throw std::invalid_argument("the number of states is wrong");
  for (size_t i = 0; i < states.size(); ++i) {
    if (states[i] == 0) throw std::invalid_argument("null address");
    args.states[i] = reinterpret_cast<float*>(states[i]);
  }
  if (tokens == 0 || targets == 0 || nats == 0) throw std::invalid_argument("null address");
  args.initial_memory = reinterpret_cast<const float*>(initial_memory);
  args.tokens = reinterpret_cast<const int64_t*>(tokens);
  args.targets = reinterpret_cast<const int64_t*>(targets);
  args.batch_size = batch_size;
  args.num_steps = num_steps;
  args.seeds = reinterpret_cast<const uint64_t*>(seeds);
  args.num_seeds = num_seeds;
  args.num_signs = num_signs;
  args.eps = eps;
  args.nats = reinterpret_cast<double*>(nats);
  args.correct = reinterpret_cast<int64_t*>(correct);
  zo::cpu::evaluate_dnc(args);
}

// sizes: V, N, D, rows and columns of a head of the table. gradients: of the table, the recurrent weights, the output
// weights and the output biases.
void perturb_activities(int cell, const std::array<int64_t, 5>& sizes, uintptr_t table, uintptr_t table_row,
                        uintptr_t recurrent_weight, uintptr_t output_weight, uintptr_t output_bias, uintptr_t targets,
                        int64_t batch_size, int64_t num_steps, uintptr_t h, uintptr_t c, uintptr_t seeds,
                        int64_t num_seeds, uint32_t first_sequence, float sigma, int64_t credit_length, uintptr_t nats,
                        const std::array<uintptr_t, 4>& gradients) {
  if (cell < 0 || cell > 2) throw std::invalid_argument("cell code " + std::to_string(cell) + " is not in 0..2");
  for (const int64_t size : {sizes[0], sizes[1], sizes[2], sizes[3], batch_size, num_steps, credit_length})
    if (size < 1) throw std::invalid_argument("a size is below 1");
  const zo::cpu::CellShape shape = zo::cpu::cell_shape(static_cast<zo::cpu::Cell>(cell));
  if (sizes[4] % 16 != 0 || sizes[4] < sizes[2] * shape.rows) throw std::invalid_argument("too few columns");
  for (const uintptr_t address : {table, table_row, recurrent_weight, output_weight, output_bias, targets, nats,
                                  gradients[0], gradients[1], gradients[2], gradients[3]})
    if (address == 0) throw std::invalid_argument("null address");
  if ((h != 0 && c == 0 && shape.has_cell_state) || (num_seeds > 0 && seeds == 0))
    throw std::invalid_argument("null address");
  zo::cpu::ActivityArgs args = {};
  args.cell = static_cast<zo::cpu::Cell>(cell);
  args.vocab_size = sizes[0];
  args.num_heads = sizes[1];
  args.head_dim = sizes[2];
  args.table = reinterpret_cast<const float*>(table);
  args.table_rows = sizes[3];
  args.head_columns = sizes[4];
  args.table_row = reinterpret_cast<const int32_t*>(table_row);
  args.recurrent_weight = reinterpret_cast<const float*>(recurrent_weight);
  args.output_weight = reinterpret_cast<const float*>(output_weight);
  args.output_bias = reinterpret_cast<const float*>(output_bias);
  args.targets = reinterpret_cast<const int32_t*>(targets);
  args.batch_size = batch_size;
  args.num_steps = num_steps;
  args.h = reinterpret_cast<const float*>(h);
  args.c = reinterpret_cast<const float*>(c);
  args.seeds = reinterpret_cast<const uint64_t*>(seeds);
  args.num_seeds = num_seeds;
  args.first_sequence = first_sequence;
  args.sigma = sigma;
  args.credit_length = credit_length;
  args.nats = reinterpret_cast<double*>(nats);
  args.table_gradient = reinterpret_cast<float*>(gradients[0]);
  args.recurrent_gradient = reinterpret_cast<float*>(gradients[1]);
  args.output_weight_gradient = reinterpret_cast<float*>(gradients[2]);
  args.output_bias_gradient = reinterpret_cast<float*>(gradients[3]);
  zo::cpu::perturb_activities(args);
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
  m.def("evaluate_population", &evaluate_population, no_gil);
  m.def("evaluate_dnc", &evaluate_dnc, no_gil);
  m.def("perturb_activities", &perturb_activities, no_gil);
  m.def("philox4x32_10", &philox4x32_10);
  m.def("streams", &streams);
  m.def("compiled_isas", &zo::cpu::compiled_isas);
  m.def("supported_isas", &zo::cpu::supported_isas);
  m.def("active_isa", &zo::cpu::active_isa);
  m.def("set_isa", &zo::cpu::set_active_isa);
  m.def("has_bfloat16", &zo::cpu::has_bfloat16);
  m.def("max_threads", &zo::cpu::max_threads);
  m.def("has_openmp", &zo::cpu::has_openmp);
  zo_python::bind_cuda(m);
  m.attr("compiler") = ZO_COMPILER;
}
