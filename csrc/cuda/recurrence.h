// The recurrence of one head of one member, for all time steps of tiles of sequences.
//
// Plan. A warp has 8 units of the head, all four gates, and their recurrent weights in registers. Per step and 16
// sequences it multiplies them with the hidden states of the head, which lie in shared memory, and finishes the 8 units
// where the sums are: the four gates of a unit meet in one lane, cell states stay in its registers, hidden states go to
// the other buffer in shared memory and to global memory. The token table adds the input, from shared memory if there
// is room. Padding needs no branches: units beyond the head have zeros for weights and inputs, and so for states.
#pragma once

#include <type_traits>

#include "cell.h"
#include "mma.h"
#include "signs.h"
#include "token_table.h"

namespace zo::cuda {

constexpr int kMostThreads = 256;
constexpr int kRowTiles = ResidentPlan::kSequences / 16;

// The time steps of a launch.
struct Steps {
  int64_t first, count;
};

// kDepth: products of 16 previous units each, for heads of up to 16 * kDepth units. kTableInShared: as the plan says.
template <int kDepth, bool kTableInShared>
class Head {
 public:
  __device__ Head(const ResidentArgs& args, const ResidentPlan& plan, char* shared)
      : args_(args),
        hidden_(reinterpret_cast<uint32_t*>(shared)),
        D_(static_cast<int>(args.head_dim)),
        unit_tiles_(plan.unit_tiles),
        sequences_(plan.sequences()),
        lane_(static_cast<int>(threadIdx.x) % 32),
        group_(lane_ / 4),
        pair_(lane_ % 4),
        unit_tile_(static_cast<int>(threadIdx.x) / 32 % plan.unit_tiles),
        first_in_tile_(static_cast<int>(threadIdx.x) / 32 / plan.unit_tiles * ResidentPlan::kSequences),
        member_(static_cast<int>(blockIdx.x / static_cast<unsigned>(args.num_heads))),
        head_(static_cast<int>(blockIdx.x % static_cast<unsigned>(args.num_heads))) {
    const int matrix = lane_ / 8;
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      // Of a product beyond the head's units, of which there are few in a small head, the weights are zeros: any
      // hidden states do.
      const int chunk = min(2 * k + matrix / 2, unit_tiles_ - 1);
      factor_[k] = 4 * (chunk * sequences_ + first_in_tile_ + matrix % 2 * 8 + lane_ % 8);
    }
  }

  // Perturbed weights go through shared memory, where the hidden states will be, gate by gate.
  __device__ void load_weights() {
    const int thread = static_cast<int>(threadIdx.x);
    const uint64_t seed = args_.seeds[member_ / 2];
    const float eps = member_ % 2 == 0 ? args_.eps : -args_.eps;
    const auto first_of = [&](int gate) { return (gate * args_.num_heads + head_) * D_ * D_; };
    const SignRows signs(args_.recurrent_weight, 4, D_ * D_, first_of, seed, hidden_, thread, threads());
    uint16_t* const staged = reinterpret_cast<uint16_t*>(hidden_ + SignRows::words(4, D_ * D_));
    const int units = 8 * unit_tiles_;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      __syncthreads();
      for (int i = thread; i < units * 16 * kDepth; i += threads()) {
        const int unit = i / (16 * kDepth), previous = i % (16 * kDepth);
        float w = 0.0f;
        if (unit < D_ && previous < D_) {
          const int element = unit * D_ + previous;
          w = args_.recurrent_weight.data[first_of(gate) + element];
          if (signs.perturbed()) w = on_bfloat16_grid(w, eps) + signs.step(eps, gate, first_of(gate), element);
        }
        staged[(previous / 8 * units + unit) * 8 + previous % 8] = to_bfloat16(w);
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < 2 * kDepth; ++k)
        weight_[gate][k] = reinterpret_cast<const uint32_t*>(staged)[(k * units + 8 * unit_tile_ + group_) * 4 + pair_];
    }
    __syncthreads();
  }

  // The table's rows of this head, each [unit tile][slot][gate]; they are copied if they are to be in shared memory.
  __device__ void load_table(const float* table, float* copy) {
    const int64_t floats = args_.num_rows * unit_tiles_ * 32;
    table += int64_t{blockIdx.x} * floats;
    if (kTableInShared) {
      for (int64_t i = threadIdx.x; i < floats / 4; i += threads())
        reinterpret_cast<float4*>(copy)[i] = reinterpret_cast<const float4*>(table)[i];
      table = copy;
    }
    table_ = reinterpret_cast<const char*>(table + 32 * unit_tile_ + 4 * pair_);
  }

  // blockIdx.x: the number of this head among those of all members. hidden: [member][chunk][step][sequence][4 words], a
  // chunk of 8 units.
  __device__ void run(int tile, Steps steps, uint32_t* hidden) {
    const int first = tile * sequences_ + first_in_tile_;
    const int count = min(static_cast<int>(args_.batch_size) - first, ResidentPlan::kSequences);
    load_states(first, count);
    int position = static_cast<int>(steps.first * args_.batch_size) + first;
    int32_t rows[2];  // of the table: read one multiplication ahead
    load_tokens(rows, position, 0, count);
    const int64_t chunk = int64_t{blockIdx.x} * unit_tiles_ + unit_tile_;
    uint32_t* out = hidden + (chunk * steps.count * args_.batch_size + first + group_) * 4 + pair_;
    __syncthreads();
    const int num_steps = static_cast<int>(steps.count);
    for (int t = 0; t < num_steps; ++t, out += 4 * args_.batch_size) {
      const int now = t % 2;
      const int next = t + 1 < num_steps ? position + static_cast<int>(args_.batch_size) : position;
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        if (16 * r >= count) continue;  // all lanes together
        float input[4][4];  // of states 0 and 1 of group_, 2 and 3 of group_ + 8
        load_inputs(input, rows);
        const bool last = 16 * (r + 1) >= count || r + 1 == kRowTiles;
        load_tokens(rows, last ? next : position, last ? 0 : r + 1, count);
        float sums[4][4] = {};
        multiply(sums, now, r);
        uint32_t state[2];
        advance(state, sums, input, c_[r]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int sequence = 16 * r + 8 * half;
          word(1 - now, sequence) = state[half];
          if (sequence + group_ < count) out[4 * sequence] = state[half];
        }
      }
      position = next;
      __syncthreads();
    }
    if (args_.h != nullptr) store_states(first, count, num_steps % 2);
  }

 private:
  __device__ int threads() const { return 32 * unit_tiles_ * (sequences_ / ResidentPlan::kSequences); }

  // Two hidden states of this lane: units 8 unit_tile_ + 2 pair_ and the next of one of this warp's sequences.
  __device__ uint32_t& word(int buffer, int sequence) const {
    const int row = (buffer * unit_tiles_ + unit_tile_) * sequences_ + first_in_tile_ + sequence + group_;
    return hidden_[4 * row + pair_];
  }

  // Calls function(i, index in args.h and args.c) for the states of this lane in 16 sequences that exist.
  template <class Function>
  __device__ void each_state(int r, int first, int count, Function function) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int sequence = 16 * r + i / 2 * 8 + group_, unit = 8 * unit_tile_ + 2 * pair_ + i % 2;
      if (sequence < count && unit < D_)
        function(i, (int64_t{blockIdx.x} * args_.batch_size + first + sequence) * D_ + unit);
    }
  }

  __device__ void load_states(int first, int count) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      float h[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) c_[r][i] = 0.0f;
      if (args_.h != nullptr)
        each_state(r, first, count, [&](int i, int64_t at) {
          h[i] = args_.h[at];
          c_[r][i] = args_.c[at];
        });
#pragma unroll
      for (int half = 0; half < 2; ++half)
        word(0, 16 * r + 8 * half) = to_bfloat16_pair(h[2 * half], h[2 * half + 1]);
    }
  }

  __device__ void store_states(int first, int count, int buffer) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
      each_state(r, first, count, [&](int i, int64_t at) {
        args_.h[at] = from_bfloat16(word(buffer, 16 * r + i / 2 * 8) >> (16 * (i % 2)));
        args_.c[at] = c_[r][i];
      });
  }

  // The table's rows of the tokens of two sequences. Sequences beyond the batch are computed too, with the tokens of
  // the last one, and not written.
  __device__ void load_tokens(int32_t (&rows)[2], int position, int r, int count) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      rows[half] = args_.tokens[position + min(16 * r + 8 * half + group_, count - 1)];
  }

  // input[state][gate], scaled. Of a row's tile, units 2 pair_ are in the half of its parity (table_slot).
  __device__ void load_inputs(float (&input)[4][4], const int32_t (&rows)[2]) const {
    using Offset = std::conditional_t<kTableInShared, int, int64_t>;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Offset row = Offset{rows[half]} * (128 * unit_tiles_) + 64 * (rows[half] & 1);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float4 gates = *reinterpret_cast<const float4*>(table_ + (row ^ (64 * j)));
        float(&to)[4] = input[2 * half + j];
        to[0] = gates.x, to[1] = gates.y, to[2] = gates.z, to[3] = gates.w;
      }
    }
  }

  // sums[gate] += W h for 16 sequences of this warp.
  __device__ void multiply(float (&sums)[4][4], int buffer, int r) const {
    const uint32_t* const hidden = hidden_ + buffer * unit_tiles_ * sequences_ * 4;
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      uint32_t a[4];
      load_matrices(a, hidden + factor_[k] + 4 * 16 * r);
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) multiply_add(sums[gate], a, weight_[gate][2 * k], weight_[gate][2 * k + 1]);
    }
  }

  // The next states of two units of two sequences.
  __device__ static void advance(uint32_t (&state)[2], const float (&sums)[4][4], const float (&input)[4][4],
                                 float (&c)[4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float h[2];
      Quotient quotient[2];
      const auto gate = [&](int g, int j) {
        const int i = 2 * half + j;
        return __fmaf_rn(sums[g][i], gate_scale(g), input[i][g]);
      };
      float* const cells = c + 2 * half;
#pragma unroll
      for (int j = 0; j < 2; ++j) quotient[j] = cell_state(gate(0, j), gate(1, j), gate(2, j), cells[j]);
      divide(quotient[0], quotient[1], cells[0], cells[1]);
#pragma unroll
      for (int j = 0; j < 2; ++j) quotient[j] = hidden_state(gate(3, j), cells[j]);
      divide(quotient[0], quotient[1], h[0], h[1]);
      state[half] = to_bfloat16_pair(h[0], h[1]);
    }
  }

  const ResidentArgs& args_;
  uint32_t* const hidden_;  // [2 buffers][unit tile][sequence][4 words]
  const int D_, unit_tiles_, sequences_, lane_, group_, pair_, unit_tile_, first_in_tile_;
  const int member_, head_;
  uint32_t weight_[4][2 * kDepth];
  float c_[kRowTiles][4];
  int factor_[kDepth];  // this lane's rows of hidden states for the fragments of a product, in words
  const char* table_ = nullptr;
};

template <int kDepth, bool kTableInShared>
__global__ void __launch_bounds__(kMostThreads, 2)
    recurrence_kernel(const ResidentArgs args, const ResidentPlan plan, Steps steps, const float* table,
                      uint32_t* hidden) {
  ZO_DYNAMIC_SHARED(shared);
  Head<kDepth, kTableInShared> head(args, plan, shared);
  head.load_weights();
  head.load_table(table, reinterpret_cast<float*>(shared + plan.hidden_bytes()));
  const int tiles = static_cast<int>((args.batch_size + plan.sequences() - 1) / plan.sequences());
  for (int tile = static_cast<int>(blockIdx.y); tile < tiles; tile += static_cast<int>(gridDim.y))
    head.run(tile, steps, hidden);
}

}  // namespace zo::cuda
