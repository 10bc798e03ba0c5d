// Tests of zo::cpu::evaluate_dnc without Python, as part of zo_population_tests: random sizes of both models, in heap
// blocks of exactly the size needed, so that the sanitizers see the first byte read or written past their end. What is
// computed is compared between instruction sets only; tests/models/test_memory_population.py compares it with float64.
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/dnc/dnc.h"
#include "population_cases.h"
#include "scalar.h"

namespace zo_tests {
namespace {

using zo::cpu::DncArgs;
using zo::cpu::DncModel;
using zo::cpu::Parameter;

constexpr double kTolerance = 1e-4;  // of a loss or a state: see the Python tests for how small errors are

struct DncCase {
  DncArgs args = {};
  std::vector<Buffer> parameters;
  std::vector<std::vector<float>> states;
  std::vector<float> memory;
  std::vector<int64_t> tokens, targets, correct;
  std::vector<uint64_t> seeds;
  std::vector<double> nats;

  void add(Parameter& p, int64_t numel, double bound, Random& random, double middle = 0.0) {
    Buffer values(args.type, numel);
    for (int64_t i = 0; i < numel; ++i) values.put(i, middle + random.between(-bound, bound));
    parameters.push_back(values);
    p = {parameters.back().data(), numel, random_offset(random, numel)};
  }
};

void add_parameters(DncCase& x, Random& random) {
  DncArgs& a = x.args;
  const auto& [V, E, H, N, W, R] = a.sizes;
  const int64_t reads = R * W, inputs = E + reads, outputs = H + reads;
  const bool paper = a.model == DncModel::kPaper;
  const int64_t interface = paper ? reads + 3 * W + 1 : reads + 3 * W + 5 * R + 3;
  const auto bound = [](int64_t fan_in) { return 1.0 / std::sqrt(static_cast<double>(fan_in)); };
  x.add(a.embedding, V * E, 1.0, random);
  x.add(a.controller_weight, 4 * H * (inputs + H), bound(inputs + H), random);
  x.add(a.controller_bias, 4 * H, 0.5, random);
  x.add(a.interface_weight, interface * H, bound(H), random);
  x.add(a.interface_bias, interface, 0.5, random);
  x.add(a.output_weight, V * outputs, bound(outputs), random);
  x.add(a.output_bias, V, 0.5, random);
  if (!paper) return;
  x.add(a.recurrent_bias, 4 * H, 0.5, random);
  for (const auto& [norm, size] : {std::pair(&a.input_norm, inputs), std::pair(&a.hidden_norm, H),
                                   std::pair(&a.read_key_norm, W), std::pair(&a.write_key_norm, W),
                                   std::pair(&a.memory_norm, W), std::pair(&a.output_norm, outputs)}) {
    x.add(norm->weight, size, 0.2, random, norm == &a.memory_norm ? bound(W) : 1.0);
    x.add(norm->bias, size, 0.5, random);
  }
}

DncCase random_dnc(DncModel model, DType type, Random& random) {
  DncCase x;
  DncArgs& a = x.args;
  a.model = model;
  a.type = type;
  a.sizes = {1 + random.below(40), 1 + random.below(40), 6 + random.below(40),
             1 + random.below(40), 2 + random.below(40), 1 + random.below(3)};
  const auto& [V, E, H, N, W, R] = a.sizes;
  a.batch_size = 1 + random.below(10), a.num_steps = 1 + random.below(5);
  a.num_signs = 1 + static_cast<int>(random.below(2)), a.num_seeds = 1 + random.below(3);
  a.eps = random.one_in(5) ? 0.0 : 0.02;
  x.parameters.reserve(20);
  add_parameters(x, random);
  for (int64_t i = 0; i < a.batch_size * a.num_steps; ++i) {
    x.tokens.push_back(random.below(V));
    x.targets.push_back(random.one_in(3) ? -100 : random.below(V));
  }
  for (int64_t i = 0; i < a.num_seeds; ++i) x.seeds.push_back(random.next());
  for (int64_t i = 0; i < N * W; ++i) x.memory.push_back(static_cast<float>(random.between(-1.0, 1.0)));
  if (random.one_in(2)) {
    const int64_t dnc[] = {H, H, N * W, N, N, N * N, N, R * N, R * W}, paper[] = {H, H, N * W, R * W};
    for (int i = 0; i < (model == DncModel::kPaper ? 4 : 9); ++i) {
      const int64_t size = model == DncModel::kPaper ? paper[i] : dnc[i];
      x.states.emplace_back(a.num_seeds * a.num_signs * a.batch_size * size);
      for (float& value : x.states.back()) value = static_cast<float>(random.uniform() / (i > 2 ? N : 1));
    }
  }
  return x;
}

// Copies whose vectors have no spare room, with what comes out.
DncCase evaluated(const DncCase& original) {
  DncCase x = original;
  DncArgs& a = x.args;
  x.nats.assign(a.num_seeds * a.num_signs, std::nan(""));
  x.correct.assign(x.nats.size(), -1);
  for (size_t i = 0; i < x.states.size(); ++i) a.states[i] = x.states[i].data();
  a.initial_memory = x.memory.data();
  a.tokens = x.tokens.data(), a.targets = x.targets.data(), a.seeds = x.seeds.data();
  a.nats = x.nats.data(), a.correct = x.correct.data();
  zo::cpu::evaluate_dnc(a);
  return x;
}

}  // namespace

void test_dnc(void (*set_threads)(int)) {
  Random random(3);
  for (int round = 0; round < 60; ++round) {
    const DncModel model = round % 2 ? DncModel::kPaper : DncModel::kDnc;
    const DType types[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
    const DncCase x = random_dnc(model, types[round / 2 % 3], random);
    const DncCase first = evaluated(x);
    for_each_isa([&] {
      const DncCase here = evaluated(x);
      CHECK(distance(here.nats, first.nats) < kTolerance * static_cast<double>(x.targets.size()));
      for (size_t i = 0; i < x.states.size(); ++i)
        CHECK(distance(here.states[i], {first.states[i].begin(), first.states[i].end()}) < kTolerance);
      for (const int64_t correct : here.correct)
        CHECK(correct >= 0 && correct <= static_cast<int64_t>(x.targets.size()));
      if (!set_threads) return;
      set_threads(3);
      const DncCase again = evaluated(x);
      set_threads(1);
      CHECK(same(again.nats, here.nats) && same(again.correct, here.correct));
    });
    DncCase bad = x;
    (round % 4 ? bad.tokens : bad.targets).back() = x.args.sizes.vocab;
    bool refused = false;
    try {
      evaluated(bad);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}

}  // namespace zo_tests
