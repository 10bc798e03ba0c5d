// Activity perturbation of a recurrent language model with one layer, with raw pointers and sizes.
//
// zo_kernels/backends/activity/problem.py has the estimator. All members, the clean one and each probe with both signs,
// have the same weights and differ by what is added to their pre-activations.
#pragma once

#include <cstdint>

#include "../population/population.h"

namespace zo::cpu {

// B sequences, T steps, V vocabulary, N heads, D head size, H = N * D, G rows of pre-activations of a unit, R of them
// recurrent (CellShape). Everything is float32.
struct ActivityArgs {
  Cell cell;
  int64_t vocab_size, num_heads, head_dim;

  // Bias and input projection of the distinct tokens, [table_rows][N][head_columns]: column u * G + r of a head is row r
  // of its unit u. head_columns is a multiple of 16 and at least D * G.
  const float* table;
  int64_t table_rows, head_columns;
  const int32_t* table_row;  // [T, B]

  const float* recurrent_weight;  // [R, N, D, D]
  const float* output_weight;     // [V, H]
  const float* output_bias;       // [V]
  const int32_t* targets;         // [T, B], negative: not scored
  int64_t batch_size, num_steps;

  const float* h;  // [N, B, D] before the first token; null: zeros
  const float* c;  // likewise, for a cell that has it

  const uint64_t* seeds;
  int64_t num_seeds;
  uint32_t first_sequence;  // number of the first sequence, by which its signs are chosen
  float sigma;
  int64_t credit_length;
  bool local_gradient;  // without seeds, it is all there is besides the gradient of the output layer

  double* nats;                   // [1 + 2 num_seeds]: of the clean pass, then +sigma of each probe, then -sigma
  float* table_gradient;          // as table
  float* recurrent_gradient;      // as recurrent_weight
  float* output_weight_gradient;  // as output_weight
  float* output_bias_gradient;    // as output_bias
};

// Results do not depend on the number of threads; instruction sets agree to float32 rounding. Memory beyond the
// arguments depends on T only by 4 bytes for each probe and position, and as much once more.
void perturb_activities(const ActivityArgs& args);

// c = a b, float32: [rows, columns], with a [rows, inner] of any strides. Each sum is in the order of `inner`.
struct MatrixProduct {
  int64_t rows, inner, columns;  // columns: a multiple of 16
  const float* a;
  int64_t a_row, a_inner;  // strides
  const float* b;          // [inner, columns]
  float* c;                // [rows, columns]
};

// Results do not depend on the number of threads; instruction sets agree to float32 rounding.
void multiply(const MatrixProduct& product);

}  // namespace zo::cpu
