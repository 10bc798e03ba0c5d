// The fused forward of a language model with an external memory at many probes, with raw pointers and sizes, without
// torch or Python. zo_kernels/models/dnc.py and paper_dnc.py have the equations.
//
// A *member* of the population is the model at theta + sign * eps * p(seed). Its matrices never exist: a product is that
// with theta, which all members share, plus eps times that with the signs. The sum of both differs by rounding from the
// product with theta + eps * p in float32.
#pragma once

#include <cstdint>

#include "../population/population.h"

namespace zo::cpu {

enum class DncModel : int { kDnc = 0, kPaper = 1 };

// V vocabulary, E embedding, H controller, N slots, W width, R read heads; B sequences, T tokens.
struct DncSizes {
  int64_t vocab, embed, hidden, slots, width, heads;
};

struct DncNorm {
  Parameter weight, bias;
};

constexpr int kDncStates = 9;  // of DncModel::kDnc; DncModel::kPaper has four

struct DncArgs {
  DncModel model;
  DType type;  // of all parameters: float32, bfloat16 or float16; arithmetic is float32, sums over positions float64
  DncSizes sizes;
  // Row-major, with the shapes that the models document.
  Parameter embedding, controller_weight, controller_bias, interface_weight, interface_bias, output_weight, output_bias;
  // Of kPaper alone: controller_bias is its input_bias. The memory norm's bias is not used.
  Parameter recurrent_bias;
  DncNorm input_norm, hidden_norm, read_key_norm, write_key_norm, memory_norm, output_norm;

  const float* initial_memory;  // [N, W], that sequences start from; null: zeros

  const int64_t* tokens;   // [B, T], values in [0, V)
  const int64_t* targets;  // [B, T], values in [0, V), negative: not scored
  int64_t batch_size, num_steps;

  const uint64_t* seeds;
  int64_t num_seeds;
  int num_signs;  // 2: theta + eps p and theta - eps p; 1: the first only
  double eps;

  // Each [num_seeds, num_signs, B, ...], in the order of the model's state names: read before the first token, written
  // after the last. All null: from the initial states, and none come out.
  float* states[kDncStates];

  double* nats;      // [num_seeds, num_signs]: sum over the scored positions of -log p(target)
  int64_t* correct;  // likewise: scored positions whose target has the largest logit, the first of equal ones; or null
};

// Results do not depend on the number of threads; instruction sets agree to float32 rounding. Memory beyond the
// arguments does not depend on T, and on B by 16 bytes per member.
// Throws std::invalid_argument for a token or target out of range.
void evaluate_dnc(const DncArgs& args);

}  // namespace zo::cpu
