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

#include "float32.h"

#include "forward.h"

}  // namespace

extern const PopulationKernels kAvx2PopulationKernels = {
    kLanes,         kTileVectors * kLanes, kRowTile,    kDepth,       embed_kernel,
    project_kernel, recurrence_kernel,     deliver_kernel, lift_kernel, output_kernel};

}  // namespace zo::cpu
