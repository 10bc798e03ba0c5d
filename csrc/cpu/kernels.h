// The table of kernels of one instruction set. Each isa_*.cpp compiles the same kernels (apply.h, accumulate.h,
// distributions.h) for its ISA and exports one table. dispatch.cpp picks a table at run time. Ranges are in tiles of
// kernels->tile_blocks blocks.
#pragma once

#include <cstdint>

#include "launch.h"

namespace zo::cpu {

// The key of one probe, unrolled over the rounds of Philox. Block indices of one launch share their high 32 bits and
// counter words 2 (the stream) and 3, so round 1 and half of round 2 do not depend on the block: they are folded into
// the constants below. generate.h has the derivation.
struct ProbeKey {
  uint32_t round1;
  uint32_t round2[2];
  uint32_t round3[2];
  uint32_t rounds4to10[7][2];
};

ProbeKey make_probe_key(uint64_t seed, uint32_t block_high, uint32_t stream = kStreamRademacher, uint32_t number = 0);

struct ProbeArgs {
  void* out;
  DType out_type;
  int64_t numel;
  uint64_t first_block;
  ProbeKey key;
};

struct ApplyArgs {
  const void* x;
  DType x_type;
  void* out;
  DType out_type;
  int64_t numel;
  uint64_t first_block;
  int num_terms;  // 1, or 2 with x == out
  double alpha[2];
  ProbeKey key[2];
};

struct AccumulateArgs {
  void* x;
  DType type;
  int64_t numel;
  uint64_t first_block;
  const ProbeKey* keys;  // [num_groups * group_size], padded with any key
  const int32_t* tables;  // [num_groups, 2^group_size]: sum of the group's +-q for each combination of its bits
  int64_t num_groups;
  double scale;  // 2^-shift
  Update update;
  ProbeKey undo_key;
};

struct FoldArgs {
  int64_t numel;
  uint64_t first_block;
  const ProbeKey* keys;
  int64_t num_seeds;
};

struct ProbeFromArgs {
  Distribution distribution;
  const void* x;  // null: the probe alone
  DType x_type;
  void* out;
  DType out_type;
  int64_t numel;
  uint64_t first_block;
  Term term;
};

struct AccumulateFromArgs {
  Distribution distribution;
  void* x;
  DType type;
  int64_t numel;
  uint64_t first_block;
  const double* coeffs;
  const uint64_t* seeds;
  int64_t num_seeds;
  double scale;
  Update update;
};

struct PopulationKernels;  // population/kernels.h
struct DncKernels;         // dnc/kernels.h
struct ActivityKernels;    // activity/kernels.h

struct Kernels {
  const char* name;
  int tile_blocks;  // blocks generated at once: one per 32-bit lane
  int group_size;   // seeds summed by one table look-up
  void (*probe)(const ProbeArgs&, int64_t first_tile, int64_t last_tile);
  void (*apply)(const ApplyArgs&, int64_t first_tile, int64_t last_tile);
  void (*accumulate)(const AccumulateArgs&, int64_t first_tile, int64_t last_tile);
  uint64_t (*fold)(const FoldArgs&, int64_t first_tile, int64_t last_tile);
  void (*probe_from)(const ProbeFromArgs&, int64_t first_tile, int64_t last_tile);
  void (*accumulate_from)(const AccumulateFromArgs&, int64_t first_tile, int64_t last_tile);
  const PopulationKernels* population;
  const DncKernels* dnc;
  const ActivityKernels* activity;
};

const PopulationKernels* bfloat16_kernels();  // null where the instruction set in use has none
const Kernels& kernels();  // those in use; throws std::runtime_error if ZO_KERNELS_ISA can't be used

extern const Kernels kBaselineKernels;
extern const PopulationKernels kBaselinePopulationKernels;
extern const DncKernels kBaselineDncKernels;
extern const ActivityKernels kBaselineActivityKernels;
#if defined(ZO_X86)
extern const Kernels kAvx2Kernels;
extern const PopulationKernels kAvx2PopulationKernels;
extern const DncKernels kAvx2DncKernels;
extern const ActivityKernels kAvx2ActivityKernels;
extern const Kernels kAvx512Kernels;
extern const PopulationKernels kAvx512PopulationKernels;
extern const DncKernels kAvx512DncKernels;
extern const ActivityKernels kAvx512ActivityKernels;
extern const PopulationKernels kAvx512BFloat16PopulationKernels;
#elif defined(ZO_ARM64)
extern const Kernels kNeonKernels;
extern const ActivityKernels kNeonActivityKernels;
extern const PopulationKernels kNeonPopulationKernels;
extern const DncKernels kNeonDncKernels;
#endif

}  // namespace zo::cpu
