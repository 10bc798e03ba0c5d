// The shared-memory layout of the population kernel, and the arithmetic of one unit and one position.
#pragma once

#include <cuda_runtime.h>

#include "population.h"
#include "signs.h"

namespace zo::cuda {

constexpr int kWarps = 8;  // of a thread block
constexpr int kThreads = 32 * kWarps;

// A row length in bfloat16 such that eight rows start on banks 4, 12, 20 or 28 apart: fragments load without conflicts.
__host__ __device__ constexpr int padded(int64_t length) {
  const int words = static_cast<int>((length + 1) / 2);
  return 2 * (words + (12 - words % 8) % 8);
}

// Offsets in shared memory, in bytes, for tiles of `sequences`.
struct Layout {
  int weight_stride, output_stride, h_stride;
  int64_t weight, output, weight_signs, output_signs, output_bias, h, c, partial, picked, nats, tokens, targets, size;

  __host__ __device__ Layout(const PopulationArgs& args, int sequences) {
    const int64_t D = args.head_dim, H = args.num_heads * D, V = args.vocab_size, members = 2 * sequences;
    weight_stride = static_cast<int>(D % 16 == 0 ? padded(D) : D);  // others collide in pairs at most
    output_stride = padded(H);
    h_stride = padded((H + 15) / 16 * 16 + 16);  // what products with the last head's last columns read
    int64_t at = 0;
    const auto take = [&at](int64_t bytes) {
      const int64_t here = at;
      at += (bytes + 15) / 16 * 16;
      return here;
    };
    nats = take(8 * members);
    weight = take(2 * 4 * H * weight_stride);
    output = take(2 * V * output_stride);
    weight_signs = take(4 * sign_words(4 * H * D));
    output_signs = take(4 * sign_words(V * H));
    output_bias = take(4 * 2 * V);
    h = take(2 * 2 * members * h_stride);  // two buffers
    c = take(4 * members * H);
    partial = take(4 * 2 * kWarps * members);
    picked = take(4 * members);
    tokens = take(4 * 2 * sequences);  // of two steps
    targets = take(4 * 2 * sequences);
    size = at;
  }
};

__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
__device__ inline float hyperbolic_tangent(float x) { return 1.0f - __fdividef(2.0f, __expf(2.0f * x) + 1.0f); }

struct RunningSum {  // of exponentials, over the largest so far
  float largest = -INFINITY, sum = 0.0f;

  __device__ void add(float logit) {
    const float before = largest;
    largest = fmaxf(before, logit);
    sum = sum * __expf(before - largest) + __expf(logit - largest);
  }
  __device__ void merge(float other_largest, float other_sum) {
    if (other_sum == 0.0f) return;
    const float before = largest;
    largest = fmaxf(before, other_largest);
    sum = sum * __expf(before - largest) + other_sum * __expf(other_largest - largest);
  }
};

}  // namespace zo::cuda
