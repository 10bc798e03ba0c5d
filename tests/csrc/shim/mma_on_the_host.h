// mma.m16n8k16 and ldmatrix for the fibers of shim/cuda_runtime.h. Lanes show each other their fragments, or the
// addresses of their rows, and take what is theirs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

inline float shim_half_of(uint32_t pair, int high) {
  return __bfloat162float(__ushort_as_bfloat16(static_cast<uint16_t>(pair >> (16 * high))));
}

inline void mma_on_the_host(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const int lane = shim::machine().current % 32;
  const uint32_t(*shown)[8] = shim::exchange(mine, 6);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i < 2 ? 0 : 8), column = 2 * (lane % 4) + i % 2;
    double sum = d[i];
    for (int k = 0; k < 16; ++k) {
      // a(row, k) lies with lane 4 * (row % 8) + (k % 8) / 2, b(k, column) with lane 4 * column + (k % 8) / 2.
      const int pair = (k % 8) / 2;
      const uint32_t of_a = shown[4 * (row % 8) + pair][(row < 8 ? 0 : 1) + (k < 8 ? 0 : 2)];
      const uint32_t of_b = shown[4 * column + pair][k < 8 ? 4 : 5];
      sum += static_cast<double>(shim_half_of(of_a, k % 2)) * static_cast<double>(shim_half_of(of_b, k % 2));
    }
    d[i] = static_cast<float>(sum);
  }
}

inline void load_matrices_on_the_host(uint32_t (&out)[4], const void* row) {
  const uint64_t address = reinterpret_cast<uintptr_t>(row);
  const uint32_t mine[2] = {static_cast<uint32_t>(address), static_cast<uint32_t>(address >> 32)};
  const int lane = shim::machine().current % 32;
  const uint32_t(*shown)[8] = shim::exchange(mine, 2);
  for (int matrix = 0; matrix < 4; ++matrix) {
    const uint32_t* of_row = shown[8 * matrix + lane / 4];
    const uint4 words = *reinterpret_cast<const uint4*>(uint64_t{of_row[1]} << 32 | of_row[0]);
    const uint32_t all[4] = {words.x, words.y, words.z, words.w};
    out[matrix] = all[lane % 4];
  }
}
