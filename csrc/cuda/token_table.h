// The token table: what each token adds to the gates of each unit, for every member (probe and sign).
//
//   table[member][head][row][unit][gate] =
//       scale[gate] * (bias + sum_k embedding[token][k] * input_weight[gate][unit][k])
//
// with all three perturbed, in float32. It is computed once per token that is used instead of once per position. Units
// are padded to a multiple of 8 with zeros. The 8 units of a tile lie in the order of table_slot. The scale is what the
// cell's exponentials want (cell.h).
//
// Plan: a thread block makes kTableColumns columns (unit, gate) for kTableRows tokens of one probe, both signs. The
// signs come from Philox once, into shared memory as bits; slices of kSlice columns of both factors, perturbed, follow.
#pragma once

#include "cell.h"
#include "signs.h"

namespace zo::cuda {

constexpr int kTableThreads = 256;
constexpr int kTableColumns = 64, kTableRows = 32, kSlice = 16;
constexpr int kRowsPerThread = kTableRows * kTableColumns / kTableThreads;

inline int64_t table_shared_bytes(int64_t embed_dim) {
  return 4 * (SignRows::words(kTableColumns, embed_dim) + SignRows::words(kTableRows, embed_dim));
}

inline int64_t table_floats(const ResidentArgs& args) {  // of a member
  return args.num_heads * args.num_rows * ((args.head_dim + 7) / 8) * 32;
}

// Where unit `unit` of 8 lies in a tile of a row. A lane reads units 2t and 2t+1 with two accesses of 16 bytes: in
// each, four lanes then read 64 bytes in a row, and those of tokens of the other parity the other half of the banks.
__host__ __device__ constexpr int table_slot(int unit, int64_t row) {
  return 4 * ((unit + static_cast<int>(row % 2)) % 2) + unit / 2;
}

__global__ void __launch_bounds__(kTableThreads) token_table_kernel(const ResidentArgs args, float* table) {
  __shared__ float weight[2][kSlice][kTableColumns];
  __shared__ float embedding[2][kSlice][kTableRows];
  ZO_DYNAMIC_SHARED(shared);
  const int E = static_cast<int>(args.embed_dim), D = static_cast<int>(args.head_dim), padded = (D + 7) / 8 * 8;
  const int64_t N = args.num_heads, R = args.num_rows;
  const int64_t first_row = int64_t{blockIdx.y} * kTableRows;
  const int rows = static_cast<int>(min(R - first_row, int64_t{kTableRows})), thread = static_cast<int>(threadIdx.x);
  const int64_t first_unit = int64_t{blockIdx.x} * (kTableColumns / 4);  // of the padded units of all heads
  const uint64_t seed = args.seeds[blockIdx.z];

  // Of a column: its number among the biases, -1 in the padding.
  const auto place_of = [&](int column) -> int64_t {
    const int64_t unit = first_unit + column / 4, head = unit / padded, d = unit % padded;
    return head < N && d < D ? ((column % 4) * N + head) * D + d : -1;
  };
  const auto first_weight = [&](int column) { return max(place_of(column), int64_t{0}) * E; };
  const auto first_of_token = [&](int row) { return args.rows[first_row + min(row, rows - 1)] * E; };
  uint32_t* const words = reinterpret_cast<uint32_t*>(shared);
  const SignRows weight_signs(args.input_weight, kTableColumns, E, first_weight, seed, words, thread, kTableThreads);
  const SignRows embedding_signs(args.embedding, kTableRows, E, first_of_token, seed,
                                 words + SignRows::words(kTableColumns, E), thread, kTableThreads);
  __syncthreads();

  const int column = thread % kTableColumns, group = thread / kTableColumns * kRowsPerThread;
  float sum[2][kRowsPerThread] = {};
  for (int k0 = 0; k0 < E; k0 += kSlice) {
    const int width = min(kSlice, E - k0);
    for (int i = thread; i < kTableColumns * kSlice; i += kTableThreads) {
      const int c = i / kSlice, k = i % kSlice;
      const bool here = k < width && place_of(c) >= 0;
      const float w = here ? args.input_weight.data[first_weight(c) + k0 + k] : 0.0f;
      const float step = here ? weight_signs.step(args.eps, c, first_weight(c), k0 + k) : 0.0f;
      weight[0][k][c] = w + step;
      weight[1][k][c] = w - step;
    }
    for (int i = thread; i < kTableRows * kSlice; i += kTableThreads) {
      const int r = i / kSlice, k = i % kSlice;
      const bool here = k < width;
      const float e = here ? args.embedding.data[first_of_token(r) + k0 + k] : 0.0f;
      const float step = here ? embedding_signs.step(args.eps, r, first_of_token(r), k0 + k) : 0.0f;
      embedding[0][k][r] = e + step;
      embedding[1][k][r] = e - step;
    }
    __syncthreads();
    for (int k = 0; k < kSlice; ++k)
#pragma unroll
      for (int s = 0; s < 2; ++s)
#pragma unroll
        for (int i = 0; i < kRowsPerThread; ++i)
          sum[s][i] = __fmaf_rn(weight[s][k][column], embedding[s][k][group + i], sum[s][i]);
    __syncthreads();
  }
  const int64_t unit = first_unit + column / 4, head = unit / padded, place = place_of(column);
  if (head >= N) return;
  const int gate = column % 4, in_head = static_cast<int>(unit % padded);
  const float bias = place >= 0 ? args.bias.data[place] : 0.0f;
  const float bias_step = place >= 0 ? step_of(args.bias, place, args.eps, seed) : 0.0f;
  for (int s = 0; s < 2; ++s)
    for (int i = 0; i < kRowsPerThread && group + i < rows; ++i) {
      const int64_t member = int64_t{blockIdx.z} * 2 + s, row = first_row + group + i;
      const float moved_bias = s == 0 ? bias + bias_step : bias - bias_step;
      const int64_t at = ((member * N + head) * R + row) * padded + in_head / 8 * 8 + table_slot(in_head % 8, row);
      table[4 * at + gate] = (sum[s][i] + moved_bias) * gate_scale(gate);
    }
}

}  // namespace zo::cuda
