// The forward of models with a memory for AVX-512 F, BW, DQ and VL; CMakeLists.txt gives this file its instruction set.
#include <immintrin.h>

#include "kernels.h"

#define ZO_VECTOR_BYTES 64

namespace zo::cpu {
namespace {

#include "../simd.h"
#include "../simd_avx512.h"

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

extern const DncKernels kAvx512DncKernels = {kLanes, kGroup, sign_bytes_kernel, lay_out_kernel, run_kernel};

}  // namespace zo::cpu
