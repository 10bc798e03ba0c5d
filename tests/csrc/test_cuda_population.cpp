// Tests of the resident forward without a GPU: random LSTMs, compiled and run as in test_cuda.cpp, against the
// double-precision loops of recurrent_scalar.h.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/resident.h"
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
  std::vector<int64_t> rows;
  std::vector<int32_t> tokens, targets;
  std::vector<uint4> scratch;
  std::vector<double> parts;
  zo::cuda::ResidentArgs args = {};

  // steps_at_once: 0 for all.
  explicit Call(const Case& x, int64_t steps_at_once = 0) {
    const Shape& s = x.model.shape;
    for (const Buffer& data : x.model.data) parameters.push_back(as_floats(data));
    zo::cuda::Parameter* const fields[] = {&args.embedding, &args.input_weight,  &args.recurrent_weight,
                                           &args.bias,      &args.output_weight, &args.output_bias};
    for (int i = 0; i <= kOutputBias; ++i) *fields[i] = {parameters[i].data(), x.model.offsets[i]};
    args.vocab_size = s.V, args.embed_dim = s.E, args.num_heads = s.N, args.head_dim = s.D;
    args.batch_size = s.B, args.num_steps = s.T;
    args.steps_at_once = steps_at_once == 0 ? s.T : steps_at_once;
    args.seeds = x.seeds.data(), args.num_seeds = static_cast<int64_t>(x.seeds.size());
    args.eps = static_cast<float>(x.eps);
    for (int64_t token = s.V - 1; token >= 0; --token)  // those that occur, not in their order
      if (std::count(x.tokens.begin(), x.tokens.end(), token) > 0) rows.push_back(token);
    for (int64_t t = 0; t < s.T; ++t)
      for (int64_t b = 0; b < s.B; ++b) {
        const int64_t at = b * s.T + t;
        tokens.push_back(static_cast<int32_t>(std::find(rows.begin(), rows.end(), x.tokens[at]) - rows.begin()));
        targets.push_back(static_cast<int32_t>(x.targets[at]));
      }
    args.rows = rows.data(), args.num_rows = static_cast<int64_t>(rows.size());
    args.tokens = tokens.data(), args.targets = targets.data();
    const int64_t bytes = args.num_seeds * zo::cuda::scratch_bytes(args);
    CHECK(bytes % 16 == 0);
    scratch.assign(static_cast<size_t>(bytes / 16), {~0u, ~0u, ~0u, ~0u});
    parts.assign(args.num_seeds * 2 * zo::cuda::num_parts(args), std::nan(""));
    args.scratch = reinterpret_cast<char*>(scratch.data());
    args.nats = parts.data();
  }

  Result<float> run(const Case& x) {
    Result<float> result = {{}, x.h, x.c, {}};
    args.h = x.h.empty() ? nullptr : result.h.data();
    args.c = x.c.empty() ? nullptr : result.c.data();
    zo::cuda::evaluate_resident(args, kQueue);
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
  x.bfloat16 = true;
  x.logits = false;
  x.num_signs = 2;
  x.eps = random.one_in(6) ? 0.0 : std::ldexp(random.one_in(2) ? 1.0 : -1.0, -static_cast<int>(3 + random.below(5)));
  for (Buffer& data : x.model.data)  // which eps must not be finer than
    for (int64_t i = 0; i < data.numel(); ++i) data.put(i, std::max(-0.99, std::min(0.99, data.get(i))));
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

// Two segments carry on to the bit what one call computes, and so do hidden states that are kept for a few steps.
void test_segments(const Case& x, int64_t cut) {
  const Result<float> whole = Call(x).run(x);
  Result<float> before = {{}, x.h, x.c, {}};
  std::vector<double> nats(x.members(), 0.0);
  for (const auto& [first, last] : {std::pair<int64_t, int64_t>{0, cut}, {cut, x.model.shape.T}}) {
    const Case part = segment(x, first, last, before);
    before = Call(part).run(part);
    for (size_t i = 0; i < nats.size(); ++i) nats[i] += before.nats[i];
  }
  const Result<float> in_chunks = Call(x, cut).run(x);
  CHECK(same(before.h, whole.h) && same(before.c, whole.c));
  CHECK(same(in_chunks.h, whole.h) && same(in_chunks.c, whole.c));
  for (size_t i = 0; i < nats.size(); ++i) {
    CHECK(std::fabs(nats[i] - whole.nats[i]) < 1e-9);
    CHECK(std::fabs(in_chunks.nats[i] - whole.nats[i]) < 1e-9);
  }
}

// What is not a number in the weights or states of a unit must show in the losses.
void test_faults_show(Case x) {
  x.targets.assign(x.targets.size(), 0);
  for (int parameter = 0; parameter <= kOutputBias; ++parameter)
    for (const int64_t at : {int64_t{0}, x.model.data[parameter].numel() - 1}) {
      Case faulty = x;
      std::fill(faulty.tokens.begin(), faulty.tokens.end(), at == 0 ? 0 : x.model.shape.V - 1);
      faulty.model.data[parameter].put(at, std::nan(""));
      for (double nats : Call(faulty).run(faulty).nats) check(std::isnan(nats), __FILE__, __LINE__, "a NaN vanishes");
    }
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
  for (const int64_t embed_dim : {2945, 2946, 3969, 4200}) {
    shim::machine().allowed.clear();
    test_case(make_case({Cell::kLstm, 3, embed_dim, 1, 2, 1, 1}, random, false));
  }
  shim::machine().static_shared = 0;
}

void test_limits(Random& random) {
  Case x = make_case({Cell::kLstm, 5, 3, 1, 65, 2, 2}, random, false);
  CHECK(refused([&] { Call(x).run(x); }));
  x = make_case({Cell::kLstm, 5, 3, 1, 4, 2, 2}, random, false);
  CHECK(refused([&] { Call(x, 1).run(x); }));
  x.eps = 0.375;
  CHECK(refused([&] { Call(x).run(x); }));
}

// Shared memory of an A100, an H100 and an RTX 4090.
constexpr zo::cuda::DeviceLimits kAmpere = {163 * 1024, 164 * 1024}, kHopper = {227 * 1024, 228 * 1024},
                                 kAda = {99 * 1024, 100 * 1024};

void test_plans() {
  for (const zo::cuda::DeviceLimits& limits : {kAmpere, kHopper, kAda}) {
    for (int64_t D = 1; D <= 64; ++D)
      for (const int64_t rows : {1, 100, 300, 30000, 2000000000}) {
        const zo::cuda::ResidentPlan plan = zo::cuda::plan_resident(D, rows, limits);
        CHECK(8 * plan.unit_tiles >= D && 8 * plan.unit_tiles < D + 8);
        CHECK(plan.threads() <= 256 && plan.threads() >= 160);
        CHECK(plan.shared_bytes <= limits.per_block && 2 * plan.shared_bytes < limits.per_multiprocessor);
        CHECK(plan.shared_bytes == plan.hidden_bytes() + (plan.table_in_shared ? rows * plan.unit_tiles * 128 : 0));
        CHECK(rows > 1 || plan.table_in_shared);
      }
    for (const int64_t D : {-1, 0, 65, 1000}) CHECK(zo::cuda::plan_resident(D, 100, limits).unit_tiles == 0);
    CHECK(zo::cuda::most_embed_dim(limits) >= 5000);
  }
  CHECK(zo::cuda::plan_resident(20, 100, kAmpere).table_in_shared);
  CHECK(zo::cuda::plan_resident(50, 100, kHopper).table_in_shared);
  CHECK(!zo::cuda::plan_resident(50, 100, kAmpere).table_in_shared);
  CHECK(!zo::cuda::plan_resident(20, 30000, kHopper).table_in_shared);
  CHECK(zo::cuda::plan_resident(20, 100, kHopper).sequences() == 128);
  CHECK(zo::cuda::plan_resident(50, 100, kHopper).sequences() == 64);
}

}  // namespace

int main() {
  Random random(1);
  const Shape shapes[] = {
      {Cell::kLstm, 2, 1, 1, 1, 1, 1},    {Cell::kLstm, 9, 5, 2, 6, 3, 3},      {Cell::kLstm, 17, 16, 1, 16, 16, 2},
      {Cell::kLstm, 33, 17, 3, 20, 17, 2}, {Cell::kLstm, 7, 40, 2, 9, 35, 2},   {Cell::kLstm, 70, 7, 1, 33, 5, 2},
      {Cell::kLstm, 8, 2, 5, 8, 20, 1},   {Cell::kLstm, 130, 20, 2, 17, 2, 2},  {Cell::kLstm, 11, 7, 1, 50, 66, 2},
      {Cell::kLstm, 5, 3, 2, 64, 3, 2},   {Cell::kLstm, 240, 3, 1, 5, 70, 2}, {Cell::kLstm, 3, 300, 3, 41, 2, 2},
  };
  for (const Shape& shape : shapes)
    for (const bool with_states : {false, true}) test_case(make_case(shape, random, with_states));
  const Case many = make_case({Cell::kLstm, 150, 2, 1, 60, 40, 8}, random, false);
  CHECK(!zo::cuda::plan_resident(60, Call(many).args.num_rows, kHopper).table_in_shared);
  test_case(many);
  Case x = make_case({Cell::kLstm, 13, 6, 2, 10, 18, 5}, random, true);
  test_segments(x, 2);
  test_long_embeddings(random);
  test_faults_show(make_case({Cell::kLstm, 13, 6, 2, 10, 3, 2}, random, false));
  test_limits(random);
  test_plans();
  CHECK(g_near >= 0.98 * static_cast<double>(g_results));
  std::printf("%d checks passed, %d failed; %.1f %% of the results as near as float32\n", g_passed, g_failed,
              100.0 * static_cast<double>(g_near) / static_cast<double>(g_results));
  return g_failed != 0;
}
