// Chooses the instruction set, cuts ranges into tiles and runs them on the threads.
#if defined(ZO_X86)
#include <cpuid.h>
#endif

#include <cmath>
#include <cstdlib>
#include <stdexcept>

#include "kernels.h"
#include "parallel.h"
#include "population/population.h"

namespace zo::cpu {
namespace {

// Number of elements that are worth a thread. Accumulating does more work per element.
constexpr int64_t kApplyGrain = 32768;
constexpr int64_t kAccumulateGrain = 1 << 19;  // elements times seeds
constexpr int64_t kDrawGrain = 16384;          // likewise

struct Isa {
  const Kernels* kernels;
  bool supported;
};

#if defined(ZO_X86)
bool has_f16c() {  // not every compiler's __builtin_cpu_supports knows f16c
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

const std::vector<Isa>& isas() {  // best last
  static const std::vector<Isa> all = [] {
    std::vector<Isa> found = {{&kBaselineKernels, true}};
#if defined(ZO_X86)
    __builtin_cpu_init();
    found.push_back({&kAvx2Kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()});
    found.push_back({&kAvx512Kernels, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")});
#endif
    return found;
  }();
  return all;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const Kernels* find_isa(const std::string& name, const std::string& asked_by) {
  for (const Isa& isa : isas()) {
    if (name != isa.kernels->name) continue;
    if (isa.supported) return isa.kernels;
    throw std::runtime_error(asked_by + " asks for the instruction set " + name +
                             ", which this processor lacks; it has: " + join(supported_isas()));
  }
  throw std::runtime_error(asked_by + " asks for the instruction set '" + name +
                           "', which this build does not know; it has: " + join(compiled_isas()));
}

const Kernels* g_forced = nullptr;  // by set_active_isa

// Calls body(first_element, numel, first_block, block_high) for each run of blocks that share the high half of their
// index. There is one run, unless the range passes element 2^39 * k.
template <class F>
void for_each_stretch(int64_t numel, int64_t offset, F body) {
  int64_t done = 0;
  while (done < numel) {
    const uint64_t block = static_cast<uint64_t>(offset + done) / kBlockSigns;
    const uint64_t blocks_left = (uint64_t{1} << 32) - (block & 0xffffffffu);
    const int64_t elements = static_cast<int64_t>(blocks_left) * kBlockSigns;
    const int64_t here = numel - done < elements ? numel - done : elements;
    body(done, here, block, static_cast<uint32_t>(block >> 32));
    done += here;
  }
}

int64_t tiles_of(const Kernels& isa, int64_t numel) {
  const int64_t tile = isa.tile_blocks * kBlockSigns;
  return (numel + tile - 1) / tile;
}

int64_t grain_of(const Kernels& isa, int64_t elements) {
  const int64_t tile = isa.tile_blocks * kBlockSigns;
  return elements < tile ? 1 : elements / tile;
}

const void* at(const void* p, DType type, int64_t element) {
  return static_cast<const char*>(p) + element * size_of(type);
}

void* at(void* p, DType type, int64_t element) { return static_cast<char*>(p) + element * size_of(type); }

// The 2^group sums of +-q of each group of seeds; q of missing seeds is 0.
std::vector<int32_t> make_tables(const int32_t* quantised, int64_t num_seeds, int64_t num_groups, int group) {
  const int64_t entries = int64_t{1} << group;
  std::vector<int32_t> tables(static_cast<size_t>(num_groups * entries));
  for (int64_t g = 0; g < num_groups; ++g) {
    for (int64_t entry = 0; entry < entries; ++entry) {
      int32_t sum = 0;
      for (int b = 0; b < group; ++b) {
        const int64_t seed = g * group + b;
        if (seed >= num_seeds) break;
        sum += (entry >> b) & 1 ? quantised[seed] : -quantised[seed];
      }
      tables[static_cast<size_t>(g * entries + entry)] = sum;
    }
  }
  return tables;
}

std::vector<ProbeKey> make_keys(const uint64_t* seeds, int64_t num_seeds, int64_t padded, uint32_t block_high) {
  std::vector<ProbeKey> keys(static_cast<size_t>(padded));
  for (int64_t i = 0; i < padded; ++i)
    keys[static_cast<size_t>(i)] = make_probe_key(i < num_seeds ? seeds[i] : 0, block_high);
  return keys;
}

}  // namespace

const Kernels& kernels() {
  if (g_forced) return *g_forced;
  static const Kernels* const chosen = [] {
    const char* name = std::getenv("ZO_KERNELS_ISA");
    if (name && *name) return find_isa(name, "ZO_KERNELS_ISA");
    const Kernels* best = nullptr;
    for (const Isa& isa : isas())
      if (isa.supported) best = isa.kernels;
    return best;
  }();
  return *chosen;
}

const PopulationKernels* bfloat16_kernels() {
#if defined(ZO_X86)
  if (&kernels() == &kAvx512Kernels && __builtin_cpu_supports("avx512bf16")) return &kAvx512BFloat16PopulationKernels;
#endif
  return nullptr;
}

bool has_bfloat16() { return bfloat16_kernels() != nullptr; }

ProbeKey make_probe_key(uint64_t seed, uint32_t block_high, uint32_t stream, uint32_t number) {
  uint32_t k0[kPhiloxRounds], k1[kPhiloxRounds];
  k0[0] = static_cast<uint32_t>(seed);
  k1[0] = static_cast<uint32_t>(seed >> 32);
  for (int round = 1; round < kPhiloxRounds; ++round) {
    k0[round] = k0[round - 1] + kPhiloxW0;
    k1[round] = k1[round - 1] + kPhiloxW1;
  }
  const uint32_t c0 = block_high ^ k0[0] ^ mul_hi(kPhiloxM1, stream);
  ProbeKey key;
  key.round1 = k1[0] ^ number;
  key.round2[0] = k0[1] ^ (kPhiloxM1 * stream);
  key.round2[1] = mul_hi(kPhiloxM0, c0) ^ k1[1];
  key.round3[0] = k0[2];
  key.round3[1] = (kPhiloxM0 * c0) ^ k1[2];
  for (int round = 3; round < kPhiloxRounds; ++round) {
    key.rounds4to10[round - 3][0] = k0[round];
    key.rounds4to10[round - 3][1] = k1[round];
  }
  return key;
}

void probe(void* out, DType out_type, int64_t numel, uint64_t seed, int64_t offset) {
  const Kernels& isa = kernels();
  for_each_stretch(numel, offset, [&](int64_t first, int64_t here, uint64_t block, uint32_t high) {
    const ProbeArgs args = {at(out, out_type, first), out_type, here, block, make_probe_key(seed, high)};
    parallel_for(tiles_of(isa, here), grain_of(isa, kApplyGrain),
                 [&](int64_t begin, int64_t end) { isa.probe(args, begin, end); });
  });
}

static void apply_terms(const void* x, DType x_type, void* out, DType out_type, int64_t numel, int num_terms,
                        const Term* terms, int64_t offset) {
  const Kernels& isa = kernels();
  for_each_stretch(numel, offset, [&](int64_t first, int64_t here, uint64_t block, uint32_t high) {
    ApplyArgs args = {at(x, x_type, first), x_type, at(out, out_type, first), out_type, here, block, num_terms, {}, {}};
    for (int i = 0; i < num_terms; ++i) {
      args.alpha[i] = terms[i].alpha;
      args.key[i] = make_probe_key(terms[i].seed, high);
    }
    parallel_for(tiles_of(isa, here), grain_of(isa, kApplyGrain),
                 [&](int64_t begin, int64_t end) { isa.apply(args, begin, end); });
  });
}

void apply_probe(const void* x, DType x_type, void* out, DType out_type, int64_t numel, Term term, int64_t offset) {
  apply_terms(x, x_type, out, out_type, numel, 1, &term, offset);
}

void swap_probe(void* x, DType type, int64_t numel, Term from, Term to, int64_t offset) {
  const Term terms[2] = {from, to};
  apply_terms(x, type, x, type, numel, 2, terms, offset);
}

void accumulate_probes(void* x, DType type, int64_t numel, const int32_t* quantised, const uint64_t* seeds,
                       int64_t num_seeds, int shift, int64_t offset, const Update& update) {
  const Kernels& isa = kernels();
  // At least one group, so that the sums are written (with zeros) when there are no seeds.
  const int64_t num_groups = num_seeds == 0 ? 1 : (num_seeds + isa.group_size - 1) / isa.group_size;
  const std::vector<int32_t> tables = make_tables(quantised, num_seeds, num_groups, isa.group_size);
  for_each_stretch(numel, offset, [&](int64_t first, int64_t here, uint64_t block, uint32_t high) {
    const std::vector<ProbeKey> keys = make_keys(seeds, num_seeds, num_groups * isa.group_size, high);
    const AccumulateArgs args = {at(x, type, first), type, here, block, keys.data(), tables.data(), num_groups,
                                 std::ldexp(1.0, -shift), update, make_probe_key(update.undo.seed, high)};
    parallel_for(tiles_of(isa, here), grain_of(isa, kAccumulateGrain / (num_seeds + 1)),
                 [&](int64_t begin, int64_t end) { isa.accumulate(args, begin, end); });
  });
}

static void probe_from(ProbeFromArgs args, int64_t numel, int64_t offset) {
  const Kernels& isa = kernels();
  const ProbeFromArgs whole = args;
  for_each_stretch(numel, offset, [&](int64_t first, int64_t here, uint64_t block, uint32_t) {
    args.x = whole.x ? at(whole.x, whole.x_type, first) : nullptr;
    args.out = at(whole.out, whole.out_type, first);
    args.numel = here;
    args.first_block = block;
    parallel_for(tiles_of(isa, here), grain_of(isa, kDrawGrain),
                 [&](int64_t begin, int64_t end) { isa.probe_from(args, begin, end); });
  });
}

void probe_from(Distribution distribution, void* out, DType out_type, int64_t numel, uint64_t seed, int64_t offset) {
  probe_from({distribution, nullptr, out_type, out, out_type, 0, 0, {1.0, seed}}, numel, offset);
}

void apply_probe_from(Distribution distribution, const void* x, DType x_type, void* out, DType out_type, int64_t numel,
                      Term term, int64_t offset) {
  probe_from({distribution, x, x_type, out, out_type, 0, 0, term}, numel, offset);
}

void accumulate_probes_from(Distribution distribution, void* x, DType type, int64_t numel, const double* coeffs,
                            const uint64_t* seeds, int64_t num_seeds, double scale, int64_t offset,
                            const Update& update) {
  const Kernels& isa = kernels();
  for_each_stretch(numel, offset, [&](int64_t first, int64_t here, uint64_t block, uint32_t) {
    const AccumulateFromArgs args = {distribution, at(x, type, first), type,  here,  block,
                                     coeffs,       seeds,              num_seeds, scale, update};
    parallel_for(tiles_of(isa, here), grain_of(isa, kDrawGrain / (num_seeds + 1)),
                 [&](int64_t begin, int64_t end) { isa.accumulate_from(args, begin, end); });
  });
}

uint64_t fold_probes(int64_t numel, const uint64_t* seeds, int64_t num_seeds, int64_t offset) {
  const Kernels& isa = kernels();
  uint64_t folded = 0;
  for_each_stretch(numel, offset, [&](int64_t, int64_t here, uint64_t block, uint32_t high) {
    const std::vector<ProbeKey> keys = make_keys(seeds, num_seeds, num_seeds, high);
    const FoldArgs args = {here, block, keys.data(), num_seeds};
    parallel_for(tiles_of(isa, here), grain_of(isa, kAccumulateGrain / (num_seeds + 1)),
                 [&](int64_t begin, int64_t end) {
                   const uint64_t part = isa.fold(args, begin, end);
                   __atomic_fetch_xor(&folded, part, __ATOMIC_RELAXED);
                 });
  });
  return folded;
}

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas()) names.emplace_back(isa.kernels->name);
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas())
    if (isa.supported) names.emplace_back(isa.kernels->name);
  return names;
}

std::string active_isa() { return kernels().name; }

void set_active_isa(const std::string& name) { g_forced = name.empty() ? nullptr : find_isa(name, "set_isa"); }

}  // namespace zo::cpu
