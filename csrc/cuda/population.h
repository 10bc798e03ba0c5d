// The population forward of a multi-head LSTM on the GPU: nats of many probes, both signs, in two launches.
//
// Not yet verified on a GPU. The model is that of cpu/population/population.h with cell LSTM, in bfloat16 products:
// recurrent and output weights and hidden states are rounded to bfloat16, signs are exact (W h + (+-eps P) h, float32
// sums), embedding, input weight and biases are float32.
#pragma once

#include <cstdint>

#include "launch.h"

namespace zo::cuda {

// A float32 tensor on the device and where it begins in the flat parameter space; offset -1: not perturbed.
struct Parameter {
  const float* data;
  int64_t offset;
};

struct PopulationArgs {
  Parameter embedding;         // [V, E]
  Parameter input_weight;      // [4, N, D, E]
  Parameter recurrent_weight;  // [4, N, D, D]
  Parameter bias;              // [4, N, D]
  Parameter output_weight;     // [V, N * D]
  Parameter output_bias;       // [V]
  int64_t vocab_size, embed_dim, num_heads, head_dim;
  const int64_t* tokens;   // [B, T]
  const int64_t* targets;  // [B, T], negative: not scored
  int64_t batch_size, num_steps;
  const uint64_t* seeds;  // [num_seeds], on the device as everything is
  int64_t num_seeds;
  float eps;     // a bfloat16
  float* h;      // [num_seeds, 2, N, B, D]: states before the first token, then after the last; null: zeros
  float* c;
  float* table;  // scratch, table_floats() of them
  double* nats;  // [num_seeds, 2, batch_tiles()]: sums over the sequences of a tile
};

// Sequences of one thread block: 32, or 16 if there are few or shared memory is short; 0 if the model does not fit.
int64_t tile_sequences(const PopulationArgs& args, int device);
int64_t batch_tiles(const PopulationArgs& args, int device);
int64_t table_floats(const PopulationArgs& args);

constexpr char kPopulationLimits[] =
    "the population kernel needs an even head size, and weights and 16 sequences' states that fit shared memory";

// Throws std::invalid_argument if the model does not fit or eps is not a bfloat16 number.
void evaluate_population(const PopulationArgs& args, Queue queue);

}  // namespace zo::cuda
