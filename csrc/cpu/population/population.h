// The fused forward of a recurrent language model at many probes, with raw pointers and sizes, without torch or Python.
//
// The model embeds a token, runs L layers of N independent heads (LSTM, GRU or Elman; FlashRNN's cells and gate order),
// projects the output of the last to the vocabulary and scores the next token. A *member* of the population is the model
// at theta + sign * eps * p(seed). Members exist only inside the arithmetic: theta is never written, and no perturbed
// copy of the model is made (panels of it are, as large as the caches).
//
// Layer l has the input x[l], where x[0] is the embedding, and the hidden states h[l] of all heads. Its output is
//   x[l + 1] = norm(h[l]) (+ x[l] for l >= 1, if residual),
// with norm(h) = (h - mean) / sqrt(variance + 1e-5) * norm_weight[l] + norm_bias[l] over the H units, or h without it.
#pragma once

#include <cstdint>

#include "../launch.h"

namespace zo::cpu {

enum class Cell : int { kLstm = 0, kGru = 1, kElman = 2 };

struct Parameter {
  const void* data;
  int64_t numel;
  int64_t offset;  // of its first element in the flat parameter space, a multiple of 128; -1: not perturbed
};

// B sequences, T tokens, V vocabulary, E embedding, L layers, N heads, D head size, H = N * D,
// M = num_seeds * num_signs members.
// Row-major: embedding [V, E], input_weight [I, N, D, E], recurrent_weight [R, N, D, D], bias [G, N, D],
// output_weight [V, H], output_bias [V], with I, R, G = 4, 4, 4 (LSTM: i, f, z, o), 3, 3, 4 (GRU: input r, z, n;
// recurrent g, r, z; bias g, r, z, n) or 1, 1, 1 (Elman). With L > 1 the layers after the first have
// upper_input_weight [L - 1, I, N, D, H], upper_recurrent_weight [L - 1, R, N, D, D] and upper_bias [L - 1, G, N, D].
// With layer_norm there are norm_weight [L, H] and norm_bias [L, H].
struct PopulationArgs {
  Cell cell;
  DType type;  // of all parameters: float32, bfloat16 or float16; arithmetic is float32, sums over positions float64
  // Products with hidden states and with outputs of layers in bfloat16, with float32 sums. eps must be 0 or a power of
  // two that a bfloat16 as large as the largest of these weights plus eps still resolves; h is then carried on as
  // bfloat16, except by a GRU. Weights must be finite.
  bool bfloat16;
  Parameter embedding, input_weight, recurrent_weight, bias, output_weight, output_bias;
  Parameter upper_input_weight, upper_recurrent_weight, upper_bias, norm_weight, norm_bias;
  int64_t vocab_size, embed_dim, num_layers, num_heads, head_dim;
  bool layer_norm, residual;

  const int64_t* tokens;   // [B, T], values in [0, V)
  const int64_t* targets;  // [B, T], values in [0, V), negative: not scored; null: none is scored
  int64_t batch_size, num_steps;

  const uint64_t* seeds;
  int64_t num_seeds;
  int num_signs;  // 2: theta + eps p and theta - eps p; 1: the first only
  double eps;

  float* h;  // [num_seeds, num_signs, L, N, B, D]: read before the first token, written after the last; null: from zeros
  float* c;  // likewise, for a cell that has it

  double* nats;   // [num_seeds, num_signs]: sum over the scored positions of -log p(target)
  // [num_seeds, num_signs]: scored positions whose target has the largest logit, the first of equal ones; or null
  int64_t* correct;
  float* logits;  // [num_seeds, num_signs, B, V] after the last token, or null
};

// Which rows each cell has. A unit's pre-activations are kRows numbers: bias + input projection (rows first_input_row
// and on) + recurrent projection (rows 0 .. recurrent_rows - 1).
struct CellShape {
  int rows, first_input_row, input_rows, recurrent_rows;
  bool has_cell_state;
};

constexpr CellShape cell_shape(Cell cell) {
  switch (cell) {
    case Cell::kGru: return {4, 1, 3, 3, false};
    case Cell::kElman: return {1, 0, 1, 1, false};
    default: return {4, 0, 4, 4, true};
  }
}

// Results do not depend on the number of threads; instruction sets agree to float32 rounding. Memory beyond the
// arguments depends on B, and on T only by 8 bytes per position.
// Throws std::invalid_argument for a token or target out of range among the steps that are run (all, if there are
// states or logits; else up to the last that is scored), std::runtime_error if this processor lacks bfloat16.
void evaluate_population(const PopulationArgs& args);

bool has_bfloat16();

}  // namespace zo::cpu
