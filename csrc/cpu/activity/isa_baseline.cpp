// Activity perturbation for any processor.
#include "kernels.h"

#define ZO_VECTOR_BYTES 16

namespace zo::cpu {
namespace {

#include "../simd.h"
#include "../simd_baseline.h"

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

extern const ActivityKernels kBaselineActivityKernels = {kLanes, kTileVectors * kLanes, run_tile_kernel, multiply_rows};

}  // namespace zo::cpu
