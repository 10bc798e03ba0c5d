// The kernels for NEON, which every aarch64 processor has.
#include <arm_neon.h>

#include "kernels.h"

#define ZO_VECTOR_BYTES 16

namespace zo::cpu {
namespace {

#include "simd.h"
#include "simd_neon.h"

#include "generate.h"

#include "elements.h"
#include "rounding.h"

#include "sums_neon.h"

#include "accumulate.h"
#include "apply.h"
#include "draw.h"
#include "distributions.h"

}  // namespace

extern const Kernels kNeonKernels = {"neon",
                                        kLanes,
                                        kGroup,
                                        probe_kernel,
                                        apply_kernel,
                                        accumulate_kernel,
                                        fold_kernel,
                                        probe_from_kernel,
                                        accumulate_from_kernel,
                                        &kNeonPopulationKernels,
                                        &kNeonDncKernels,
                                        &kNeonActivityKernels};

}  // namespace zo::cpu
