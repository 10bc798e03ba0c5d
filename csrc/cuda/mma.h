// What a warp does on tensor cores, and the loads that feed them.
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

// One product: d [16, 8] += a [16, 16] * b [16, 8], bfloat16 with float32 sums.
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

// Four matrices of 8 rows of 16 bytes in shared memory. `row`: of lane 8m + i, row i of matrix m. out[m]: words g, t.
__device__ inline void load_matrices(uint32_t (&out)[4], const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
#else
  load_matrices_on_the_host(out, row);
#endif
}

// Copies 16 bytes to shared memory at some time before await_copies.
__device__ inline void copy_async(void* shared, const void* global) {
#if defined(__CUDACC__)
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

// Ends a group of this thread's copies.
__device__ inline void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's groups but the last `pending`. Other threads see their data after a barrier.
template <int pending>
__device__ inline void await_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

__device__ inline uint16_t to_bfloat16(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }

__device__ inline uint32_t to_bfloat16_pair(float low, float high) {
#if defined(__CUDACC__)
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return to_bfloat16(low) | static_cast<uint32_t>(to_bfloat16(high)) << 16;
#endif
}

__device__ inline float from_bfloat16(uint32_t bits) {
  return __bfloat162float(__ushort_as_bfloat16(static_cast<uint16_t>(bits)));
}

}  // namespace zo::cuda
