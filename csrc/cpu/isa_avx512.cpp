// The kernels for AVX-512 F, BW, DQ and VL; CMakeLists.txt gives this file its instruction set.
#include <immintrin.h>

#include "kernels.h"

#define ZO_VECTOR_BYTES 64

namespace zo::cpu {
namespace {

#include "simd.h"
#include "simd_avx512.h"

#include "generate.h"

#include "elements.h"
#include "rounding.h"

#include "sums.h"

#include "accumulate.h"
#include "apply.h"
#include "draw.h"
#include "distributions.h"

}  // namespace

extern const Kernels kAvx512Kernels = {"avx512",
                                        kLanes,
                                        kGroup,
                                        probe_kernel,
                                        apply_kernel,
                                        accumulate_kernel,
                                        fold_kernel,
                                        probe_from_kernel,
                                        accumulate_from_kernel,
                                        &kAvx512PopulationKernels,
                                        &kAvx512DncKernels,
                                        &kAvx512ActivityKernels};

}  // namespace zo::cpu
