// Tests of zo::cpu::evaluate_population without Python: random models of every cell and parameter type, on every
// instruction set of this processor, against the double-precision loops of recurrent_scalar.h. Meant for a build with
// -DZO_SANITIZE=ON: parameters, tokens, targets, states, nats and logits are heap blocks of exactly the size needed, so
// that AddressSanitizer sees the first byte read or written past their end.
#include <dlfcn.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/launch.h"
#include "cpu/parallel.h"
#include "cpu/population/population.h"
#include "population_cases.h"
#include "recurrent_scalar.h"
#include "scalar.h"

// AddressSanitizer asks for this. Memory that was never written holds NaNs, which show up wherever they are used.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "max_malloc_fill_size=1000000000:malloc_fill_byte=255";
}

namespace {

using namespace zo_tests;

constexpr Cell kCells[] = {Cell::kLstm, Cell::kGru, Cell::kElman};
constexpr DType kParameterTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

void (*g_set_threads)(int) = nullptr;  // null: there is no OpenMP runtime

// On every instruction set that has what the case asks for.
template <class F>
void for_each_isa(const Case& x, F f) {
  for (const std::string& isa : zo::cpu::supported_isas()) {
    zo::cpu::set_active_isa(isa);
    if (!x.bfloat16 || zo::cpu::has_bfloat16()) f();
  }
  zo::cpu::set_active_isa("");
}

void expect(bool ok, int line, const std::string& what, const Case& x) {
  check(ok, __FILE__, line, what + ": " + x.describe() + " " + zo::cpu::active_isa());
}
#define EXPECT(condition, x) expect((condition), __LINE__, #condition, (x))

// The error of a state, of a logit and of a position's loss that float32 explains. With u = 2^-24: states, logits and
// what they are summed from are of the order of 1 (random_model sees to it). A sum of K such products is rounded K
// times, which at random leaves sqrt(K) u; the exponentials and the division of a cell leave about 2 u (cells.h), those
// of a loss the same. Steps do not add up, as the recurrence contracts. Largest error seen: 1.3 (8 + sqrt(K)) u; three
// times that is allowed, 5e-6 for K = 150. A wrong sign of one weight moves a sum by 2 eps |factor|, hundreds of times
// as much; a wrong gate or row moves everything.
//
// A layer norm divides by the spread of a layer's units, and each layer hands its error on: four times as much for both.
double tolerance(const Shape& s) {
  const double most_terms = static_cast<double>(s.E + s.D + s.N * s.D);
  return (s.L > 1 || s.norm ? 16.0 : 4.0) * 0x1p-24 * (8.0 + std::sqrt(most_terms));
}

// With products in bfloat16 a state that float32 leaves on the other side of the middle between two bfloat16 numbers is
// rounded to the other one, 2^-8 away for the largest: what each result may be off. But few states are so close to a
// middle, so that most results are as near as ever; that keeps an eye on how weights and states are rounded.
constexpr double kBFloat16Tolerance = 0x1p-6;
int64_t g_bfloat16_results = 0, g_bfloat16_near = 0;

template <class Number>
void count_near(const std::vector<Number>& actual, const std::vector<double>& expected, double allowed) {
  for (size_t i = 0; i < expected.size(); ++i) {
    g_bfloat16_results += std::isfinite(expected[i]);
    g_bfloat16_near += std::fabs(actual[i] - expected[i]) <= allowed;
  }
}

void check_close(const Case& x, const Result<float>& actual, const Result<double>& expected) {
  const double in_float32 = tolerance(x.model.shape), allowed = x.bfloat16 ? kBFloat16Tolerance : in_float32;
  EXPECT(distance(actual.h, expected.h) <= allowed, x);
  EXPECT(distance(actual.c, expected.c) <= allowed, x);
  EXPECT(distance(actual.logits, expected.logits) <= allowed, x);
  EXPECT(distance(actual.nats, expected.nats) <= allowed * static_cast<double>(x.scored()), x);
  if (!x.bfloat16) return;
  count_near(actual.h, expected.h, in_float32);
  count_near(actual.c, expected.c, in_float32);
  count_near(actual.logits, expected.logits, in_float32);
}

void test_case(const Case& x) {
  const Result<double> expected = evaluate_scalar(x);
  for_each_isa(x, [&] { check_close(x, evaluate(x), expected); });
}

// The same with products in bfloat16, whose eps must be a power of two and no finer than the grid of weights below 1.
Case with_bfloat16(Case x) {
  x.bfloat16 = true;
  x.eps = x.eps == 0.0 ? 0.0 : 0x1p-7;
  return x;
}

// --- shapes ---

void test_random_shapes(Random& random) {
  const int64_t sizes[] = {1, 2, 3, 15, 16, 17, 31, 33, 50};
  const int64_t batches[] = {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 40, 64, 65, 130};
  const int64_t steps[] = {1, 2, 3, 10, 70, 300};
  const auto pick = [&](const auto& from) { return from[random.below(static_cast<int64_t>(std::size(from)))]; };
  for (int turn = 0; turn < 420; ++turn) {  // every batch size with every cell ten times
    Shape s = {kCells[turn % 3], pick(sizes), pick(sizes), 1 + random.below(5), pick(sizes), batches[turn % 14],
               pick(steps)};
    if (turn % 3 == turn / 42 % 3) {
      s.L = 1 + random.below(3), s.residual = s.L > 1 && random.one_in(2);
      s.norm = s.N * s.D >= 8 && random.one_in(2);  // of a few units the spread may be next to nothing
    }
    const int64_t weights = s.L * s.N * s.D * (s.projected_rows() * (s.D + (s.L > 1 ? s.N * s.D : s.E)) + s.V);
    while (s.T > 1 && s.T * s.B * weights > 4000000) s.T = (s.T + 1) / 2;
    const Case x = random_case(s, kParameterTypes[random.below(3)], random);
    test_case(x);
    if (s.T <= 10 && turn / 42 % 2 == 0) test_case(with_bfloat16(x));
  }
}

// Targets at a few positions: (sequence, step).
void score_only(Case& x, std::initializer_list<std::pair<int64_t, int64_t>> positions) {
  const Shape& s = x.model.shape;
  x.targets.assign(s.B * s.T, -100);
  for (const auto& [b, t] : positions) x.targets[b * s.T + t] = (b + t) % s.V;
}

// What plan.cpp cuts up: each shape is the smallest that passes the limit it is after.
void test_panels(Random& random) {
  for (Shape s : {Shape{Cell::kLstm, 5, 3, 1, 601, 1, 2}, Shape{Cell::kLstm, 5, 3, 1, 601, 20, 2},
                  Shape{Cell::kGru, 5, 3, 1, 600, 2, 2}, Shape{Cell::kElman, 5, 3, 1, 1030, 3, 2},
                  Shape{Cell::kElman, 5, 3, 1, 1030, 9, 2},     // a head's recurrent weights in several panels
                  Shape{Cell::kGru, 1000, 20, 3, 50, 5, 10}, Shape{Cell::kLstm, 1000, 20, 3, 50, 65, 2},
                  Shape{Cell::kElman, 90, 2, 600, 1, 3, 3},     // output weights in several, down to a few rows each
                  Shape{Cell::kLstm, 40, 300, 2, 50, 9, 3}, Shape{Cell::kGru, 40, 50, 1, 130, 3, 3},
                  Shape{Cell::kElman, 70, 300, 2, 100, 17, 2},  // input weights in several
                  Shape{Cell::kLstm, 20, 7, 11, 15, 1, 5}, Shape{Cell::kGru, 20, 7, 11, 15, 2, 5},
                  Shape{Cell::kElman, 20, 7, 40, 15, 7, 5},  // heads in turn
                  Shape{Cell::kLstm, 20, 7, 3, 50, 1, 5, 2, true, false}, Shape{Cell::kGru, 20, 7, 3, 50, 20, 5, 2},
                  Shape{Cell::kElman, 20, 7, 1, 601, 9, 2, 2, false, true}}) {  // input weights of a layer in blocks
    Case x = random_case(s, kParameterTypes[random.below(3)], random);
    x.eps = random.between(0.1, 0.2) / std::sqrt(static_cast<double>(s.N * s.D));
    if (x.targets.empty()) score_only(x, {{0, 1}, {s.B - 1, 0}});
    test_case(x);
    test_case(with_bfloat16(x));
  }
}

// So many units that the table holds 32 to 1024 tokens, depending on the layout and the instruction set. The tokens of
// the stretches, which are about a chunk each: few, other few, as many as some tables hold, more than any, few again.
void test_spans(Random& random) {
  for (Shape s : {Shape{Cell::kLstm, 1500, 2, 2048, 1, 2, 640}, Shape{Cell::kGru, 1500, 2, 2048, 1, 40, 130},
                  Shape{Cell::kElman, 1500, 2, 2048, 1, 16, 128}}) {
    Case x = random_case(s, DType::kFloat32, random);
    const int64_t first[] = {0, 30, 100, 0, 40}, count[] = {20, 30, 110, 1500, 20};
    for (int64_t i = 0; i < s.B * s.T; ++i) {
      const int64_t stretch = i % s.T * 5 / s.T;
      x.tokens[i] = first[stretch] + random.below(count[stretch]);
    }
    x.num_signs = 1, x.seeds.resize(1), x.eps = 0.01;
    x.h.assign(s.N * s.B * s.D, 0.5f), x.c.assign(s.cell == Cell::kLstm ? x.h.size() : 0, -0.5f);
    score_only(x, {{0, 0}, {1, 200 % s.T}, {0, s.T / 2}, {1, s.T - 1}});
    test_case(x);
  }
}

// Chunks, blocks of positions without a target, none with one, and calls that ask for little.
void test_scoring(Random& random) {
  for (Shape s : {Shape{Cell::kLstm, 9, 4, 2, 7, 1, 600}, Shape{Cell::kGru, 9, 4, 2, 7, 3, 300},
                  Shape{Cell::kElman, 9, 4, 2, 7, 2, 300}, Shape{Cell::kLstm, 9, 4, 2, 7, 64, 40},
                  Shape{Cell::kGru, 9, 4, 2, 7, 130, 20}, Shape{Cell::kElman, 1, 4, 2, 7, 1100, 3}}) {
    Case x = random_case(s, DType::kFloat32, random);
    for (const bool states : {true, false}) {
      for (const bool logits : {true, false}) {
        x.logits = logits;
        x.h.assign(states ? x.members() * s.N * s.B * s.D : 0, 0.25f);
        x.c.assign(s.cell == Cell::kLstm ? x.h.size() : 0, 0.75f);
        score_only(x, {{s.B - 1, s.T / 2}});
        test_case(x);
        score_only(x, {{0, s.T - 1}, {s.B / 2, 0}});
        test_case(x);
        score_only(x, {});
        test_case(x);
        x.targets.clear();
        test_case(x);
      }
    }
  }
}

// --- whole runs ---

// A call cut in two. States are float32 between any two steps, and how a position is computed depends on B alone: the
// states are the same bits. So is each position's loss; but the losses are added, and the logarithms taken of products
// of them, in other groups, in double: a rounding of 1e-16 for each position.
void test_segments(const Case& x, int64_t cut) {
  for_each_isa(x, [&] {
    const Result<float> whole = evaluate(x);
    const Result<float> first = evaluate(segment(x, 0, cut, {{}, x.h, x.c, {}}));
    const Result<float> second = evaluate(segment(x, cut, x.model.shape.T, first));
    EXPECT(same(second.h, whole.h) && same(second.c, whole.c) && same(second.logits, whole.logits), x);
    for (size_t i = 0; i < whole.nats.size(); ++i)
      EXPECT(std::fabs(first.nats[i] + second.nats[i] - whole.nats[i]) <= 1e-13 * whole.nats[i], x);
  });
}

// Bit for bit the same on any number of threads, with more members than threads and with fewer, and from run to run.
void test_threads(const Case& x) {
  for_each_isa(x, [&] {
    const Result<float> alone = evaluate(x);
    for (int threads : {1, 2, 3, 8}) {
      if (g_set_threads) g_set_threads(threads);
      for (int run = 0; run < 2; ++run) EXPECT(same(evaluate(x), alone), x);
    }
    if (g_set_threads) g_set_threads(1);
  });
}

void test_whole_runs(Random& random) {
  int turn = 0;
  for (int64_t B : {1, 2, 5, 8, 9, 17, 65, 130}) {
    Shape s = {kCells[turn % 3], 40, 9, 1 + turn % 4, 21, B, B < 9 ? 300 : 30};
    s.L = 1 + turn % 2, s.norm = turn % 2, s.residual = turn % 4 == 3;
    Case x = random_case(s, kParameterTypes[turn % 2], random);
    x.num_signs = 1 + turn % 2;
    x.seeds.assign(turn % 5 ? 1 + turn % 3 : 7, random.next());
    for (uint64_t& seed : x.seeds) seed += static_cast<uint64_t>(&seed - x.seeds.data());
    x.h.assign(x.members() * s.L * s.N * s.B * s.D, 0.25f), x.c.assign(s.cell == Cell::kLstm ? x.h.size() : 0, 0.75f);
    if (x.targets.empty()) score_only(x, {{0, 3}, {B - 1, s.T - 1}});
    x.logits = turn % 3 != 1;
    if (turn % 4 == 3) x = with_bfloat16(x);
    test_segments(x, s.T / 2 - 1);
    test_threads(x);
    x.num_signs = 1, x.seeds.resize(1), x.h.resize(s.L * s.N * s.B * s.D), x.c.resize(x.c.empty() ? 0 : x.h.size());
    test_threads(x);  // one member
    ++turn;
  }
}

// The rounding mode of the calling thread must not reach the sums, whichever thread makes them.
void test_float_environment(Random& random) {
  Case x = random_case({Cell::kLstm, 40, 9, 2, 21, 5, 300}, DType::kFloat32, random);
  x.num_signs = 1, x.seeds.resize(1), x.h.clear(), x.c.clear(), x.eps = 0.05;
  x.targets = x.tokens;
  for_each_isa(x, [&] {
    const Result<float> expected = evaluate(x);
    for (int threads : {1, 3}) {
      if (g_set_threads) g_set_threads(threads);
      for (int mode : {FE_UPWARD, FE_DOWNWARD}) {
        std::fesetround(mode);
        const Result<float> actual = evaluate(x);
        const bool kept = std::fegetround() == mode;
        std::fesetround(FE_TONEAREST);
        EXPECT(kept && same(actual, expected), x);
      }
    }
    if (g_set_threads) g_set_threads(1);
  });
}

// --- numbers and arguments that are no good ---

// NaN and infinity in each parameter, at an element that a scored position meets. They make what the reference makes
// of them: a saturated gate may be all that is seen of an infinity, but no NaN is lost.
void test_bad_weights(Random& random, int64_t D, int64_t B, int64_t T) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (Cell cell : kCells)
    for (int parameter = 0; parameter <= kOutputBias; ++parameter)
      for (float bad : {std::nanf(""), infinity, -infinity}) {
        Case x = random_case({cell, 3, 2, 2, D, B, T}, kParameterTypes[random.below(3)], random);
        std::fill(x.tokens.begin(), x.tokens.end(), 0);
        x.targets.assign(x.tokens.size(), 1);
        Buffer& values = x.model.data[parameter];
        values.put(random.below(parameter == kEmbedding ? 2 : values.numel()), bad);
        test_case(x);
        if (!std::isnan(bad)) continue;
        test_case(with_bfloat16(x));
        for_each_isa(x, [&] { EXPECT(std::isnan(evaluate(x).nats[0]), x); });
      }
}

// Whether a call throws an Error and has written nothing.
template <class Error>
bool refused(const Case& x) {
  Result<float> result = unwritten(x);
  try {
    evaluate_into(result, x);
  } catch (const Error&) {
    return same(result, unwritten(x));
  }
  return false;
}

void test_refusals(Random& random) {
  const int64_t V = 6, largest = std::numeric_limits<int64_t>::max();
  for (int64_t B : {1, 40}) {
    Case x = random_case({Cell::kLstm, V, 2, 2, 5, B, 3}, DType::kFloat32, random);
    x.targets.assign(x.tokens.size(), 0);
    for_each_isa(x, [&] {
      for (int64_t token : {int64_t{-1}, V, largest, -largest}) {
        Case bad = x;
        bad.tokens[random.below(3 * B)] = token;
        EXPECT(refused<std::invalid_argument>(bad), bad);
      }
      for (int64_t target : {V, int64_t{1} << 32, largest}) {
        Case bad = x;
        bad.targets[random.below(3 * B)] = target;
        EXPECT(refused<std::invalid_argument>(bad), bad);
      }
      if (!zo::cpu::has_bfloat16()) EXPECT(refused<std::runtime_error>(with_bfloat16(x)), x);
      Case nobody = x;
      nobody.seeds.clear(), nobody.h.clear(), nobody.c.clear();
      EXPECT(evaluate(nobody).nats.empty(), nobody);
    });
  }
}

}  // namespace

int main() {
  // The kernels look for an OpenMP runtime in the process, which torch brings in Python; here it is loaded on purpose.
  dlopen("libgomp.so.1", RTLD_NOW | RTLD_GLOBAL);
  g_set_threads = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  if (g_set_threads)
    g_set_threads(1);
  else
    std::printf("no OpenMP runtime in this process: one thread only\n");

  Random random(1);
  test_random_shapes(random);
  test_panels(random);
  test_spans(random);
  test_scoring(random);
  test_whole_runs(random);
  test_float_environment(random);
  for (int64_t B : {1, 3, 40}) {
    test_bad_weights(random, 5, B, 3);
    test_bad_weights(random, 1 + B % 2, B, 1);
  }
  test_refusals(random);
  test_dnc(g_set_threads);
  test_activity(g_set_threads);

  CHECK(g_bfloat16_near >= 0.9 * static_cast<double>(g_bfloat16_results));
  std::printf("%d passed, %d failed\n", g_passed, g_failed);
  return g_failed ? 1 : 0;
}
