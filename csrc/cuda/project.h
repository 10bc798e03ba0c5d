// The token table: the contribution of each token to the gates of each unit, for every member (probe and sign).
//
//   table[member][token][unit][gate] = bias + sum_k embedding[token][k] * input_weight[gate][unit][k]
//
// with all three perturbed, in float32. It is computed once per token of the vocabulary instead of once per position.
//
// Plan: a thread block makes kRows rows (gate, unit) for kTokens tokens of one probe, both signs. Signs of its two
// slabs of consecutive elements come from Philox once, into shared memory as bits; slices of kSlice columns of both,
// perturbed, follow.
#pragma once

#include "signs.h"

namespace zo::cuda {

constexpr int kProjectThreads = 256;
constexpr int kRows = 64, kTokens = 32, kSlice = 16;
constexpr int kTokensPerThread = kTokens * kRows / kProjectThreads;

inline int64_t project_shared_bytes(const PopulationArgs& args) {
  return 4 * (sign_words(kRows * args.embed_dim) + sign_words(kTokens * args.embed_dim));
}

__global__ void __launch_bounds__(kProjectThreads) project_kernel(const PopulationArgs args) {
  __shared__ float weight[2][kSlice][kRows];
  __shared__ float embedding[2][kSlice][kTokens];
  ZO_DYNAMIC_SHARED(shared);
  const int E = static_cast<int>(args.embed_dim), V = static_cast<int>(args.vocab_size);
  const int H = static_cast<int>(args.num_heads * args.head_dim);
  const int first_row = static_cast<int>(blockIdx.x) * kRows, first_token = static_cast<int>(blockIdx.y) * kTokens;
  const int rows = min(kRows, 4 * H - first_row), tokens = min(kTokens, V - first_token);
  const int thread = static_cast<int>(threadIdx.x);
  const uint64_t seed = args.seeds[blockIdx.z];

  uint32_t* weight_signs = reinterpret_cast<uint32_t*>(shared);
  uint32_t* embedding_signs = weight_signs + sign_words(kRows * args.embed_dim);
  const SignBits w_bits(args.input_weight, int64_t{first_row} * E, rows * E, seed, weight_signs, thread,
                        kProjectThreads);
  const SignBits e_bits(args.embedding, int64_t{first_token} * E, tokens * E, seed, embedding_signs, thread,
                        kProjectThreads);
  __syncthreads();

  const int row = thread % kRows, group = thread / kRows * kTokensPerThread;
  float sum[2][kTokensPerThread] = {};
  for (int k0 = 0; k0 < E; k0 += kSlice) {
    const int width = min(kSlice, E - k0);
    for (int i = thread; i < kRows * kSlice; i += kProjectThreads) {
      const int r = i / kSlice, k = i % kSlice;
      const bool here = r < rows && k < width;
      const float w = here ? args.input_weight.data[int64_t{first_row + r} * E + k0 + k] : 0.0f;
      const float step = here ? w_bits.step(args.eps, r * E + k0 + k) : 0.0f;
      weight[0][k][r] = w + step;
      weight[1][k][r] = w - step;
    }
    for (int i = thread; i < kTokens * kSlice; i += kProjectThreads) {
      const int v = i / kSlice, k = i % kSlice;
      const bool here = v < tokens && k < width;
      const float e = here ? args.embedding.data[int64_t{first_token + v} * E + k0 + k] : 0.0f;
      const float step = here ? e_bits.step(args.eps, v * E + k0 + k) : 0.0f;
      embedding[0][k][v] = e + step;
      embedding[1][k][v] = e - step;
    }
    __syncthreads();
    for (int k = 0; k < kSlice; ++k)
#pragma unroll
      for (int s = 0; s < 2; ++s)
#pragma unroll
        for (int i = 0; i < kTokensPerThread; ++i)
          sum[s][i] = __fmaf_rn(weight[s][k][row], embedding[s][k][group + i], sum[s][i]);
    __syncthreads();
  }
  if (row >= rows) return;
  const int gate = (first_row + row) / H, unit = (first_row + row) % H;
  const float bias = args.bias.data[first_row + row], bias_step = step_of(args.bias, first_row + row, args.eps, seed);
  for (int s = 0; s < 2; ++s)
    for (int i = 0; i < kTokensPerThread && group + i < tokens; ++i) {
      const int64_t member = int64_t{blockIdx.z} * 2 + s, token = first_token + group + i;
      const float moved_bias = s == 0 ? bias + bias_step : bias - bias_step;
      args.table[((member * V + token) * H + unit) * 4 + gate] = sum[s][i] + moved_bias;
    }
}

}  // namespace zo::cuda
