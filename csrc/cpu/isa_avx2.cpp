// The kernels for AVX2 and F16C; CMakeLists.txt gives this file its instruction set.
#include <immintrin.h>

#include "kernels.h"

#define ZO_VECTOR_BYTES 32

namespace zo::cpu {
namespace {

#include "simd.h"
#include "simd_avx2.h"

#include "generate.h"

#include "elements.h"
#include "rounding.h"

#include "sums.h"

#include "accumulate.h"
#include "apply.h"
#include "draw.h"
#include "distributions.h"

}  // namespace

extern const Kernels kAvx2Kernels = {"avx2",
                                        kLanes,
                                        kGroup,
                                        probe_kernel,
                                        apply_kernel,
                                        accumulate_kernel,
                                        fold_kernel,
                                        probe_from_kernel,
                                        accumulate_from_kernel,
                                        &kAvx2PopulationKernels,
                                        &kAvx2DncKernels,
                                        &kAvx2ActivityKernels};

}  // namespace zo::cpu
