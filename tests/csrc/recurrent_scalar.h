// Recurrent language models one number at a time, for the tests to compare the kernels with: written from the
// definitions in csrc/cpu/population/population.h, cells.h and bfloat16.h, and in csrc/cuda/resident.h. Perturbed
// weights are rounded to float32 as the kernels' are, and what the kernels round to bfloat16 is; everything else is
// double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/population/population.h"
#include "scalar.h"

namespace zo_tests {

using zo::cpu::Cell;

struct Shape {
  Cell cell;
  int64_t V, E, N, D, B, T;
  int64_t L = 1;
  bool norm = false, residual = false;

  // Rows of the bias, the input and the recurrent weight.
  int64_t bias_rows() const { return cell == Cell::kElman ? 1 : 4; }
  int64_t projected_rows() const { return cell == Cell::kElman ? 1 : cell == Cell::kGru ? 3 : 4; }
};

enum {
  kEmbedding, kInputWeight, kRecurrentWeight, kBias, kOutputWeight, kOutputBias,
  kUpperInputWeight, kUpperRecurrentWeight, kUpperBias, kNormWeight, kNormBias, kParameters  // those may be empty
};

struct Model {
  Shape shape;
  DType type;
  std::vector<Buffer> data;      // of each parameter
  std::vector<int64_t> offsets;  // likewise
};

// One call of evaluate_population.
struct Case {
  Model model;
  std::vector<int64_t> tokens, targets;  // targets may be empty: none
  std::vector<uint64_t> seeds;
  int num_signs = 2;
  double eps = 0.0;
  std::vector<float> h = {}, c = {};  // before the first token; h may be empty: zeros, and none come out
  bool logits = false;
  bool bfloat16 = false;

  int64_t members() const { return static_cast<int64_t>(seeds.size()) * num_signs; }
  int64_t scored() const { return std::count_if(targets.begin(), targets.end(), [](int64_t t) { return t >= 0; }); }
  std::string describe() const {
    const char* const cells[] = {"LSTM", "GRU", "Elman"};
    const Shape& s = model.shape;
    std::string text = cells[static_cast<int>(s.cell)] + std::string(" ") + name_of(model.type) + " V, E, N, D, B, T";
    for (int64_t size : {s.V, s.E, s.N, s.D, s.B, s.T}) text += " " + std::to_string(size);
    text += " layers " + std::to_string(s.L) + (s.norm ? " norm" : "") + (s.residual ? " residual" : "");
    return text + " members " + std::to_string(members()) + " signs " + std::to_string(num_signs) + " eps " +
           std::to_string(eps) + " scored " + std::to_string(scored()) + (h.empty() ? "" : " states") +
           (logits ? " logits" : "") + (bfloat16 ? " products in bfloat16" : "");
  }
};

// What comes out: float from the kernels, double from the reference. h, c and logits as PopulationArgs has them.
template <class Number>
struct Result {
  std::vector<double> nats;
  std::vector<Number> h, c, logits;
};

// --- the reference ---

inline double to_bfloat16(double value) { return decode(encode(value, kBrain), kBrain); }

// w rounded to a multiple of the last bit of a bfloat16 as large as |w| + eps.
inline float on_bfloat16_grid(float w, float eps) {
  int exponent;
  std::frexp(std::fabs(w) + eps, &exponent);  // 2^(exponent - 1) is its first bit
  const float last_bit = std::ldexp(1.0f, exponent - 8);
  return std::nearbyint(w / last_bit) * last_bit;
}

inline std::vector<double> perturbed(const Case& x, int parameter, uint64_t seed, float step) {
  const Buffer& w = x.model.data[parameter];
  const int64_t offset = x.model.offsets[parameter];
  const bool in_bfloat16 = x.bfloat16 && (parameter == kRecurrentWeight || parameter == kOutputWeight ||
                                          parameter == kUpperInputWeight || parameter == kUpperRecurrentWeight);
  std::vector<double> values(w.numel());
  for (int64_t i = 0; i < w.numel(); ++i) {
    float value = static_cast<float>(w.get(i));
    if (offset >= 0 && step != 0.0f) {
      if (in_bfloat16) value = on_bfloat16_grid(value, std::fabs(step));
      value += step * static_cast<float>(sign(seed, offset + i));
    }
    values[i] = in_bfloat16 ? to_bfloat16(value) : value;
  }
  return values;
}

inline double dot(const double* a, const double* b, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

inline double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// What a unit's states become; `pre` are its rows.
inline void update_unit(Cell cell, const double* pre, double& h, double& c) {
  switch (cell) {
    case Cell::kLstm:  // i, f, z, o
      c = sigmoid(pre[1]) * c + sigmoid(pre[0]) * std::tanh(pre[2]);
      h = sigmoid(pre[3]) * std::tanh(c);
      return;
    case Cell::kGru: {  // g, r, z, n
      const double z = sigmoid(pre[2]);
      h = z * h + (1.0 - z) * std::tanh(pre[3] + sigmoid(pre[1]) * pre[0]);
      return;
    }
    case Cell::kElman: h = std::tanh(pre[0]);
  }
}

class ScalarMember {
 public:
  ScalarMember(const Case& x, uint64_t seed, float step)
      : s_(x.model.shape), bfloat16_(x.bfloat16), h_(s_.L * s_.N * s_.D), c_(h_.size()) {
    for (int i = 0; i < kParameters; ++i) weights_.push_back(perturbed(x, i, seed, step));
  }

  std::vector<double>& h() { return h_; }  // [L, N, D] of one sequence
  std::vector<double>& c() { return c_; }

  void take(int64_t token) {
    const int64_t H = s_.N * s_.D;
    output_.assign(&weights_[kEmbedding][token * s_.E], &weights_[kEmbedding][token * s_.E] + s_.E);
    for (int64_t layer = 0; layer < s_.L; ++layer) {
      const std::vector<double> before = factors(layer), input = output_;
      for (int64_t unit = 0; unit < H; ++unit) {
        double pre[4];
        for (int64_t row = 0; row < s_.bias_rows(); ++row) pre[row] = pre_activation(layer, row, unit, input, before);
        update_unit(s_.cell, pre, h_[layer * H + unit], c_[layer * H + unit]);
      }
      output_ = factors(layer);
      // A GRU adds to the state of the step before, which stays float32.
      if (s_.cell != Cell::kGru) std::copy(output_.begin(), output_.end(), &h_[layer * H]);
      if (s_.norm) normalize(layer);
      for (int64_t unit = 0; unit < H && s_.residual && layer > 0; ++unit) output_[unit] += input[unit];
      if (bfloat16_) std::transform(output_.begin(), output_.end(), output_.begin(), to_bfloat16);
    }
  }

  std::vector<double> logits() const {
    const int64_t H = s_.N * s_.D;
    std::vector<double> values(s_.V);
    for (int64_t v = 0; v < s_.V; ++v)
      values[v] = weights_[kOutputBias][v] + dot(&weights_[kOutputWeight][v * H], output_.data(), H);
    return values;
  }

 private:
  // The hidden state of a layer as weights meet it.
  std::vector<double> factors(int64_t layer) const {
    const int64_t H = s_.N * s_.D;
    std::vector<double> h(h_.begin() + layer * H, h_.begin() + (layer + 1) * H);
    if (bfloat16_) std::transform(h.begin(), h.end(), h.begin(), to_bfloat16);
    return h;
  }

  // The last rows have an input projection, the first a recurrent one: they differ for GRU alone, whose g is without
  // input and whose n is without recurrence.
  double pre_activation(int64_t layer, int64_t row, int64_t unit, const std::vector<double>& x,
                        const std::vector<double>& h) const {
    const int64_t H = s_.N * s_.D, K = static_cast<int64_t>(x.size()), input_row = row - s_.bias_rows() + s_.projected_rows();
    const auto of = [&](int first, int upper, int64_t rows, int64_t of_row, int64_t size) {
      const double* w = layer == 0 ? weights_[first].data() : &weights_[upper][(layer - 1) * rows * H * size];
      return w + (of_row * H + unit) * size;
    };
    double pre = *of(kBias, kUpperBias, s_.bias_rows(), row, 1);
    if (input_row >= 0) pre += dot(of(kInputWeight, kUpperInputWeight, s_.projected_rows(), input_row, K), x.data(), K);
    if (row < s_.projected_rows())
      pre += dot(of(kRecurrentWeight, kUpperRecurrentWeight, s_.projected_rows(), row, s_.D), &h[unit / s_.D * s_.D],
                 s_.D);
    return pre;
  }

  void normalize(int64_t layer) {
    const double H = static_cast<double>(output_.size());
    double mean = 0.0, variance = 0.0;
    for (double y : output_) mean += y / H;
    for (double y : output_) variance += (y - mean) * (y - mean) / H;
    for (size_t i = 0; i < output_.size(); ++i) {
      const size_t at = static_cast<size_t>(layer) * output_.size() + i;
      output_[i] = (output_[i] - mean) / std::sqrt(variance + 1e-5) * weights_[kNormWeight][at] + weights_[kNormBias][at];
    }
  }

  Shape s_;
  bool bfloat16_;
  std::vector<std::vector<double>> weights_;
  std::vector<double> h_, c_;
  std::vector<double> output_;  // of the last layer
};

inline double cross_entropy(const std::vector<double>& logits, int64_t target) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (double logit : logits) sum += std::exp(logit - top);
  return top + std::log(sum) - logits[target];
}

// Adds what one member makes of one sequence to `result`, which has the initial states.
inline void run_sequence(const Case& x, ScalarMember& member, int64_t index, int64_t b, Result<double>& result) {
  const Shape& s = x.model.shape;
  const auto each_state = [&](auto f) {  // f(of the member, of the result)
    for (int64_t n = 0; n < s.L * s.N; ++n)
      for (int64_t d = 0; d < s.D; ++d) f(n * s.D + d, ((index * s.L * s.N + n) * s.B + b) * s.D + d);
  };
  std::fill(member.h().begin(), member.h().end(), 0.0);
  std::fill(member.c().begin(), member.c().end(), 0.0);
  if (!x.h.empty()) each_state([&](int64_t of, int64_t from) { member.h()[of] = result.h[from]; });
  if (!x.c.empty()) each_state([&](int64_t of, int64_t from) { member.c()[of] = result.c[from]; });
  for (int64_t t = 0; t < s.T; ++t) {
    member.take(x.tokens[b * s.T + t]);
    const int64_t target = x.targets.empty() ? -1 : x.targets[b * s.T + t];
    if (target >= 0) result.nats[index] += cross_entropy(member.logits(), target);
  }
  if (!x.h.empty()) each_state([&](int64_t of, int64_t to) { result.h[to] = member.h()[of]; });
  if (!x.c.empty()) each_state([&](int64_t of, int64_t to) { result.c[to] = member.c()[of]; });
  if (!x.logits) return;
  const std::vector<double> logits = member.logits();
  std::copy(logits.begin(), logits.end(), result.logits.begin() + (index * s.B + b) * s.V);
}

inline Result<double> evaluate_scalar(const Case& x) {
  const Shape& s = x.model.shape;
  Result<double> result = {std::vector<double>(x.members()), {x.h.begin(), x.h.end()}, {x.c.begin(), x.c.end()},
                           std::vector<double>(x.logits ? x.members() * s.B * s.V : 0)};
  for (int64_t index = 0; index < x.members(); ++index) {
    const float step = static_cast<float>(index % x.num_signs ? -x.eps : x.eps);
    ScalarMember member(x, x.seeds[index / x.num_signs], step);
    for (int64_t b = 0; b < s.B; ++b) run_sequence(x, member, index, b, result);
  }
  return result;
}

}  // namespace zo_tests
