// Tests of the CUDA population forward without a GPU: random LSTMs, compiled and run as in test_cuda.cpp, against the
// double-precision loops of recurrent_scalar.h.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/population.h"
#include "population_cases.h"
#include "recurrent_scalar.h"
#include "scalar.h"

// Memory that was never written holds NaNs, which show up wherever they are used.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "max_malloc_fill_size=1000000000:malloc_fill_byte=255";
}

namespace {

using namespace zo_tests;

const zo::cuda::Queue kQueue = {0, nullptr};

std::vector<float> as_floats(const Buffer& x) {
  std::vector<float> values(x.numel());
  for (int64_t i = 0; i < x.numel(); ++i) values[i] = static_cast<float>(x.get(i));
  return values;
}

// Nearly all results are right to float32's rounding; where a state falls on the other side of the middle between two
// bfloat16 numbers, what follows is off by part of 2^-8. One wrong sign shows in most of what follows.
constexpr double kTolerance = 0x1p-6, kNear = 1e-5;
int64_t g_results = 0, g_near = 0;

template <class Number>
bool close(const std::vector<Number>& actual, const std::vector<double>& expected, double scale) {
  for (size_t i = 0; i < expected.size(); ++i) {
    ++g_results;
    g_near += std::fabs(actual[i] - expected[i]) <= kNear * scale;
  }
  return actual.size() == expected.size() && distance(actual, expected) <= kTolerance * scale;
}

struct Call {
  std::vector<std::vector<float>> parameters;
  std::vector<float> table;
  std::vector<double> parts;
  zo::cuda::PopulationArgs args = {};

  explicit Call(const Case& x) {
    const Shape& s = x.model.shape;
    for (const Buffer& data : x.model.data) parameters.push_back(as_floats(data));
    zo::cuda::Parameter* const fields[] = {&args.embedding, &args.input_weight,  &args.recurrent_weight,
                                           &args.bias,      &args.output_weight, &args.output_bias};
    for (int i = 0; i <= kOutputBias; ++i) *fields[i] = {parameters[i].data(), x.model.offsets[i]};
    args.vocab_size = s.V, args.embed_dim = s.E, args.num_heads = s.N, args.head_dim = s.D;
    args.tokens = x.tokens.data(), args.targets = x.targets.data();
    args.batch_size = s.B, args.num_steps = s.T;
    args.seeds = x.seeds.data(), args.num_seeds = static_cast<int64_t>(x.seeds.size());
    args.eps = static_cast<float>(x.eps);
    table.assign(zo::cuda::table_floats(args), std::nanf(""));
    parts.assign(args.num_seeds * 2 * zo::cuda::batch_tiles(args, 0), std::nan(""));
    args.table = table.data();
    args.nats = parts.data();
  }

  Result<float> run(const Case& x) {
    Result<float> result = {{}, x.h, x.c, {}};
    args.h = x.h.empty() ? nullptr : result.h.data();
    args.c = x.c.empty() ? nullptr : result.c.data();
    zo::cuda::evaluate_population(args, kQueue);
    const size_t tiles = parts.size() / x.members();
    for (size_t i = 0; i < parts.size(); ++i) {
      if (i % tiles == 0) result.nats.push_back(0.0);
      result.nats.back() += parts[i];
    }
    return result;
  }
};

Case make_case(Shape shape, Random& random, bool with_states) {
  Case x = random_case(shape, DType::kFloat32, random);
  x.bfloat16 = x.signs_apart = true;
  x.logits = false;
  x.num_signs = 2;
  x.eps = random.one_in(6) ? 0.0 : std::ldexp(1.0, -static_cast<int>(3 + random.below(8)));
  if (x.targets.empty()) x.targets.assign(shape.B * shape.T, -1);
  x.h.assign(with_states ? x.members() * shape.N * shape.B * shape.D : 0, 0.0f);
  x.c = x.h;
  for (float& h : x.h) h = static_cast<float>(to_bfloat16(random.between(-1.0, 1.0)));
  for (float& c : x.c) c = static_cast<float>(random.between(-2.0, 2.0));
  return x;
}

void test_case(const Case& x) {
  const Result<double> expected = evaluate_scalar(x);
  Result<float> forwards, backwards;
  for (const bool order : {false, true}) {
    shim::machine().backwards = order;
    (order ? backwards : forwards) = Call(x).run(x);
  }
  shim::machine().backwards = false;
  const std::string what = x.describe();
  const double positions = static_cast<double>(std::max<int64_t>(x.scored(), 1));
  check(same(forwards, backwards), __FILE__, __LINE__, "the order of threads shows: " + what);
  check(close(forwards.nats, expected.nats, positions), __FILE__, __LINE__, "nats: " + what);
  check(close(forwards.h, expected.h, 1.0), __FILE__, __LINE__, "h: " + what);
  check(close(forwards.c, expected.c, 4.0), __FILE__, __LINE__, "c: " + what);
}

// Two segments carry on to the bit what one call computes.
void test_segments(const Case& x, int64_t cut) {
  const Result<float> whole = Call(x).run(x);
  Result<float> before = {{}, x.h, x.c, {}};
  std::vector<double> nats(x.members(), 0.0);
  for (const auto& [first, last] : {std::pair<int64_t, int64_t>{0, cut}, {cut, x.model.shape.T}}) {
    const Case part = segment(x, first, last, before);
    before = Call(part).run(part);
    for (size_t i = 0; i < nats.size(); ++i) nats[i] += before.nats[i];
  }
  CHECK(same(before.h, whole.h) && same(before.c, whole.c));
  for (size_t i = 0; i < nats.size(); ++i) CHECK(std::fabs(nats[i] - whole.nats[i]) < 1e-9);
}

template <class F>
bool refused(F call) {
  const int launches = shim::machine().launches;
  try {
    call();
  } catch (const std::invalid_argument&) {
    return shim::machine().launches == launches;
  }
  return false;
}

// The kernel of the token table declares 12 KB of shared memory, which counts against the 48 KB that a kernel may have
// without asking for more.
void test_long_embeddings(Random& random) {
  shim::machine().static_shared = 12 * 1024;
  for (const int64_t embed_dim : {3068, 3069, 4092, 4200}) {
    shim::machine().allowed.clear();
    test_case(make_case({Cell::kLstm, 3, embed_dim, 1, 2, 1, 1}, random, false));
  }
  shim::machine().static_shared = 0;
}

void test_limits(Random& random) {
  Case odd = make_case({Cell::kLstm, 5, 3, 1, 3, 2, 1}, random, false);
  CHECK(zo::cuda::tile_sequences(Call(odd).args, 0) == 0);
  CHECK(refused([&] { Call(odd).run(odd); }));
  zo::cuda::PopulationArgs args = {};
  args.vocab_size = 100, args.embed_dim = 100, args.num_heads = 12, args.head_dim = 20;
  args.batch_size = 1024;
  CHECK(zo::cuda::tile_sequences(args, 0) == 32);
  CHECK(zo::cuda::batch_tiles(args, 0) == 32);
  args.batch_size = 16;
  CHECK(zo::cuda::tile_sequences(args, 0) == 16);
  args.batch_size = 1024, args.num_heads = 14;
  CHECK(zo::cuda::tile_sequences(args, 0) == 16);
  args.num_heads = 80;
  CHECK(zo::cuda::tile_sequences(args, 0) == 0);
  args.num_heads = 12, args.embed_dim = 20000;
  CHECK(zo::cuda::tile_sequences(args, 0) == 0);
  Case fine = make_case({Cell::kLstm, 5, 3, 1, 4, 2, 1}, random, false);
  fine.eps = 0.1;
  CHECK(refused([&] { Call(fine).run(fine); }));
}

}  // namespace

int main() {
  Random random(1);
  const Shape shapes[] = {
      {Cell::kLstm, 2, 1, 1, 2, 1, 1},     {Cell::kLstm, 9, 5, 2, 6, 3, 3},     {Cell::kLstm, 17, 16, 1, 16, 16, 2},
      {Cell::kLstm, 33, 17, 3, 20, 17, 2}, {Cell::kLstm, 7, 40, 2, 10, 35, 2},  {Cell::kLstm, 70, 7, 1, 34, 5, 2},
      {Cell::kLstm, 8, 2, 5, 8, 33, 1},    {Cell::kLstm, 130, 20, 2, 18, 2, 2}, {Cell::kLstm, 11, 7, 1, 24, 40, 3},
  };
  for (const Shape& shape : shapes)
    for (const bool with_states : {false, true}) test_case(make_case(shape, random, with_states));
  Case x = make_case({Cell::kLstm, 13, 6, 2, 10, 18, 5}, random, true);
  test_segments(x, 2);
  test_long_embeddings(random);
  test_limits(random);
  CHECK(g_near >= 0.98 * static_cast<double>(g_results));
  std::printf("%d checks passed, %d failed; %.1f %% of the results as near as float32\n", g_passed, g_failed,
              100.0 * static_cast<double>(g_near) / static_cast<double>(g_results));
  return g_failed != 0;
}
