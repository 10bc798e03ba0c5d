// Activity perturbation for AVX2, F16C and FMA; CMakeLists.txt gives this file its instruction set.
#include <immintrin.h>

#include "kernels.h"

#define ZO_VECTOR_BYTES 32

namespace zo::cpu {
namespace {

#include "../simd.h"
#include "../simd_avx2.h"

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

extern const ActivityKernels kAvx2ActivityKernels = {kLanes, kTileVectors * kLanes, run_tile_kernel, multiply_rows};

}  // namespace zo::cpu
