// The resident forward: the nats of many probes, both signs, of an LSTM on the GPU, where a thread block keeps the
// recurrent weights of one head, probe and sign for all time steps.
//
// Not yet verified on a GPU. The model is that of cpu/population/population.h with cell LSTM, one layer, heads of up to
// 64 units, and the arithmetic that of its bfloat16 products: recurrent and output weights are rounded to the bfloat16
// grid at |w| + eps, so that w + eps and w - eps are both exact; hidden states are rounded to bfloat16 after a step.
// Embedding, input weight, biases and sums are float32.
#pragma once

#include <cstdint>

#include "launch.h"

namespace zo::cuda {

// A float32 tensor on the device and where it begins in the flat parameter space; offset -1: not perturbed.
struct Parameter {
  const float* data;
  int64_t offset;
};

struct ResidentArgs {
  Parameter embedding;         // [V, E]
  Parameter input_weight;      // [4, N, D, E]
  Parameter recurrent_weight;  // [4, N, D, D]
  Parameter bias;              // [4, N, D]
  Parameter output_weight;     // [V, N * D]
  Parameter output_bias;       // [V]
  int64_t vocab_size, embed_dim, num_heads, head_dim;
  const int64_t* rows;  // [num_rows]: the tokens that are used, for which the token table has a row each
  int64_t num_rows;
  const int32_t* tokens;   // [T, B]: each the number of its row
  const int32_t* targets;  // [T, B], negative: not scored
  int64_t batch_size, num_steps;
  int64_t steps_at_once;  // whose hidden states are kept at a time
  const uint64_t* seeds;  // [num_seeds], on the device as everything is
  int64_t num_seeds;
  float eps;      // 0, or a power of two and its sign
  float* h;       // [num_seeds, 2, N, B, D]: states before the first token, then after the last. Null: zeros, only if
  float* c;       // all steps are taken at once
  char* scratch;  // num_seeds * scratch_bytes(), aligned to 16 bytes
  double* nats;   // [num_seeds, 2, num_parts()]: sums over the positions of a part
};

// Shared memory in bytes: what a thread block may ask for, and what a multiprocessor has.
struct DeviceLimits {
  int64_t per_block, per_multiprocessor;
};

// A warp has 8 units of the head, of all four gates, and kSequences sequences. unit_tiles * groups warps are a block.
struct ResidentPlan {
  static constexpr int kSequences = 64;

  int unit_tiles;  // 8 units each; 0 if the head is too large
  int groups;      // of kSequences sequences
  bool table_in_shared;
  int64_t shared_bytes;

  ZO_HOST_DEVICE int threads() const { return 32 * unit_tiles * groups; }
  ZO_HOST_DEVICE int sequences() const { return kSequences * groups; }
  ZO_HOST_DEVICE int64_t hidden_bytes() const { return int64_t{2} * 16 * unit_tiles * sequences(); }
};

DeviceLimits device_limits(int device);

ResidentPlan plan_resident(int64_t head_dim, int64_t num_rows, DeviceLimits limits);

// What one probe needs: for its table and its output weights, and for the hidden states of one step.
struct ResidentBytes {
  int64_t weights, step;
};
ResidentBytes resident_bytes(const ResidentArgs& args);
int64_t scratch_bytes(const ResidentArgs& args);  // of one probe
int64_t num_parts(const ResidentArgs& args);

// The largest embedding, of which the signs of a few rows have to fit shared memory.
int64_t most_embed_dim(DeviceLimits limits);

constexpr char kResidentLimits[] =
    "the resident forward needs heads of at most 64 units and an embedding whose signs fit shared memory";

// Throws std::invalid_argument if the model does not fit or eps is not a power of two.
void evaluate_resident(const ResidentArgs& args, Queue queue);

}  // namespace zo::cuda
