// Tests of zo::cpu::perturb_activities without Python, as part of zo_population_tests: random sizes of every cell, with
// and without the local gradient, on every instruction set of this processor, against one number at a time in double.
// Everything is in heap blocks of exactly the size needed, for the sanitizers.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/activity/activity.h"
#include "philox.h"
#include "population_cases.h"
#include "recurrent_scalar.h"
#include "scalar.h"

namespace zo_tests {
namespace {

using zo::cpu::ActivityArgs;
using zo::cpu::CellShape;

struct ActivityCase {
  ActivityArgs args = {};
  std::vector<float> table, recurrent, output_weight, output_bias, h, c;
  std::vector<int32_t> table_row, targets;
  std::vector<uint64_t> seeds;

  CellShape shape() const { return zo::cpu::cell_shape(args.cell); }
  int64_t hidden() const { return args.num_heads * args.head_dim; }
};

template <class Number>
struct Gradients {
  std::vector<double> nats;
  std::vector<Number> table, recurrent, output_weight, output_bias;

  explicit Gradients(const ActivityCase& x, Number start)
      : nats(1 + 2 * x.seeds.size(), static_cast<double>(start)), table(x.table.size(), start),
        recurrent(x.recurrent.size(), start), output_weight(x.output_weight.size(), start),
        output_bias(x.output_bias.size(), start) {}
};

// --- the definition, in zo_kernels/backends/activity/problem.py ---

// One sequence.
class ScalarSequence {
 public:
  ScalarSequence(const ActivityCase& x, int64_t b, Gradients<double>& to) : x_(x), a_(x.args), b_(b), to_(to) {}

  void run() {
    const int64_t n = a_.num_seeds, T = a_.num_steps, G = x_.shape().rows, H = x_.hidden();
    const std::vector<double> clean = losses(0, nullptr);
    std::vector<std::vector<double>> deltas(T, std::vector<double>(G * H));
    for (int64_t t = 0; t < T && a_.local_gradient; ++t) deltas[t] = steps_[t].local;
    const std::vector<Step> steps = steps_;
    for (int64_t i = 0; i < n; ++i) {
      const std::vector<double> plus = losses(1 + i, &x_.seeds[i], a_.sigma);
      const std::vector<double> minus = losses(1 + n + i, &x_.seeds[i], -a_.sigma);
      std::vector<double> d(T);
      for (int64_t t = 0; t < T; ++t) {
        d[t] = (plus[t] - minus[t]) / (2.0 * a_.sigma);
        for (int64_t j = 0; j < G * H && a_.local_gradient; ++j) d[t] -= steps[t].local[j] * xi(x_.seeds[i], t, j);
      }
      for (int64_t t = 0; t < T; ++t) {
        double credit = 0.0;
        for (int64_t s = t + a_.local_gradient; s < std::min(T, t + a_.credit_length); ++s) credit += d[s];
        for (int64_t j = 0; j < G * H; ++j) deltas[t][j] += credit * xi(x_.seeds[i], t, j) / static_cast<double>(n);
      }
    }
    for (int64_t t = 0; t < T; ++t) add(t, steps[t], deltas[t]);
  }

 private:
  struct Step {
    std::vector<double> before, after, errors, local;  // local: [row][unit]
  };

  double xi(uint64_t seed, int64_t t, int64_t j) const {
    const int64_t units = x_.shape().rows * x_.hidden(), at = t * ((units + 127) / 128 * 128) + j;
    const uint32_t number = a_.first_sequence + static_cast<uint32_t>(b_);
    const zo::Philox4 words = zo::philox_block(seed, static_cast<uint64_t>(at) / 128, zo::kStreamActivity, number);
    return (words.word[at / 32 % 4] >> (at % 32)) & 1 ? 1.0 : -1.0;
  }

  double pre_activation(int64_t t, int64_t row, int64_t unit, const std::vector<double>& h) const {
    const int64_t D = a_.head_dim, head = unit / D, token = x_.table_row[t * a_.batch_size + b_];
    double pre = x_.table[(token * a_.num_heads + head) * a_.head_columns + unit % D * x_.shape().rows + row];
    for (int64_t k = 0; k < D && row < x_.shape().recurrent_rows; ++k)
      pre += static_cast<double>(x_.recurrent[(row * x_.hidden() + unit) * D + k]) * h[head * D + k];
    return pre;
  }

  // The losses of a member at each step; of the clean one the steps, too.
  std::vector<double> losses(int64_t member, const uint64_t* seed, double sigma = 0.0) {
    const int64_t H = x_.hidden(), V = a_.vocab_size, G = x_.shape().rows;
    std::vector<double> h(H), c(H), found;
    for (int64_t u = 0; u < H; ++u) {
      const int64_t at = (u / a_.head_dim * a_.batch_size + b_) * a_.head_dim + u % a_.head_dim;
      if (!x_.h.empty()) h[u] = x_.h[at];
      if (!x_.c.empty()) c[u] = x_.c[at];
    }
    if (!seed) steps_.clear();
    for (int64_t t = 0; t < a_.num_steps; ++t) {
      Step step = {h, std::vector<double>(H), std::vector<double>(V), std::vector<double>(G * H)};
      for (int64_t u = 0; u < H; ++u) {
        double pre[4];
        for (int64_t row = 0; row < G; ++row) {
          pre[row] = pre_activation(t, row, u, step.before);
          if (seed) pre[row] += sigma * xi(*seed, t, row * H + u);
        }
        for (int64_t row = 0; row < G && !seed; ++row) step.local[row * H + u] = slope(pre, row, h[u], c[u]);
        update_unit(a_.cell, pre, h[u], c[u]);
      }
      step.after = h;
      const int64_t target = x_.targets[t * a_.batch_size + b_];
      std::vector<double> logits(V);
      for (int64_t v = 0; v < V; ++v) {
        logits[v] = x_.output_bias[v];
        for (int64_t u = 0; u < H; ++u) logits[v] += static_cast<double>(x_.output_weight[v * H + u]) * h[u];
      }
      found.push_back(target < 0 ? 0.0 : cross_entropy(logits, target));
      to_.nats[member] += found.back();
      if (seed) continue;
      const double logsumexp = cross_entropy(logits, 0) + logits[0];
      for (int64_t v = 0; v < V && target >= 0; ++v) step.errors[v] = std::exp(logits[v] - logsumexp) - (v == target);
      for (int64_t u = 0; u < H; ++u) {
        double outer = 0.0;
        for (int64_t v = 0; v < V; ++v) outer += step.errors[v] * static_cast<double>(x_.output_weight[v * H + u]);
        for (int64_t row = 0; row < G; ++row) step.local[row * H + u] *= outer;
      }
      steps_.push_back(step);
    }
    return found;
  }

  // The derivative of the new hidden state of a unit by one of its rows: a central difference, right to about 1e-10.
  double slope(const double (&pre)[4], int64_t row, double h, double c) const {
    constexpr double step = 1e-5;
    double ends[2];
    for (int side = 0; side < 2; ++side) {
      double moved[4] = {pre[0], pre[1], pre[2], pre[3]}, after = h, cell = c;
      moved[row] += side ? step : -step;
      update_unit(a_.cell, moved, after, cell);
      ends[side] = after;
    }
    return (ends[1] - ends[0]) / (2.0 * step);
  }

  void add(int64_t t, const Step& step, const std::vector<double>& delta) {
    const int64_t H = x_.hidden(), D = a_.head_dim, G = x_.shape().rows;
    const int64_t token = x_.table_row[t * a_.batch_size + b_];
    for (int64_t row = 0; row < G; ++row)
      for (int64_t u = 0; u < H; ++u) {
        to_.table[(token * a_.num_heads + u / D) * a_.head_columns + u % D * G + row] += delta[row * H + u];
        for (int64_t k = 0; k < D && row < x_.shape().recurrent_rows; ++k)
          to_.recurrent[(row * H + u) * D + k] += delta[row * H + u] * step.before[u / D * D + k];
      }
    for (int64_t v = 0; v < a_.vocab_size; ++v) {
      to_.output_bias[v] += step.errors[v];
      for (int64_t u = 0; u < H; ++u) to_.output_weight[v * H + u] += step.errors[v] * step.after[u];
    }
  }

  const ActivityCase& x_;
  const ActivityArgs& a_;
  int64_t b_;
  Gradients<double>& to_;
  std::vector<Step> steps_;  // of the clean member
};

// --- the kernel ---

Gradients<float> perturbed(const ActivityCase& original) {
  const ActivityCase x = original;  // a copy's vectors are blocks without spare room
  ActivityArgs a = x.args;
  Gradients<float> found(x, std::nanf(""));
  a.table = x.table.data(), a.table_row = x.table_row.data(), a.recurrent_weight = x.recurrent.data();
  a.output_weight = x.output_weight.data(), a.output_bias = x.output_bias.data(), a.targets = x.targets.data();
  a.h = x.h.empty() ? nullptr : x.h.data(), a.c = x.c.empty() ? nullptr : x.c.data(), a.seeds = x.seeds.data();
  a.nats = found.nats.data(), a.table_gradient = found.table.data(), a.recurrent_gradient = found.recurrent.data();
  a.output_weight_gradient = found.output_weight.data(), a.output_bias_gradient = found.output_bias.data();
  zo::cpu::perturb_activities(a);
  return found;
}

struct ActivitySizes {
  Cell cell;
  int64_t V, N, D, B, T, probes, credit;
};

ActivityCase random_activity(const ActivitySizes& s, bool local, Random& random) {
  ActivityCase x;
  x.args.cell = s.cell, x.args.vocab_size = s.V, x.args.num_heads = s.N, x.args.head_dim = s.D;
  x.args.batch_size = s.B, x.args.num_steps = s.T, x.args.num_seeds = s.probes, x.args.credit_length = s.credit;
  x.args.local_gradient = local, x.args.sigma = 0.0625f, x.args.first_sequence = static_cast<uint32_t>(random.next());
  const int64_t G = x.shape().rows, H = s.N * s.D;
  x.args.table_rows = 1 + random.below(9), x.args.head_columns = (s.D * G + 15) / 16 * 16;
  const auto fill = [&](std::vector<float>& values, int64_t count, double bound) {
    values.resize(static_cast<size_t>(count));
    for (float& value : values) value = static_cast<float>(random.between(-bound, bound));
  };
  fill(x.table, x.args.table_rows * s.N * x.args.head_columns, 1.0);
  fill(x.recurrent, x.shape().recurrent_rows * H * s.D, 1.0 / std::sqrt(static_cast<double>(s.D)));
  fill(x.output_weight, s.V * H, 2.0 / std::sqrt(static_cast<double>(H)));
  fill(x.output_bias, s.V, 0.5);
  if (random.one_in(2)) fill(x.h, s.N * s.B * s.D, 1.0);
  if (!x.h.empty() && x.shape().has_cell_state) fill(x.c, s.N * s.B * s.D, 1.0);
  for (int64_t i = 0; i < s.B * s.T; ++i) {
    x.table_row.push_back(static_cast<int32_t>(random.below(x.args.table_rows)));
    x.targets.push_back(static_cast<int32_t>(random.one_in(4) ? -100 : random.below(s.V)));
  }
  for (int64_t i = 0; i < s.probes; ++i) x.seeds.push_back(random.next());
  return x;
}

// Without probes the error is that of float32 sums of up to B * T products. A difference of two losses, each rounded to
// about 1e-6, is divided by 2 sigma.
void test_case(const ActivitySizes& s, bool local, Random& random, void (*set_threads)(int)) {
  const ActivityCase x = random_activity(s, local, random);
  Gradients<double> expected(x, 0.0);
  for (int64_t b = 0; b < s.B; ++b) ScalarSequence(x, b, expected).run();
  double most = 1e-3;
  for (const auto* values : {&expected.table, &expected.recurrent, &expected.output_weight, &expected.output_bias})
    for (double value : *values) most = std::max(most, std::fabs(value));
  const double allowed = most * (s.probes > 0 ? 1e-3 : 1e-5);
  for_each_isa([&] {
    const Gradients<float> found = perturbed(x);
    CHECK(distance(found.nats, expected.nats) <= 5e-6 * static_cast<double>(s.B * s.T));
    CHECK(distance(found.table, expected.table) <= allowed);
    CHECK(distance(found.recurrent, expected.recurrent) <= allowed);
    CHECK(distance(found.output_weight, expected.output_weight) <= allowed);
    CHECK(distance(found.output_bias, expected.output_bias) <= allowed);
    for (int threads = 2; set_threads && threads <= 3; ++threads) {
      set_threads(threads);
      const Gradients<float> again = perturbed(x);
      set_threads(1);
      CHECK(same(again.nats, found.nats) && same(again.table, found.table) && same(again.recurrent, found.recurrent) &&
            same(again.output_weight, found.output_weight) && same(again.output_bias, found.output_bias));
    }
  });
}

}  // namespace

void test_activity(void (*set_threads)(int)) {
  Random random(4);
  constexpr Cell cells[] = {Cell::kLstm, Cell::kGru, Cell::kElman};
  for (int turn = 0; turn < 60; ++turn)  // odd sizes; a chunk has 16 steps, a tile up to 64 sequences
    test_case({cells[turn % 3], 1 + random.below(50), 1 + random.below(3), 1 + random.below(20), 1 + random.below(70),
               1 + random.below(20), random.below(3), 1 + random.below(5)},
              turn / 3 % 2 == 0, random, set_threads);
  for (bool local : {false, true})
    for (int64_t probes : {0, 1}) {
      test_case({Cell::kLstm, 4200, 1, 9, 2, 18, probes, 99}, local, random, set_threads);  // errors are made by panels
      test_case({Cell::kGru, 300, 2, 70, 3, 3, probes, 2}, local, random, set_threads);     // panels, all errors kept
      test_case({Cell::kElman, 5, 2, 3, 150, 40, probes, 99}, local, random, set_threads);  // tiles and chunks
    }
}

}  // namespace zo_tests
