// Output projection and cross-entropy of the hidden states that recurrence_kernel leaves.
//
// Hidden states and output weights lie in chunks of 8 units, each chunk [positions or tokens][8] in one piece: a thread
// block reads any slice of them in runs of kilobytes, and fragments load from shared memory without bank conflicts.
#pragma once

#include "cell.h"
#include "mma.h"
#include "signs.h"

namespace zo::cuda {

constexpr int kPositions = 128;  // of a thread block; a warp has 32
constexpr int kOutputThreads = 128;
constexpr int kTokenPairs = 7;  // pairs of 8 tokens of the vocabulary, at a time: 112
constexpr int kTokens = 16 * kTokenPairs;
constexpr int kSliceChunks = 4, kStages = 3;
constexpr float kNoLogit = -1e30f;  // a bias that takes padding out of the sum of exponentials

// Sizes of a member.
struct OutputShape {
  int64_t chunks, padded_chunks, tokens;  // the last two of the weights, filled up with zeros

  __host__ __device__ explicit OutputShape(const ResidentArgs& args)
      : chunks(args.num_heads * ((args.head_dim + 7) / 8)),
        padded_chunks((chunks + kSliceChunks - 1) / kSliceChunks * kSliceChunks),
        tokens((args.vocab_size + 15) / 16 * 16) {}

  __host__ __device__ int64_t weight_words() const { return padded_chunks * tokens * 4; }
};

// Output weights and biases of all members, perturbed. A thread makes one chunk of a token, for both signs.
__global__ void __launch_bounds__(256)
    output_weights_kernel(const ResidentArgs args, uint32_t* weights, float* biases) {
  const OutputShape shape(args);
  const int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x, chunk = i / shape.tokens, token = i % shape.tokens;
  if (chunk >= shape.padded_chunks) return;
  const uint64_t seed = args.seeds[blockIdx.y];
  const int64_t member = int64_t{blockIdx.y} * 2, D = args.head_dim, tiles = (D + 7) / 8;
  const int64_t first = chunk / tiles * D + chunk % tiles * 8;  // unit
  const bool here = chunk < shape.chunks && token < args.vocab_size;
  const int count = here ? static_cast<int>(min(D - chunk % tiles * 8, int64_t{8})) : 0;
  const int64_t element = token * args.num_heads * D + first;
  const bool perturbed = args.output_weight.offset >= 0;
  const uint32_t signs = here && perturbed ? eight_signs(args.output_weight, element, seed) : 0u;
  uint16_t moved[2][8];
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    float w = k < count ? args.output_weight.data[element + k] : 0.0f;
    if (perturbed) w = on_bfloat16_grid(w, args.eps);
    const float step = k < count && perturbed ? times_sign(args.eps, signs, k) : 0.0f;
    moved[0][k] = to_bfloat16(w + step);
    moved[1][k] = to_bfloat16(w - step);
  }
  for (int s = 0; s < 2; ++s) {
    uint4 words;
    __builtin_memcpy(&words, moved[s], sizeof(words));
    reinterpret_cast<uint4*>(weights + (member + s) * shape.weight_words())[i] = words;
  }
  if (chunk > 0) return;
  const bool exists = token < args.vocab_size;
  const float bias = exists ? args.output_bias.data[token] : kNoLogit;
  const float step = exists ? step_of(args.output_bias, token, args.eps, seed) : 0.0f;
  biases[member * shape.tokens + token] = bias + step;
  biases[(member + 1) * shape.tokens + token] = bias - step;
}

__device__ inline float exponential_over(float x, float largest) { return power_of_two((x - largest) * kLog2e); }

struct RunningSum {  // of exponentials, over the largest so far
  float largest = kNoLogit, sum = 0.0f;

  __device__ void merge(const RunningSum& other) {
    const float before = largest;
    largest = fmaxf(before, other.largest);
    sum = sum * exponential_over(before, largest) + other.sum * exponential_over(other.largest, largest);
  }
};

// The hidden states of some time steps; `targets` and `nats` begin with the first of these positions.
struct Positions {
  const uint32_t* hidden;  // [member][chunk][position][4 words]
  const int32_t* targets;  // [position]
  double* nats;            // [member][stride]: of each tile of positions
  int64_t count, tiles, stride;
};

class OutputTile {
 public:
  static constexpr int kStageWords = 4 * kSliceChunks * (kPositions + kTokens);

  __device__ OutputTile(const ResidentArgs& args, const Positions& at, const uint32_t* weights, const float* biases,
                        uint32_t* shared)
      : at_(at),
        shape_(args),
        shared_(shared),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % 32),
        member_(blockIdx.x / at.tiles),
        first_(blockIdx.x % at.tiles * kPositions),
        hidden_(at.hidden + member_ * shape_.chunks * at.count * 4),
        weights_(weights + member_ * shape_.weight_words()),
        biases_(biases + member_ * shape_.tokens),
        target_(first_ + thread_ < at.count ? at.targets[first_ + thread_] : -1) {}

  __device__ void run() {
    int* const scored = reinterpret_cast<int*>(shared_ + kStages * kStageWords);
    double* const sums = reinterpret_cast<double*>(shared_);
    if (thread_ == 0) *scored = 0;
    __syncthreads();
    if (target_ >= 0) *scored = 1;
    __syncthreads();
    const bool any = *scored != 0;
    if (any) project();
    // All threads are done with the stages. Lane 4g of a warp has the positions g, g + 8, g + 16 and g + 24.
    __syncthreads();
    sums[thread_] = 0.0;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int32_t target = target_of(r);
      const RunningSum& sum = running_[r];
      if (any && lane_ % 4 == 0 && target >= 0)
        sums[thread_ / 32 * 32 + lane_ / 4 + 8 * r] = __logf(sum.sum) + (sum.largest - picked_[r]);
    }
    for (int half = kPositions / 2; half > 0; half /= 2) {
      __syncthreads();
      if (thread_ < half) sums[thread_] += sums[thread_ + half];
    }
    if (thread_ == 0) at_.nats[member_ * at_.stride + blockIdx.x % at_.tiles] = sums[0];
  }

 private:
  // A part of the units, for kTokens of the vocabulary: the slices in the order in which they are read.
  struct Slice {
    int chunk = 0, stage = 0;  // the first chunk; where in shared memory
    int64_t token = 0;         // the first

    __device__ void next(int64_t chunks) {
      stage = stage == kStages - 1 ? 0 : stage + 1;
      chunk += kSliceChunks;
      if (chunk < chunks) return;
      chunk = 0;
      token += kTokens;
    }
  };

  __device__ uint32_t* stage(const Slice& slice) const { return shared_ + slice.stage * kStageWords; }

  // Of row r of this lane: position lane / 4 + 8r of its warp.
  __device__ int32_t target_of(int r) const {
    const int64_t position = first_ + thread_ / 32 * 32 + lane_ / 4 + 8 * r;
    return position < at_.count ? at_.targets[position] : -1;
  }

  // What lies beyond the hidden states is read from their end: there are no weights for it.
  __device__ void load(const Slice& slice) const {
    if (slice.token < shape_.tokens) {
      uint32_t* const to = stage(slice) + 4 * thread_;
      const int64_t position = min(first_ + thread_, at_.count - 1);
      const int64_t token = min(slice.token + thread_, shape_.tokens - 1);
#pragma unroll
      for (int k = 0; k < kSliceChunks; ++k) {
        const int64_t chunk = min(slice.chunk + int64_t{k}, shape_.chunks - 1);
        copy_async(to + 4 * k * kPositions, hidden_ + 4 * (chunk * at_.count + position));
        if (thread_ < kTokens)
          copy_async(to + 4 * (kSliceChunks * kPositions + k * kTokens),
                     weights_ + 4 * ((slice.chunk + k) * shape_.tokens + token));
      }
    }
    commit_copies();
  }

  __device__ void project() {
    Slice ahead;
    for (int i = 0; i < kStages - 1; ++i, ahead.next(shape_.padded_chunks)) load(ahead);
    float logits[2][2 * kTokenPairs][4] = {};
    for (Slice slice; slice.token < shape_.tokens; slice.next(shape_.padded_chunks)) {
      await_copies<kStages - 2>();
      __syncthreads();
      load(ahead);
      ahead.next(shape_.padded_chunks);
      const int pairs = static_cast<int>(min((shape_.tokens - slice.token) / 16, int64_t{kTokenPairs}));
      multiply(logits, stage(slice), pairs);
      if (slice.chunk + kSliceChunks < shape_.padded_chunks) continue;
      score(logits, slice.token, pairs);
#pragma unroll
      for (int i = 0; i < 8 * kTokenPairs; ++i)
#pragma unroll
        for (int m = 0; m < 2; ++m) logits[m][i / 4][i % 4] = 0.0f;
    }
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int mask = 1; mask <= 2; mask *= 2) {
        const float largest = __shfl_xor_sync(~0u, running_[r].largest, mask);
        const float sum = __shfl_xor_sync(~0u, running_[r].sum, mask);
        running_[r].merge({largest, sum});
        picked_[r] += __shfl_xor_sync(~0u, picked_[r], mask);  // one of the four lanes has it
      }
  }

  __device__ void multiply(float (&logits)[2][2 * kTokenPairs][4], const uint32_t* slice, int pairs) const {
    const int matrix = lane_ / 8, row = lane_ % 8;
    const uint32_t* const of_tokens = slice + 4 * kSliceChunks * kPositions;
#pragma unroll
    for (int k = 0; k < kSliceChunks; k += 2) {
      uint32_t a[2][4], b[4];
      const int position = thread_ / 32 * 32 + matrix % 2 * 8 + row;
#pragma unroll
      for (int m = 0; m < 2; ++m)
        load_matrices(a[m], slice + 4 * ((k + matrix / 2) * kPositions + 16 * m + position));
#pragma unroll
      for (int pair = 0; pair < kTokenPairs; ++pair) {
        if (pair >= pairs) break;
        load_matrices(b, of_tokens + 4 * ((k + matrix % 2) * kTokens + 16 * pair + matrix / 2 * 8 + row));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply_add(logits[m][2 * pair], a[m], b[0], b[1]);
          multiply_add(logits[m][2 * pair + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Takes these logits, to which biases are added, into the running sums.
  __device__ void score(float (&logits)[2][2 * kTokenPairs][4], int64_t first_token, int pairs) {
    RunningSum here[4];
    int target[4];  // a number of these tokens, if it is among them
#pragma unroll
    for (int r = 0; r < 4; ++r) target[r] = static_cast<int>(target_of(r) - first_token) - 2 * (lane_ % 4);
    const float* const biases = biases_ + first_token + 2 * (lane_ % 4);
#pragma unroll
    for (int i = 0; i < 4 * kTokenPairs; ++i) {
      if (i / 4 >= pairs) break;
      const int token = i / 2 * 8 + i % 2;
      const float bias = biases[token];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        float& logit = logits[r / 2][i / 2][r % 2 * 2 + i % 2];
        logit += bias;
        here[r].largest = fmaxf(here[r].largest, logit);
        if (token == target[r]) picked_[r] = logit;
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int i = 0; i < 4 * kTokenPairs; ++i) {
        if (i / 4 >= pairs) break;
        here[r].sum += exponential_over(logits[r / 2][i / 2][r % 2 * 2 + i % 2], here[r].largest);
      }
      running_[r].merge(here[r]);
    }
  }

  const Positions& at_;
  const OutputShape shape_;
  uint32_t* const shared_;
  const int thread_, lane_;
  const int64_t member_, first_;
  const uint32_t* const hidden_;
  const uint32_t* const weights_;
  const float* const biases_;
  const int32_t target_;
  RunningSum running_[4];
  float picked_[4] = {};
};

constexpr int kOutputSharedBytes = 4 * (kStages * OutputTile::kStageWords + 4);

__global__ void __launch_bounds__(kOutputThreads, 3)
    output_kernel(const ResidentArgs args, const Positions at, const uint32_t* weights, const float* biases) {
  ZO_DYNAMIC_SHARED(shared);
  OutputTile(args, at, weights, biases, reinterpret_cast<uint32_t*>(shared)).run();
}

}  // namespace zo::cuda
