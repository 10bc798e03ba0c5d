// The population forward for AVX-512 F, BW, DQ and VL; CMakeLists.txt gives this file its instruction set.
#include <immintrin.h>

#include "kernels.h"

#define ZO_VECTOR_BYTES 64

namespace zo::cpu {
namespace {

#include "../simd.h"
#include "../simd_avx512.h"

#include "../generate.h"

#include "../elements.h"

#include "perturb.h"

#include "float32.h"

#include "forward.h"

}  // namespace

extern const PopulationKernels kAvx512PopulationKernels = {
    kLanes,         kTileVectors * kLanes, kRowTile,    kDepth,       embed_kernel,
    project_kernel, recurrence_kernel,     deliver_kernel, lift_kernel, output_kernel};

}  // namespace zo::cpu
