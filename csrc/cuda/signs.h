// Perturbations of a parameter, from Philox at the elements' places in the flat parameter space.
#pragma once

#include "../philox.h"
#include "elements.h"
#include "resident.h"

#if defined(__CUDACC__)
#define ZO_DYNAMIC_SHARED(name) extern __shared__ __align__(16) char name[]
#else
#define ZO_DYNAMIC_SHARED(name) char* const name = shim::machine().dynamic_shared.get()
#endif

namespace zo::cuda {

// Signs of rows of `numel` consecutive elements of a parameter, as bits in shared memory.
class SignRows {
 public:
  __host__ __device__ static constexpr int64_t words(int64_t rows, int64_t numel) { return rows * 4 * blocks(numel); }

  // first(row): the number of its first element. The whole thread block takes part, and must synchronise before any
  // thread reads the signs.
  template <class First>
  __device__ SignRows(const Parameter& parameter, int rows, int numel, First first, uint64_t seed, uint32_t* words,
                      int thread, int threads)
      : words_(words), offset_(parameter.offset), blocks_(static_cast<int>(blocks(numel))) {
    if (offset_ < 0) return;
    for (int i = thread; i < rows * blocks_; i += threads) {
      const uint64_t block = static_cast<uint64_t>((offset_ + first(i / blocks_)) / kBlockSigns) + i % blocks_;
      const Philox4 made = philox_block(seed, block, kStreamRademacher);
      for (int k = 0; k < 4; ++k) words[4 * i + k] = made.word[k];
    }
  }

  __device__ bool perturbed() const { return offset_ >= 0; }

  // eps times the sign of element first + k, in row `row` that begins with element `first`; 0 if it is not perturbed.
  __device__ float step(float eps, int row, int64_t first, int k) const {
    if (!perturbed()) return 0.0f;
    const int bit = 128 * blocks_ * row + static_cast<int>((offset_ + first) % kBlockSigns) + k;
    return times_sign(eps, words_[bit / 32], bit % 32);
  }

 private:
  // Philox blocks that `numel` elements may touch, wherever they begin.
  __host__ __device__ static constexpr int64_t blocks(int64_t numel) { return (numel + 2 * 127) / 128; }

  const uint32_t* words_;
  int64_t offset_;
  int blocks_;
};

// The signs of 8 elements of a parameter that is perturbed, from `element` on; the first is the lowest bit.
__device__ inline uint32_t eight_signs(const Parameter& parameter, int64_t element, uint64_t seed) {
  const int64_t j = parameter.offset + element;
  const uint64_t block = static_cast<uint64_t>(j / kBlockSigns);
  const int bit = static_cast<int>(j % kBlockSigns);
  const Philox4 made = philox_block(seed, block, kStreamRademacher);
  uint32_t low = made.word[0], high = made.word[1];
  for (int k = 1; k < 4; ++k)
    if (bit / 32 == k) low = made.word[k], high = made.word[(k + 1) % 4];
  if (bit > kBlockSigns - 8) high = philox_block(seed, block + 1, kStreamRademacher).word[0];
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (bit % 32)) & 0xffu;
}

// eps times the sign of one element of a parameter.
__device__ inline float step_of(const Parameter& parameter, int64_t element, float eps, uint64_t seed) {
  return parameter.offset < 0 ? 0.0f : times_sign(eps, eight_signs(parameter, element, seed), 0);
}

// w rounded to the bfloat16 grid that holds at |w| + |eps|, as on the CPU (cpu/population/perturb.h): w + eps and w -
// eps are both bfloat16 numbers if eps is a power of two that is not finer than the grid.
__device__ inline float on_bfloat16_grid(float w, float eps) {
  const int size = __float_as_int(__fadd_rn(fabsf(w), fabsf(eps)));
  const float shift = __fmul_rn(__int_as_float(size & 0x7f800000), 0x1.8p16f);  // its last bit is that of the grid
  return __fsub_rn(__fadd_rn(w, shift), shift);
}

}  // namespace zo::cuda
