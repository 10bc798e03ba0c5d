// The kernels of one instruction set for the forward of models with a memory, their plan and their buffers.
//
// A thread runs one probe on a few sequences, from their first token to their last: a *column* is a sequence of a
// member, and both members of a probe run side by side, so that a weight is read once for all columns. The context is
// cut into chunks of steps. Per chunk
//   1. the embedded tokens of all its positions meet the controller's weights,
//   2. the steps are taken one after the other,
//   3. the outputs of its scored positions meet the output projection.
// All three are the same product (multiply.h) of a matrix with up to kMostColumns columns.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "../population/kernels.h"
#include "dnc.h"

namespace zo::cpu {

constexpr int kMostColumns = 8;

// Part of a weight, laid out for products. Rows are padded to whole vectors, and cut into *panels* of one vector. Its
// columns are cut into *groups*, whose signs a table look-up adds at once.
struct DncMatrix {
  const Parameter* parameter;
  int64_t row_stride, first_column, columns;  // in the parameter
  const int32_t* source;                      // [rows]: row of the parameter, -1: padding
  const uint32_t* kept;                       // [rows]: all bits, or none where it is padding
  int64_t rows;
  int64_t groups, depth, words;  // depth: columns with their padding; words of 8 groups' signs in 4 bits each
  float* theta;                  // [panel][depth][lane]
};

enum DncProduct { kInputProduct, kRecurrentProduct, kInterfaceProduct, kOutputProduct, kDncProducts };

// Where the parts of the interface begin among its padded rows. Scalars stand together: read strengths [R], write
// strength; then for kDnc free gates [R], allocation gate, write gate, read modes [R, 3].
struct DncInterface {
  int64_t read_keys, write_key, erase, write, scalars;  // read keys are [R][padded W]
};

struct DncPlan {
  const DncArgs* args;
  int lanes;
  bool paper;
  DncSizes sizes;
  int64_t hidden, width, slots, embed;  // padded to whole vectors
  int64_t reads;         // R W
  int64_t blocks;        // of the memory: vectors of slots
  int64_t column_bytes;  // of all states of a column, which begin with h
  DncMatrix products[kDncProducts];
  DncInterface interface;
  int64_t chunk_positions;
  int64_t group_sequences;      // that a thread runs side by side
  const float* initial_memory;  // as DncColumn::memory; null: zeros

  ZO_PLAN_METHOD int64_t padded(int64_t count) const { return (count + lanes - 1) / lanes * lanes; }
  ZO_PLAN_METHOD int64_t stride(DncProduct product) const {  // of the vectors that a product takes
    return padded(products[product].depth) + 2 * lanes;
  }
};

// The perturbed vectors of one member, padded with zeros.
struct DncMember {
  float eps;  // with the sign
  float *gate_bias, *interface_bias, *output_bias;  // by the rows of their product
  // kPaper: products of the controller's weights with the input norm's weight, and the norms themselves.
  float* token_slope;
  float *token_weight, *token_bias, *reads_weight, *reads_bias;  // of the input norm
  float *hidden_weight, *hidden_bias, *read_key_weight, *read_key_bias, *write_key_weight, *write_key_bias;
  float *memory_weight, *output_norm_weight, *output_norm_bias;
};

// The states of one sequence of a member, padded with zeros; each is [padded N] unless said otherwise.
struct DncColumn {
  float *h, *c;   // [padded H]
  float* memory;  // [block of slots][W][lane]
  float* reads;   // [R W]: the read vectors
  float *mean, *scale;  // kPaper: of each slot, and one over its standard deviation. kDnc: scale is the norm
  float *usage, *precedence, *written;
  float* link;     // [N][padded N]
  float* read;     // [R][padded N]
  int32_t* order;  // the slots from least to most used
};

struct DncScratch {
  int64_t probe;  // of members and words; -1: none
  uint32_t* words[kDncProducts];  // signs: [panel][word][lane]
  uint8_t* signs;
  DncMember members[2];
  DncColumn columns[kMostColumns];
  float *embedded, *pre, *token_mean, *token_squares, *outputs;  // of the positions of a chunk
  float *step_input, *hidden_input, *interface, *logits;         // of each column
  float* tables;                                                 // [column][group][entry]
  float *keys, *scores, *forward, *row;                          // of one column; row: any vector
};

struct DncKernels {
  int lanes, group;
  int64_t (*sign_bytes)(int64_t columns);  // size of DncScratch::signs for rows of so many columns
  void (*lay_out)(const DncPlan&, const DncMatrix&, float* row);
  // Runs sequences [first, first + count) of a probe. nats, and correct if not null: [sign][B].
  void (*run)(const DncPlan&, DncScratch&, int64_t probe, int64_t first, int64_t count, double* nats, int64_t* correct);
};

}  // namespace zo::cpu
