// The fused forward of a recurrent language model at many probes, with raw pointers and sizes, without torch or Python.
//
// The model embeds a token, runs one layer of N independent heads (LSTM, GRU or Elman; FlashRNN's cells and gate
// order), projects the hidden state to the vocabulary and scores the next token. A *member* of the population is the
// model at theta + sign * eps * p(seed). Members exist only inside the arithmetic: theta is never written, and no
// perturbed copy of the model is made (panels of it are, as large as the caches).
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

// B sequences, T tokens, V vocabulary, E embedding, N heads, D head size, H = N * D, M = num_seeds * num_signs members.
// Row-major: embedding [V, E], input_weight [I, N, D, E], recurrent_weight [R, N, D, D], bias [G, N, D],
// output_weight [V, H], output_bias [V], with I, R, G = 4, 4, 4 (LSTM: i, f, z, o), 3, 3, 4 (GRU: input r, z, n;
// recurrent g, r, z; bias g, r, z, n) or 1, 1, 1 (Elman).
struct PopulationArgs {
  Cell cell;
  DType type;  // of all parameters: float32, bfloat16 or float16; arithmetic is float32, sums over positions float64
  // Products with the hidden state in bfloat16, with float32 sums. eps must be 0 or a power of two that a bfloat16 as
  // large as the largest recurrent or output weight plus eps still resolves; h is then carried on as bfloat16, except
  // by a GRU. Weights must be finite.
  bool bfloat16;
  Parameter embedding, input_weight, recurrent_weight, bias, output_weight, output_bias;
  int64_t vocab_size, embed_dim, num_heads, head_dim;

  const int64_t* tokens;   // [B, T], values in [0, V)
  const int64_t* targets;  // [B, T], values in [0, V), negative: not scored; null: none is scored
  int64_t batch_size, num_steps;

  const uint64_t* seeds;
  int64_t num_seeds;
  int num_signs;  // 2: theta + eps p and theta - eps p; 1: the first only
  double eps;

  float* h;  // [num_seeds, num_signs, N, B, D]: read before the first token, written after the last; null: from zeros
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
