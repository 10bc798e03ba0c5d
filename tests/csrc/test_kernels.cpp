// Tests of the CPU kernels without Python (test_distributions.cpp has more): every kernel, on every instruction set of this processor, against the scalar
// loops of scalar.h. Meant for a build with -DZO_SANITIZE=ON: buffers are heap blocks of exactly the size needed, so
// that AddressSanitizer sees the first byte read or written past their end.
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu/launch.h"
#include "cpu/parallel.h"
#include "philox.h"
#include "scalar.h"

namespace {

using namespace zo_tests;

// Sizes around the vectors, blocks and tiles of each instruction set, offsets on both sides of where the high half of
// the block index changes (element 2^39 * k), and the end of the index space.
std::vector<Range> ranges() {
  std::vector<Range> all;
  for (int64_t numel : {0,   1,   2,   3,   4,   5,    7,    8,    9,    15,   16,   17,   31,   33,   127,  128,
                        129, 255, 300, 511, 512, 513,  1023, 1024, 1025, 1500, 2047, 2048, 2049, 4095, 4097, 6150})
    all.push_back({numel, 128 * (numel % 7)});
  const int64_t edge = int64_t{1} << 39;
  for (int64_t blocks : {0, 1, 3, 4, 8, 15, 16, 17, 20}) all.push_back({2500, edge - 128 * blocks});
  all.push_back({2500, 5 * edge - 384});
  all.push_back({2500, (int64_t{1} << 40) + 128});
  all.push_back({2500, (int64_t{1} << 62) - 640});
  all.push_back({2559, std::numeric_limits<int64_t>::max() - 2559});
  return all;
}

void test_philox() {
  const struct {
    zo::Philox4 counter;
    uint32_t key0, key1;
    zo::Philox4 output;
  } known[] = {  // Random123's known answers
      {{{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {{{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
       {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
  };
  for (const auto& k : known) {
    const zo::Philox4 out = zo::philox4x32_10(k.counter, k.key0, k.key1);
    CHECK(std::memcmp(&out, &k.output, sizeof(out)) == 0);
  }
}

void test_probe(Range range) {
  for (const uint64_t seed : {uint64_t{0}, ~uint64_t{0}, uint64_t{0x9e3779b97f4a7c15}}) {
    for (DType type : kTypes) {
      Buffer expected(type, range.numel);
      for (int64_t i = 0; i < range.numel; ++i) expected.put(i, sign(seed, range.offset + i));
      for_each_isa([&] {
        Buffer out(type, range.numel, static_cast<int>(range.numel % 4));
        zo::cpu::probe(out.data(), type, range.numel, seed, range.offset);
        CHECK_SAME(out, expected, describe("probe", type, range));
      });
    }
  }
}

void test_apply(Range range, double alpha) {
  const uint64_t seed = 0xfedcba9876543210u;
  for (DType in : kTypes) {
    const Buffer x = make_values(in, range.numel);
    for (DType out_type : kTypes) {
      Buffer expected(out_type, range.numel);
      for (int64_t i = 0; i < range.numel; ++i)
        expected.put(i, add(in, x.get(i), alpha * sign(seed, range.offset + i)));
      for_each_isa([&] {
        Buffer source(x, 3), out(out_type, range.numel, 1);
        zo::cpu::apply_probe(source.data(), in, out.data(), out_type, range.numel, {alpha, seed}, range.offset);
        CHECK_SAME(out, expected, describe("apply_probe", in, range) + " to " + name_of(out_type));
        CHECK_SAME(source, x, describe("apply_probe's source", in, range));
        if (in != out_type) return;
        zo::cpu::apply_probe(source.data(), in, source.data(), in, range.numel, {alpha, seed}, range.offset);
        CHECK_SAME(source, expected, describe("apply_probe in place", in, range));
      });
    }
  }
}

void test_swap(Range range, zo::Term from, zo::Term to) {
  for (DType type : kTypes) {
    const Buffer x = make_values(type, range.numel);
    Buffer expected(x);
    std::vector<double> first(static_cast<size_t>(range.numel));
    for (int64_t i = 0; i < range.numel; ++i)
      first[static_cast<size_t>(i)] = add(type, x.get(i), from.alpha * sign(from.seed, range.offset + i));
    for (int64_t i = 0; i < range.numel; ++i)
      expected.put(i, add(type, first[static_cast<size_t>(i)], to.alpha * sign(to.seed, range.offset + i)));
    for_each_isa([&] {
      Buffer actual(x, 1);
      zo::cpu::swap_probe(actual.data(), type, range.numel, from, to, range.offset);
      CHECK_SAME(actual, expected, describe("swap_probe", type, range));
    });
  }
}

struct Rows {
  std::vector<int32_t> quantised;
  std::vector<uint64_t> seeds;

  // `count` rows whose absolute sum is the largest allowed, 2^31 - 1, a third of them a repeated seed.
  explicit Rows(int64_t count) {
    const int64_t limit = std::numeric_limits<int32_t>::max();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t q = i == 0 ? limit / count + limit % count : limit / count;
      quantised.push_back(static_cast<int32_t>(i % 2 ? -q : q));
      seeds.push_back(i % 3 == 2 ? 42 : 0x8000000000000001u + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(i));
    }
  }
};

void test_accumulate(Range range, int64_t num_seeds, int shift, const zo::Update& update) {
  const Rows rows(num_seeds);
  std::vector<int64_t> sums(static_cast<size_t>(range.numel));
  for (size_t k = 0; k < rows.seeds.size(); ++k)
    for (size_t i = 0; i < sums.size(); ++i)
      sums[i] += sign(rows.seeds[k], range.offset + static_cast<int64_t>(i)) * int64_t{rows.quantised[k]};
  for (DType type : kTypes) {
    const Buffer x = make_values(type, range.numel);
    Buffer expected(x);
    for (int64_t i = 0; i < range.numel; ++i) {
      double v = x.get(i);
      if (update.has_undo) v = add(type, v, update.undo.alpha * sign(update.undo.seed, range.offset + i));
      v = mul(type, v, update.decay);
      v = add(type, v, mul(type, static_cast<double>(sums[static_cast<size_t>(i)]), std::ldexp(1.0, -shift)));
      if (update.grid != 0.0) v = mul(type, rint_in(type, mul(type, v, 1.0 / update.grid)), update.grid);
      expected.put(i, rounded(type, update, v, range.offset + i));
    }
    for_each_isa([&] {
      Buffer actual(x, 3);
      // Exactly num_seeds entries: reading the padding of the last group from here would be an overrun.
      const std::unique_ptr<int32_t[]> q(new int32_t[rows.seeds.size()]);
      const std::unique_ptr<uint64_t[]> seeds(new uint64_t[rows.seeds.size()]);
      std::copy(rows.quantised.begin(), rows.quantised.end(), q.get());
      std::copy(rows.seeds.begin(), rows.seeds.end(), seeds.get());
      zo::cpu::accumulate_probes(actual.data(), type, range.numel, q.get(), seeds.get(), num_seeds, shift, range.offset,
                                 update);
      CHECK_SAME(actual, expected, describe("accumulate_probes", type, range) + " seeds " + std::to_string(num_seeds));
    });
  }
}

// The XOR of all words of all blocks touched, those of odd blocks in the high half.
void test_fold(Range range) {
  const Rows rows(5);
  uint64_t expected = 0;
  const uint64_t first = static_cast<uint64_t>(range.offset) / 128;
  for (uint64_t block = first; block < first + static_cast<uint64_t>(range.numel + 127) / 128; ++block)
    for (uint64_t seed : rows.seeds)
      for (uint32_t word : zo::philox_block(seed, block, zo::kStreamRademacher).word)
        expected ^= uint64_t{word} << (32 * (block % 2));
  for_each_isa([&] {
    CHECK(zo::cpu::fold_probes(range.numel, rows.seeds.data(), 5, range.offset) == expected);
    CHECK(zo::cpu::fold_probes(range.numel, nullptr, 0, range.offset) == 0);
  });
}

// Lets this thread flush subnormals to zero, those it reads as well, while it lives.
class FlushSubnormals {
 public:
#if defined(__SSE2__)
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlags); }
  ~FlushSubnormals() { _mm_setcsr(before_); }
  bool kept() const { return (_mm_getcsr() & kFlags) == kFlags; }

 private:
  static constexpr unsigned kFlags = 0x8040;
  unsigned before_;
#elif defined(__aarch64__)
  FlushSubnormals() : before_(get()) { set(before_ | kFlags); }
  ~FlushSubnormals() { set(before_); }
  bool kept() const { return (get() & kFlags) == kFlags; }

 private:
  static uint64_t get() {
    uint64_t control;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void set(uint64_t control) { asm volatile("msr fpcr, %0" : : "r"(control)); }
  static constexpr uint64_t kFlags = 1u << 24;
  uint64_t before_;
#else
  bool kept() const { return true; }
#endif
};

// Rounding mode and flushing of subnormals of the calling thread must not reach the kernels, and must survive them.
void test_float_environment() {
  Buffer expected(DType::kFloat32, 3000), x(DType::kFloat32, 3000);
  for (int64_t i = 0; i < 3000; ++i) {
    x.put(i, i % 2 ? 1.0 / 3.0 : 1e-39);  // every other one a subnormal
    expected.put(i, add(DType::kFloat32, x.get(i), 1e-40 * sign(7, i)));
  }
  for_each_isa([&] {
    Buffer actual(x);
    std::fesetround(FE_UPWARD);
    bool kept;
    {
      const FlushSubnormals flush;
      zo::cpu::apply_probe(actual.data(), DType::kFloat32, actual.data(), DType::kFloat32, 3000, {1e-40, 7}, 0);
      kept = std::fegetround() == FE_UPWARD && flush.kept();
    }
    std::fesetround(FE_TONEAREST);
    CHECK(kept);
    CHECK_SAME(actual, expected, describe("apply_probe in another environment", DType::kFloat32, {3000, 0}));
  });
}

template <class F>
bool throws_runtime_error(F f, const std::string& message) {
  try {
    f();
  } catch (const std::runtime_error& error) {
    return std::string(error.what()).find(message) != std::string::npos;
  }
  return false;
}

void test_isa_choice() {
  for (const std::string& isa : zo::cpu::supported_isas()) {
    zo::cpu::set_active_isa(isa);
    CHECK(zo::cpu::active_isa() == isa);
    CHECK(throws_runtime_error([] { zo::cpu::set_active_isa("sse9"); }, "sse9"));
    CHECK(zo::cpu::active_isa() == isa);  // as before the refusal
  }
  zo::cpu::set_active_isa("");
  CHECK(zo::cpu::supported_isas().front() == "baseline");
}

// parallel_for covers [0, count) exactly once, on as many threads as have `grain` items each: all of them meet here,
// so that none can do the work of another. A loop inside stays on its thread.
void test_parallel_for(int threads) {
  for (int64_t count : {0, 1, 2, 5, 16, 17, 1000}) {
    for (int64_t grain : {0, 1, 3, 16, 2000}) {
      const int64_t worth = std::max<int64_t>(count / std::max<int64_t>(grain, 1), count > 0);
      const size_t expected = static_cast<size_t>(std::min<int64_t>(threads, worth));
      std::vector<int> visits(static_cast<size_t>(count));
      std::set<std::thread::id> seen;
      std::mutex mutex;
      std::condition_variable all_here;
      bool met = true, alone = true;
      zo::cpu::parallel_for(count, grain, [&](int64_t first, int64_t last) {
        std::unique_lock<std::mutex> lock(mutex);
        for (int64_t i = first; i < last; ++i) ++visits[static_cast<size_t>(i)];
        seen.insert(std::this_thread::get_id());
        all_here.notify_all();
        const auto patience = std::chrono::seconds(g_failed ? 0 : 20);
        met = all_here.wait_for(lock, patience, [&] { return seen.size() >= expected; }) && met;
        lock.unlock();
        const auto self = std::this_thread::get_id();
        if (expected > 1)
          zo::cpu::parallel_for(10, 1, [&](int64_t begin, int64_t end) {
            const std::lock_guard<std::mutex> inner(mutex);
            alone = alone && begin == 0 && end == 10 && std::this_thread::get_id() == self;
          });
      });
      CHECK(visits == std::vector<int>(static_cast<size_t>(count), 1));
      CHECK(met && seen.size() == expected);
      CHECK(alone);
    }
  }
}

// What a body throws reaches the caller after all threads have left the loop, and the next loop runs as ever.
void test_parallel_for_throws() {
  for (int64_t thrower = 0; thrower < 64; ++thrower) {
    std::atomic<int> inside{0};
    bool caught = false;
    try {
      zo::cpu::parallel_for(64, 1, [&](int64_t first, int64_t last) {
        ++inside;
        const bool throws = first <= thrower && thrower < last;
        if (!throws) std::this_thread::sleep_for(std::chrono::microseconds(20));
        --inside;
        if (throws) throw std::bad_alloc();
      });
    } catch (const std::bad_alloc&) {
      caught = true;
    }
    CHECK(caught && inside == 0);
  }
}

void test_threads() {
  test_parallel_for_throws();
  const auto set_threads = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  if (!zo::cpu::has_openmp() || !set_threads) {
    std::printf("no OpenMP runtime in this process: one thread only\n");
    return test_parallel_for(1);
  }
  zo::Update update;
  update.has_undo = true;
  update.undo = {-0.25, 9};
  update.decay = 0.75;
  for (int threads : {1, 2, 3, 8}) {
    set_threads(threads);
    CHECK(zo::cpu::max_threads() == threads);
    test_parallel_for(threads);
    test_parallel_for_throws();
    const int64_t edge = int64_t{1} << 39;
    test_probe({140001, edge - 70016});
    test_swap({140001, edge - 70016}, {0.5, 1}, {-0.25, 2});
    test_accumulate({12345, edge - 6144}, 97, 20, update);
    test_fold({40000, edge - 12800});
  }
  set_threads(1);
}

}  // namespace

int main() {
  // The kernels look for an OpenMP runtime in the process, which torch brings in Python; here it is loaded on purpose.
  dlopen("libgomp.so.1", RTLD_NOW | RTLD_GLOBAL);

  test_philox();
  test_isa_choice();
  test_float_environment();
  int turn = 0;
  const int64_t seed_counts[] = {0, 1, 2, 3, 4, 5, 12, 71, 72, 73, 95, 96, 97, 200};
  const double alphas[] = {0.5, -0.3, 1e-42, 0.0, 3e38, -6e-8};
  for (Range range : ranges()) {
    zo::Update update;  // none, then each option, then all
    update.has_undo = turn % 4 == 1 || turn % 4 == 3;
    update.undo = {-alphas[turn % 6], 17};
    update.decay = turn % 4 >= 2 ? 0.99 : 1.0;
    update.grid = turn % 3 == 2 ? std::ldexp(1.0, turn % 2 ? -20 : 0) : 0.0;
    update.rounds_at_random = turn % 2 == 1;
    update.rounding_seed = 0xfedcba9876543210u + static_cast<uint64_t>(turn);
    test_probe(range);
    test_apply(range, alphas[turn % 6]);
    test_swap(range, {-alphas[turn % 6], 5}, {alphas[(turn + 1) % 6], ~uint64_t{5}});
    test_accumulate(range, seed_counts[turn % 14], turn % 5 == 4 ? -96 : 5 + 11 * (turn % 12), update);
    test_fold(range);
    ++turn;
  }
  for (int64_t count : {96, 97, 600}) test_accumulate({2049, 128}, count, 31, {});
  test_distributions();
  test_threads();

  std::printf("%d passed, %d failed\n", g_passed, g_failed);
  return g_failed ? 1 : 0;
}
