// One tensor-core product of a warp: d [16, 8] += a [16, 16] * b [16, 8], bfloat16 with float32 sums.
//
// The fragments of each lane (PTX ISA, "Matrix Fragments for mma.m16n8k16"), with g = lane / 4 and t = lane % 4:
//   a[0] rows g, columns 2t, 2t+1 (low half first); a[1] row g+8; a[2], a[3] the same rows, columns + 8
//   b0   rows 2t, 2t+1 of column g; b1 rows + 8
//   d[0], d[1] row g, columns 2t, 2t+1; d[2], d[3] row g+8
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#if !defined(__CUDACC__)
#include "mma_on_the_host.h"
#endif

namespace zo::cuda {

__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  mma_on_the_host(d, a, b0, b1);
#endif
}

__device__ inline uint16_t to_bfloat16(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }

}  // namespace zo::cuda
