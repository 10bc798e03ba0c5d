// The population forward for AVX2, F16C and FMA; CMakeLists.txt gives this file its instruction set.
#include <immintrin.h>

#include "kernels.h"

#define ZO_VECTOR_BYTES 32

namespace zo::cpu {
namespace {

#include "../simd.h"
#include "../simd_avx2.h"

#include "../generate.h"

#include "../elements.h"

#include "perturb.h"

#include "cells.h"

#include "tiles.h"

#include "multiply.h"

#include "narrow.h"
#include "output.h"
#include "project.h"
#include "wide.h"

void recurrence_kernel(const Plan& plan, const Member& m, const Scratch& scratch, int64_t chunk, int64_t first_head,
                       int64_t last_head) {
  with_cell(plan.args->cell, [&](auto cell) {
    using Cell = decltype(cell);
    for (int64_t head = first_head; head < last_head; head += plan.panel_heads) {
      const int64_t end = head + plan.panel_heads < last_head ? head + plan.panel_heads : last_head;
      if (plan.wide)
        wide_recurrence<Cell>(plan, m, scratch, chunk, head);
      else
        narrow_recurrence<Cell>(plan, m, scratch, chunk, head, end);
    }
  });
}

}  // namespace

extern const PopulationKernels kAvx2PopulationKernels = {
    kLanes, kTileVectors * kLanes, kRowTile, embed_kernel, project_kernel, recurrence_kernel, output_kernel};

}  // namespace zo::cpu
