// The fused forwards of zo_kernels._C: populations of recurrent models and of models with a memory, and activity
// perturbation. See module.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/activity/activity.h"
#include "cpu/dnc/dnc.h"
#include "cpu/population/population.h"
#include "arguments.h"

namespace py = pybind11;

namespace zo_python {
namespace {

// The fields of PopulationArgs: parameters as (address, offset) in its order, those that the model lacks at address 0;
// sizes V, E, L, N, D.
void evaluate_population(int cell, int dtype, const std::array<std::pair<uintptr_t, int64_t>, 11>& parameters,
                         const std::array<int64_t, 5>& sizes, bool residual, uintptr_t tokens, uintptr_t targets,
                         int64_t batch_size, int64_t num_steps, uintptr_t seeds, int64_t num_seeds, int num_signs,
                         double eps, bool bfloat16, uintptr_t h, uintptr_t c, uintptr_t nats, uintptr_t correct,
                         uintptr_t logits) {
  if (cell < 0 || cell > 2) throw std::invalid_argument("cell code " + std::to_string(cell) + " is not in 0..2");
  if (to_dtype(dtype) == zo::DType::kFloat64) throw std::invalid_argument("the population forward computes in float32");
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
  if (to_dtype(dtype) == zo::DType::kFloat64) throw std::invalid_argument("the population forward computes in float32");
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
                        int64_t num_seeds, uint32_t first_sequence, float sigma, int64_t credit_length, bool local_gradient,
                        uintptr_t nats, const std::array<uintptr_t, 4>& gradients) {
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
  args.local_gradient = local_gradient;
  args.nats = reinterpret_cast<double*>(nats);
  args.table_gradient = reinterpret_cast<float*>(gradients[0]);
  args.recurrent_gradient = reinterpret_cast<float*>(gradients[1]);
  args.output_weight_gradient = reinterpret_cast<float*>(gradients[2]);
  args.output_bias_gradient = reinterpret_cast<float*>(gradients[3]);
  zo::cpu::perturb_activities(args);
}

// sizes: rows, inner size and columns. strides: of a, between rows and along the inner size.
void multiply(const std::array<int64_t, 3>& sizes, uintptr_t a, const std::array<int64_t, 2>& strides, uintptr_t b,
              uintptr_t c) {
  if (sizes[0] < 1 || sizes[1] < 1 || sizes[2] < 16 || sizes[2] % 16 != 0)
    throw std::invalid_argument("a size is below 1, or the columns are not a multiple of 16");
  if (a == 0 || b == 0 || c == 0) throw std::invalid_argument("null address");
  zo::cpu::multiply({sizes[0], sizes[1], sizes[2], reinterpret_cast<const float*>(a), strides[0], strides[1],
                     reinterpret_cast<const float*>(b), reinterpret_cast<float*>(c)});
}

}  // namespace

void bind_forwards(py::module_& m) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def("evaluate_population", &evaluate_population, no_gil);
  m.def("evaluate_dnc", &evaluate_dnc, no_gil);
  m.def("perturb_activities", &perturb_activities, no_gil);
  m.def("multiply", &multiply, no_gil);
  m.def("has_bfloat16", &zo::cpu::has_bfloat16);
}

}  // namespace zo_python
