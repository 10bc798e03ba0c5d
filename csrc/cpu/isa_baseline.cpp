// The kernels for any processor; CMakeLists.txt gives this file its instruction set.
#include "kernels.h"

#define ZO_VECTOR_BYTES 16

namespace zo::cpu {
namespace {

#include "simd.h"
#include "simd_baseline.h"

#include "generate.h"

#include "elements.h"
#include "rounding.h"

#include "sums.h"

#include "accumulate.h"
#include "apply.h"
#include "draw.h"
#include "distributions.h"

}  // namespace

extern const Kernels kBaselineKernels = {"baseline",
                                        kLanes,
                                        kGroup,
                                        probe_kernel,
                                        apply_kernel,
                                        accumulate_kernel,
                                        fold_kernel,
                                        probe_from_kernel,
                                        accumulate_from_kernel,
                                        &kBaselinePopulationKernels,
                                        &kBaselineDncKernels,
                                        &kBaselineActivityKernels};

}  // namespace zo::cpu
