// What the tests of the population forward run and compare: random models and data, the call of the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/population/population.h"
#include "recurrent_scalar.h"
#include "scalar.h"

namespace zo_tests {

struct Random {  // xorshift64
  uint64_t state;

  explicit Random(uint64_t seed) : state(88172645463325252u ^ seed * 0x9e3779b97f4a7c15u) {}

  uint64_t next() { return state ^= state << 13, state ^= state >> 7, state ^= state << 17; }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double between(double low, double high) { return low + (high - low) * uniform(); }
  int64_t below(int64_t count) { return static_cast<int64_t>((next() >> 16) % static_cast<uint64_t>(count)); }
  bool one_in(int64_t count) { return below(count) == 0; }
};

// Some not perturbed, some early in the index space, some where the high half of the block index changes within them
// (element 2^39 * k), some far out and some at its end.
inline int64_t random_offset(Random& random, int64_t numel) {
  const int64_t blocks = (numel + 127) / 128, edge = int64_t{1} << 39;
  switch (random.below(6)) {
    case 0: return -1;
    case 1: return 128 * random.below(1000);
    case 2: return edge - 128 * random.below(blocks + 1);
    case 3: return edge * (1 + random.below(1000)) - 128 * random.below(blocks + 1);
    case 4: return (int64_t{1} << 62) - 128 * random.below(blocks + 1);
    default: return (std::numeric_limits<int64_t>::max() - numel) / 128 * 128;
  }
}

// Weights that keep pre-activations and logits of the order of 1, whatever the sizes.
inline Model random_model(const Shape& s, DType type, Random& random) {
  const int64_t H = s.N * s.D, projected = s.projected_rows() * H;
  const int64_t above = s.L - 1, norms = s.norm ? s.L * H : 0;
  const int64_t numel[] = {s.V * s.E, projected * s.E,       projected * s.D,       s.bias_rows() * H,         s.V * H, s.V,
                           above * projected * H, above * projected * s.D, above * s.bias_rows() * H, norms,   norms};
  const int64_t fan_in[] = {1, s.E, s.D, 4, H, 4, H, s.D, 4, 1, 4};
  Model model = {s, type, {}, {}};
  for (int i = 0; i < kParameters; ++i) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(fan_in[i]));
    Buffer values(type, numel[i], static_cast<int>(random.below(3)));  // not always aligned
    for (int64_t k = 0; k < numel[i]; ++k)
      values.put(k, i == kNormWeight ? random.between(0.5, 1.5) : random.between(-bound, bound));
    model.data.push_back(values);
    model.offsets.push_back(random_offset(random, numel[i]));
  }
  return model;
}

// A step that changes every sum visibly, and leaves the recurrence contracting: an error fades, and does not grow.
inline double random_eps(const Shape& s, Random& random) {
  if (random.one_in(10)) return 0.0;
  return random.between(0.1, 0.4) / std::sqrt(static_cast<double>(std::max(s.E, s.N * s.D)));
}

inline Case random_case(const Shape& s, DType type, Random& random) {
  Case x = {random_model(s, type, random), std::vector<int64_t>(s.B * s.T), {}, {}};
  x.eps = random_eps(s, random);
  x.num_signs = 1 + static_cast<int>(random.below(2));
  x.seeds.assign(random.one_in(3) ? 2 : 1, 0);
  for (uint64_t& seed : x.seeds) seed = random.next();
  for (int64_t& token : x.tokens) token = random.below(s.V);
  const double unscored = random.one_in(2) ? 0.0 : random.uniform() * 1.2;  // sometimes all
  if (!random.one_in(6)) x.targets.assign(s.B * s.T, -1);
  for (int64_t& target : x.targets) target = random.uniform() < unscored ? -1 - random.below(200) : random.below(s.V);
  x.logits = random.one_in(2);
  if (random.one_in(4)) return x;
  x.h.assign(x.members() * s.L * s.N * s.B * s.D, 0.0f);
  if (s.cell == Cell::kLstm) x.c.assign(x.h.size(), 0.0f);
  for (float& h : x.h) h = static_cast<float>(random.between(-1.0, 1.0));
  for (float& c : x.c) c = static_cast<float>(random.between(-2.0, 2.0));
  return x;
}

// Steps [first, last) of a call, begun in the given states.
inline Case segment(const Case& x, int64_t first, int64_t last, const Result<float>& before) {
  Case part = x;
  const int64_t B = x.model.shape.B, T = x.model.shape.T;
  part.model.shape.T = last - first;
  part.tokens.clear(), part.targets.clear();
  for (int64_t b = 0; b < B; ++b) {
    part.tokens.insert(part.tokens.end(), &x.tokens[b * T] + first, &x.tokens[b * T] + last);
    part.targets.insert(part.targets.end(), &x.targets[b * T] + first, &x.targets[b * T] + last);
  }
  part.h = before.h, part.c = before.c;
  return part;
}

// What may hold anything when the kernels begin, and must not stay so.
inline Result<float> unwritten(const Case& x) {
  const float nan = std::nanf("");
  const int64_t logits = x.logits ? x.members() * x.model.shape.B * x.model.shape.V : 0;
  return {std::vector<double>(x.members(), nan), x.h, x.c, std::vector<float>(logits, nan)};
}

inline void evaluate_into(Result<float>& result, const Case& original) {
  const Case x = original;  // a copy's vectors are blocks without spare room
  const Shape& s = x.model.shape;
  zo::cpu::PopulationArgs args = {};
  args.cell = s.cell;
  args.type = x.model.type;
  args.bfloat16 = x.bfloat16;
  zo::cpu::Parameter* const parameters[] = {
      &args.embedding,     &args.input_weight, &args.recurrent_weight,   &args.bias,
      &args.output_weight, &args.output_bias,  &args.upper_input_weight, &args.upper_recurrent_weight,
      &args.upper_bias,    &args.norm_weight,  &args.norm_bias};
  for (int i = 0; i < kParameters; ++i)
    *parameters[i] = {x.model.data[i].data(), x.model.data[i].numel(), x.model.offsets[i]};
  args.vocab_size = s.V, args.embed_dim = s.E, args.num_heads = s.N, args.head_dim = s.D;
  args.num_layers = s.L, args.layer_norm = s.norm, args.residual = s.residual;
  args.tokens = x.tokens.data();
  args.targets = x.targets.empty() ? nullptr : x.targets.data();
  args.batch_size = s.B, args.num_steps = s.T;
  args.seeds = x.seeds.data();
  args.num_seeds = static_cast<int64_t>(x.seeds.size());
  args.num_signs = x.num_signs;
  args.eps = x.eps;
  args.h = x.h.empty() ? nullptr : result.h.data();
  args.c = x.c.empty() ? nullptr : result.c.data();
  args.nats = result.nats.data();
  args.logits = x.logits ? result.logits.data() : nullptr;
  zo::cpu::evaluate_population(args);
}

inline Result<float> evaluate(const Case& x) {
  Result<float> result = unwritten(x);
  evaluate_into(result, x);
  return result;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

inline bool same(const Result<float>& a, const Result<float>& b) {
  return same(a.nats, b.nats) && same(a.h, b.h) && same(a.c, b.c) && same(a.logits, b.logits);
}

// The largest |actual - expected|; infinity where only one of the two is a finite number.
template <class Number>
double distance(const std::vector<Number>& actual, const std::vector<double>& expected) {
  double most = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool finite = std::isfinite(actual[i]);
    if (finite != std::isfinite(expected[i])) return std::numeric_limits<double>::infinity();
    if (finite) most = std::max(most, std::fabs(static_cast<double>(actual[i]) - expected[i]));
  }
  return most;
}

}  // namespace zo_tests
