// The kernel of one instruction set for activity perturbation, and its buffers.
//
// Sequences are cut into tiles, one sequence per lane, and a tile runs alone from its first step to its gradient.
#pragma once

#include "../kernels.h"
#include "../population/kernels.h"
#include "activity.h"

namespace zo::cpu {

struct ActivityPlan {
  const ActivityArgs* args;
  CellShape cell;
  int tile_lanes;
  int64_t hidden_size, members;
  int64_t units;        // pre-activations of a sequence at a step, N * D * G
  int64_t blocks;       // Philox blocks that hold the signs of a step
  int64_t chunk_steps;  // steps whose hidden states are kept for the gradient
  int64_t panel_rows;   // rows of the output projection computed at once
  bool reads_twice;     // the context, because it does not fit a chunk
  bool keeps_errors;    // at the logits of a chunk, from a step to the gradients of the output layer
  int64_t error_rows;   // rows of the output whose errors are there at once: all, if they are kept, or a panel
  const float* output_columns;  // [H][V]: the output weights, for the local gradient
};

// The gradients that the tiles of one group add up to. Sums are in the order of the tiles.
struct ActivitySums {
  double* nats;  // [members]
  float *table, *recurrent, *output_weight, *output_bias;
};

// Of one thread. A state is [unit][lane], W lanes wide.
struct ActivityBuffers {
  float* clean;         // [chunk_steps + 1][H][W]: hidden states before each step of a chunk, and after the last
  float* hidden;        // [members - 1][2][H][W]
  float* cell;          // [members][H][W]
  uint32_t* signs;      // [chunk_steps][num_seeds][4 * blocks][W]: bit j % 32 of word j / 32 is the sign of unit j
  float* differences;   // [num_seeds][T][W], then the credits
  float* logsumexp;     // [T][W], or [chunk_steps][W] if the context is read once; of the clean pass
  float* pre;           // [lanes of a vector][W]
  float* products;      // [panel_rows][W]
  float* errors;        // [chunk_steps][error_rows][W], at the logits of the clean pass
  float* local;         // [chunk_steps][H][G][W]: the local gradient, if there is one
  float* outer;         // [H][W]: the gradient of a step's losses with respect to its hidden states
  float* deltas;        // [chunk_steps][head_columns][W], of a head
  float* losses;        // [members][W]
  float* row_of_lanes;  // [3][W]: maximum, sum and logit of the target, or what is scored
};

struct ActivityKernels {
  int lanes, tile_lanes;
  void (*run_tile)(const ActivityPlan&, const ActivityBuffers&, const ActivitySums&, int64_t tile);
  void (*multiply_rows)(const MatrixProduct&, int64_t first, int64_t last);
};

}  // namespace zo::cpu
