// The forward of models with a memory for NEON, which every aarch64 processor has.
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

#include "multiply.h"

#include "memory.h"

#include "paper_step.h"

#include "dnc_step.h"

#include "run.h"

}  // namespace

extern const DncKernels kNeonDncKernels = {kLanes, kGroup, sign_bytes_kernel, lay_out_kernel, run_kernel};

}  // namespace zo::cpu
