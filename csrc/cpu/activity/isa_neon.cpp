// Activity perturbation for NEON, which every aarch64 processor has.
#include <arm_neon.h>

#include "kernels.h"

#define ZO_VECTOR_BYTES 16

namespace zo::cpu {
namespace {

#include "../simd.h"
#include "../simd_neon.h"

#include "../generate.h"

#include "../elements.h"

#include "../population/perturb.h"

#include "../population/float32.h"

#include "../population/cells.h"

#include "../population/tiles.h"

#include "../population/multiply.h"

#include "../population/tile_step.h"

#include "slopes.h"

#include "losses.h"

#include "products.h"

#include "tile.h"

}  // namespace

extern const ActivityKernels kNeonActivityKernels = {kLanes, kTileVectors * kLanes, run_tile_kernel, multiply_rows};

}  // namespace zo::cpu
