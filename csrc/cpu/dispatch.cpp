// Chooses the instruction set, cuts ranges into tiles and runs them on the threads.
#if defined(ZO_X86)
#include <cpuid.h>
#endif

#include <algorithm>
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
#elif defined(ZO_ARM64)
    found.push_back({&kNeonKernels, true});
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

int64_t tiles_of(const Kernels& isa, int64_t numel) {
  const int64_t tile = isa.tile_blocks * kBlockSigns;
  return (numel + tile - 1) / tile;
}

int64_t grain_of(const Kernels& isa, int64_t elements) {
  const int64_t tile = isa.tile_blocks * kBlockSigns;
  return elements < tile ? 1 : elements / tile;
}

void* at(void* p, DType type, int64_t element) { return static_cast<char*>(p) + element * size_of(type); }

// Elements of a piece whose blocks share the high half of their index: all of them, unless the piece passes element
// 2^39 * k.
struct Stretch {
  int64_t piece;
  int64_t first;  // element of the piece
  int64_t numel;
  uint64_t block;
  int64_t first_tile;  // among the tiles of the stretches that run together
};

// Cuts pieces into stretches. Calls prepare(high) for each run of them that have the high half of their block index in
// common, and what that returns, body(stretch, first_tile, last_tile), for tiles of these stretches on the threads.
template <class Prepare>
void for_each_stretch(const Kernels& isa, const Piece* pieces, int64_t count, int64_t grain_elements, Prepare prepare) {
  std::vector<Stretch> run;
  uint32_t high = 0;
  int64_t tiles = 0;
  const auto finish = [&] {
    const auto body = prepare(high);
    parallel_for(tiles, grain_of(isa, grain_elements), [&](int64_t begin, int64_t end) {
      auto stretch = std::upper_bound(run.begin(), run.end(), begin,
                                      [](int64_t tile, const Stretch& s) { return tile < s.first_tile; });
      for (--stretch; begin < end; ++stretch) {
        const int64_t last = std::min(end, stretch->first_tile + tiles_of(isa, stretch->numel));
        body(*stretch, begin - stretch->first_tile, last - stretch->first_tile);
        begin = last;
      }
    });
    run.clear();
    tiles = 0;
  };
  for (int64_t p = 0; p < count; ++p) {
    int64_t done = 0;
    while (done < pieces[p].numel) {
      const uint64_t block = static_cast<uint64_t>(pieces[p].offset + done) / kBlockSigns;
      const uint64_t blocks_left = (uint64_t{1} << 32) - (block & 0xffffffffu);
      const int64_t here = std::min(pieces[p].numel - done, static_cast<int64_t>(blocks_left) * kBlockSigns);
      if (!run.empty() && high != static_cast<uint32_t>(block >> 32)) finish();
      high = static_cast<uint32_t>(block >> 32);
      run.push_back({p, done, here, block, tiles});
      tiles += tiles_of(isa, here);
      done += here;
    }
  }
  if (!run.empty()) finish();
}

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
  const Piece piece = {out, numel, offset};
  for_each_stretch(isa, &piece, 1, kApplyGrain, [&](uint32_t high) {
    return [&, key = make_probe_key(seed, high)](const Stretch& s, int64_t begin, int64_t end) {
      isa.probe({at(out, out_type, s.first), out_type, s.numel, s.block, key}, begin, end);
    };
  });
}

static void apply_terms(const Pieces& x, const Pieces& out, int num_terms, const Term* terms) {
  const Kernels& isa = kernels();
  for_each_stretch(isa, x.at, x.count, kApplyGrain, [&](uint32_t high) {
    ApplyArgs args = {nullptr, x.type, nullptr, out.type, 0, 0, num_terms, {}, {}};
    for (int i = 0; i < num_terms; ++i) {
      args.alpha[i] = terms[i].alpha;
      args.key[i] = make_probe_key(terms[i].seed, high);
    }
    return [&isa, &x, &out, args](const Stretch& s, int64_t begin, int64_t end) {
      ApplyArgs here = args;
      here.x = at(x.at[s.piece].data, x.type, s.first);
      here.out = at(out.at[s.piece].data, out.type, s.first);
      here.numel = s.numel;
      here.first_block = s.block;
      isa.apply(here, begin, end);
    };
  });
}

void apply_probe(const Pieces& x, const Pieces& out, Term term) { apply_terms(x, out, 1, &term); }

void swap_probe(const Pieces& x, Term from, Term to) {
  const Term terms[2] = {from, to};
  apply_terms(x, x, 2, terms);
}

void accumulate_probes(const Pieces& x, const int32_t* quantised, const uint64_t* seeds, int64_t num_seeds, int shift,
                       const Update& update) {
  const Kernels& isa = kernels();
  // At least one group, so that the sums are written (with zeros) when there are no seeds.
  const int64_t num_groups = num_seeds == 0 ? 1 : (num_seeds + isa.group_size - 1) / isa.group_size;
  const std::vector<int32_t> tables = make_tables(quantised, num_seeds, num_groups, isa.group_size);
  for_each_stretch(isa, x.at, x.count, kAccumulateGrain / (num_seeds + 1), [&](uint32_t high) {
    return [&, keys = make_keys(seeds, num_seeds, num_groups * isa.group_size, high),
            undo = make_probe_key(update.undo.seed, high)](const Stretch& s, int64_t begin, int64_t end) {
      isa.accumulate({at(x.at[s.piece].data, x.type, s.first), x.type, s.numel, s.block, keys.data(), tables.data(),
                      num_groups, std::ldexp(1.0, -shift), update, undo},
                     begin, end);
    };
  });
}

void probe_from(Distribution distribution, void* out, DType out_type, int64_t numel, uint64_t seed, int64_t offset) {
  const Kernels& isa = kernels();
  const Piece piece = {out, numel, offset};
  for_each_stretch(isa, &piece, 1, kDrawGrain, [&](uint32_t) {
    return [&](const Stretch& s, int64_t begin, int64_t end) {
      isa.probe_from({distribution, nullptr, out_type, at(out, out_type, s.first), out_type, s.numel, s.block,
                      {1.0, seed}},
                     begin, end);
    };
  });
}

void apply_probe_from(Distribution distribution, const Pieces& x, const Pieces& out, Term term) {
  const Kernels& isa = kernels();
  for_each_stretch(isa, x.at, x.count, kDrawGrain, [&](uint32_t) {
    return [&](const Stretch& s, int64_t begin, int64_t end) {
      isa.probe_from({distribution, at(x.at[s.piece].data, x.type, s.first), x.type,
                      at(out.at[s.piece].data, out.type, s.first), out.type, s.numel, s.block, term},
                     begin, end);
    };
  });
}

void accumulate_probes_from(Distribution distribution, const Pieces& x, const double* coeffs, const uint64_t* seeds,
                            int64_t num_seeds, double scale, const Update& update) {
  const Kernels& isa = kernels();
  for_each_stretch(isa, x.at, x.count, kDrawGrain / (num_seeds + 1), [&](uint32_t) {
    return [&](const Stretch& s, int64_t begin, int64_t end) {
      isa.accumulate_from({distribution, at(x.at[s.piece].data, x.type, s.first), x.type, s.numel, s.block, coeffs,
                           seeds, num_seeds, scale, update},
                          begin, end);
    };
  });
}

uint64_t fold_probes(int64_t numel, const uint64_t* seeds, int64_t num_seeds, int64_t offset) {
  const Kernels& isa = kernels();
  const Piece piece = {nullptr, numel, offset};
  uint64_t folded = 0;
  for_each_stretch(isa, &piece, 1, kAccumulateGrain / (num_seeds + 1), [&](uint32_t high) {
    return [&, keys = make_keys(seeds, num_seeds, num_seeds, high)](const Stretch& s, int64_t begin, int64_t end) {
      const uint64_t part = isa.fold({s.numel, s.block, keys.data(), num_seeds}, begin, end);
      __atomic_fetch_xor(&folded, part, __ATOMIC_RELAXED);
    };
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
