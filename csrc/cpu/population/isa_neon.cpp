// The population forward for NEON, which every aarch64 processor has.
#include <arm_neon.h>

#include "kernels.h"

#define ZO_VECTOR_BYTES 16

namespace zo::cpu {
namespace {

#include "../simd.h"
#include "../simd_neon.h"

#include "../generate.h"

#include "../elements.h"

#include "perturb.h"

#include "float32.h"

#include "forward.h"

}  // namespace

extern const PopulationKernels kNeonPopulationKernels = {
    kLanes,         kTileVectors * kLanes, kRowTile,    kDepth,       embed_kernel,
    project_kernel, recurrence_kernel,     deliver_kernel, lift_kernel, output_kernel};

}  // namespace zo::cpu
