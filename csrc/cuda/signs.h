// Signs of a slab of consecutive elements of a parameter, as bits in shared memory.
#pragma once

#include "../philox.h"
#include "elements.h"
#include "population.h"

#if defined(__CUDACC__)
#define ZO_DYNAMIC_SHARED(name) extern __shared__ __align__(16) char name[]
#else
#define ZO_DYNAMIC_SHARED(name) char* const name = shim::machine().dynamic_shared.get()
#endif

namespace zo::cuda {

// Size of the bits of `numel` elements, wherever they begin within a Philox block.
__host__ __device__ constexpr int64_t sign_words(int64_t numel) { return ((numel + 127) / 128 + 1) * 4; }

class SignBits {
 public:
  __device__ SignBits() : words_(nullptr), perturbed_(false) {}

  // Makes the signs of elements first .. first + numel. The whole thread block takes part, and must synchronise before
  // any thread reads them.
  __device__ SignBits(const Parameter& parameter, int64_t first, int numel, uint64_t seed, uint32_t* words, int thread,
                      int threads)
      : words_(words), perturbed_(parameter.offset >= 0) {
    if (!perturbed_) return;
    const int64_t j = parameter.offset + first;
    const uint64_t block = static_cast<uint64_t>(j / kBlockSigns);
    lead_ = static_cast<int>(j % kBlockSigns);
    const int blocks = (lead_ + numel + 127) / 128;
    for (int i = thread; i < blocks; i += threads) {
      const Philox4 made = philox_block(seed, block + static_cast<uint64_t>(i), kStreamRademacher);
      for (int k = 0; k < 4; ++k) words[4 * i + k] = made.word[k];
    }
  }

  __device__ bool perturbed() const { return perturbed_; }

  // eps times the sign of element `element` of the slab; 0 for a parameter that is not perturbed.
  __device__ float step(float eps, int element) const {
    if (!perturbed_) return 0.0f;
    const int bit = lead_ + element;
    return times_sign(eps, words_[bit / 32], bit % 32);
  }

  // Two bits: those of elements `element` and `element` + 1 of a slab that begins with a block, `element` even.
  __device__ uint32_t pair(int element) const { return words_[element / 32] >> (element % 32); }

 private:
  const uint32_t* words_;
  int lead_ = 0;
  bool perturbed_;
};

// eps times the sign of one element of a parameter.
__device__ inline float step_of(const Parameter& parameter, int64_t element, float eps, uint64_t seed) {
  if (parameter.offset < 0) return 0.0f;
  const int64_t j = parameter.offset + element;
  const Philox4 made = philox_block(seed, static_cast<uint64_t>(j / kBlockSigns), kStreamRademacher);
  const int bit = static_cast<int>(j % kBlockSigns);
  uint32_t word = made.word[0];
  for (int k = 1; k < 4; ++k)
    if (bit / 32 == k) word = made.word[k];
  return times_sign(eps, word, bit % 32);
}

}  // namespace zo::cuda
