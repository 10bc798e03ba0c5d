// The kernels of one instruction set for the population forward, and their buffers.
//
// The context is cut into *chunks* of time steps. For each chunk a member runs every head of a layer over all its steps
// (`recurrence`), leaving the hidden states of the chunk. `deliver` makes the layer's outputs of them where those are
// not the hidden states themselves, and `lift` the table of the next layer, with one row per position. In the end
// `output` turns the outputs of the last layer into losses. Only the last step's states outlive a chunk.
//
// Two layouts, by how many sequences there are:
//   wide    lanes run along sequences. They are cut into tiles of tile_lanes (the last may be narrower); a state is
//           [tile][unit][lane].
//   narrow  lanes run along a head's units, for a few sequences; a state is [sequence][head][padded unit].
// Hidden states, and the weights that multiply them, are words of 32 bits: a float, or two bfloat16 of units 2k and
// 2k + 1.
// Outputs are in blocks of positions, one per lane, [word][lane]: in the wide layout a block is a tile at one step, in
// the narrow one the chunk's states are transposed into blocks.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "population.h"

namespace zo::cpu {

constexpr int64_t kAlignment = 64;  // of buffers, in bytes
constexpr int64_t kAlignedFloats = kAlignment / 4;

// Always inlined: the instruction sets' files must not share a function that one of them compiled.
#define ZO_PLAN_METHOD inline __attribute__((always_inline))

// The distinct tokens of some chunks: their input projections are one table, made once for all these chunks.
struct Span {
  int64_t first_chunk, last_chunk;
  const int64_t* tokens;  // of each row of the table, ascending
  int64_t num_rows;
};

// Where a layer's weights begin in their parameters.
struct Layer {
  int64_t index;
  Parameter input_weight, recurrent_weight, bias;
  int64_t first_input, first_recurrent, first_bias;
};

struct Plan {
  const PopulationArgs* args;
  const Layer* layers;    // [L]
  CellShape cell;
  int lanes, tile_lanes;  // floats of a vector; positions of a full tile or block
  int depth;              // elements of the hidden state in a word of 32 bits: one float, or two bfloat16
  bool wide;
  bool delivers;          // outputs are not the hidden states where `recurrence` leaves them, but made by `deliver`
  int64_t hidden_size;
  int64_t batch_lanes;    // sequences with the lanes that pad the last tile; narrow: B
  int64_t padded_dim;     // D rounded up to whole vectors
  int64_t head_words;     // words of a head's hidden state; [unit] of a layout is then [word]
  bool has_cell;          // members keep cell states: an LSTM's c, or a GRU's h as floats beside the words
  int64_t head_columns;   // columns of the table per head
  int64_t chunk_steps;    // time steps of a chunk
  int64_t num_steps;      // steps to run, up to the last that matters
  int64_t num_chunks;
  int64_t chunk_blocks;   // position blocks of a full chunk
  int64_t panel_units;    // units of a head whose recurrent weights are held at once; D: all, for the whole chunk
  int64_t panel_rows;     // rows of the output projection held at once
  int64_t table_units;    // units of a head whose part of the table is made at once, a multiple of lanes
  int64_t lift_units;     // the same for the layers after the first
  int64_t panel_heads;    // heads that take a step in turn, where their weights fit the first cache
  const int32_t* table_row;  // [num_steps, batch_lanes], in the table of the step's span
  const int32_t* own_row;    // [chunk_steps, batch_lanes]: 0, 1, 2, ..., the rows of a chunk in the tables of `lift`
  const int32_t* target;     // [num_steps, batch_lanes], -1: not scored

  ZO_PLAN_METHOD int64_t first_step(int64_t chunk) const { return chunk * chunk_steps; }
  ZO_PLAN_METHOD int64_t last_step(int64_t chunk) const {
    return (chunk + 1) * chunk_steps < num_steps ? (chunk + 1) * chunk_steps : num_steps;
  }
  // The rows of a layer's table that a step's sequences have.
  ZO_PLAN_METHOD const int32_t* table_rows(const Layer& layer, int64_t chunk, int64_t step) const {
    return layer.index == 0 ? table_row + step * batch_lanes : own_row + (step - first_step(chunk)) * batch_lanes;
  }
  ZO_PLAN_METHOD int64_t blocks(int64_t chunk) const {
    const int64_t steps = last_step(chunk) - first_step(chunk);
    return wide ? steps * tiles() : (steps * batch_lanes + tile_lanes - 1) / tile_lanes;
  }
  ZO_PLAN_METHOD int64_t table_stride() const { return args->num_heads * head_columns; }
  ZO_PLAN_METHOD int64_t hidden_words() const { return args->num_heads * head_words; }
  ZO_PLAN_METHOD int64_t padded_words() const { return padded_dim / depth; }
  ZO_PLAN_METHOD int64_t slot_size() const {  // words of the hidden states of one step
    return batch_lanes * (wide ? hidden_words() : args->num_heads * padded_words());
  }
  // Where the hidden states before and after a step are. A chunk begins with the last slot of the one before, which it
  // overwrites last.
  ZO_PLAN_METHOD int64_t slot_before(int64_t step) const {
    return step > 0 && step % chunk_steps == 0 ? chunk_steps : step % chunk_steps;
  }
  ZO_PLAN_METHOD int64_t slot_after(int64_t step) const { return step % chunk_steps + 1; }
  ZO_PLAN_METHOD int64_t cell_size() const {  // floats of the cell states
    return batch_lanes * (wide ? hidden_size : args->num_heads * padded_dim);
  }
  ZO_PLAN_METHOD int64_t outputs_size() const { return chunk_blocks * tile_lanes * hidden_words(); }
  ZO_PLAN_METHOD int64_t tiles() const { return wide ? (batch_lanes + tile_lanes - 1) / tile_lanes : 1; }
  ZO_PLAN_METHOD int64_t padded(int64_t count) const { return (count + lanes - 1) / lanes * lanes; }
  // Lanes of a tile or block of which `left` positions remain: a full one, or fewer in whole vectors.
  ZO_PLAN_METHOD int width(int64_t left) const {
    return left < tile_lanes ? static_cast<int>(padded(left)) : tile_lanes;
  }
};

// Buffers of one running member, as one of its layers sees them. All pointers are aligned to whole vectors.
struct Member {
  int64_t index;     // in the population
  uint64_t seed;
  float eps;         // with the sign
  const Layer* layer;
  float* embedded;   // [block of rows][E][lane]: perturbed embeddings of the span's tokens
  float* table;      // [row][head][column]: bias + input projection
  float* hidden;     // words: [chunk_steps + 1] slots, of the time before the first step and of a chunk's steps
  float* cell;       // of one step, if the plan has it
  float* outputs;    // [block][hidden word][lane]; the wide layout's `hidden` from slot 1 on, unless the plan delivers
  float* inputs;     // outputs of the layer below
  float* lifted;     // the table of the layers after the first: [position of the chunk][head][column]
  float* maximum;    // running logsumexp of each position of the chunk: [block][tile_lanes], and its sum
  float* sum;
  float* at_target;  // logit of the target
  bool* leads;       // whether that is above all logits before it; for `correct` only, as the next
  int64_t* correct;  // [block]: of this chunk
  double* nats;      // [block]: of this chunk
};

// Buffers of one thread.
struct Scratch {
  float* input_panel;      // [input row][table_units][E]
  float* recurrent_panel;  // words, of panel_heads heads
  float* output_panel;     // [panel_rows][hidden words], then [panel_rows] biases
  float* unpacked;         // what becomes words, where they are not floats
  float* rows;             // [lanes][padded]: rows before they are transposed; biases [row][table_units]
  float* products;         // [panel_rows, or rows * table_units][tile_lanes]
  float* pre;              // [lanes][tile_lanes]
  float* norm;             // [2][H]: weight and bias of a layer norm
};

struct PopulationKernels {
  int lanes, tile_lanes, row_tile, depth;  // row_tile: rows of the output projection computed at once
  // Perturbed embeddings of blocks of tile_lanes table rows, then the table, in blocks of table_units units.
  void (*embed)(const Plan&, const Member&, const Scratch&, const Span&, int64_t first_block, int64_t last_block);
  void (*project)(const Plan&, const Member&, const Scratch&, const Span&, int64_t first_block, int64_t last_block);
  // All steps of a chunk for items [first, last): an item is a tile of a head (head * tiles + tile), or in the narrow
  // layout a head.
  void (*recurrence)(const Plan&, const Member&, const Scratch&, int64_t chunk, int64_t first, int64_t last);
  // The outputs of a layer for position blocks [first, last) of a chunk, if the plan delivers.
  void (*deliver)(const Plan&, const Member&, const Scratch&, int64_t chunk, int64_t first_block, int64_t last_block);
  // The table of a layer after the first for a chunk, in blocks [first, last) of lift_units units.
  void (*lift)(const Plan&, const Member&, const Scratch&, int64_t chunk, int64_t first_block, int64_t last_block);
  // Scores position blocks [first, last) of a chunk into member.nats and member.correct; with `logits` [B, V] instead writes the logits of
  // the chunk's last step.
  void (*output)(const Plan&, const Member&, const Scratch&, int64_t chunk, int64_t first_block, int64_t last_block,
                 float* logits);
};

}  // namespace zo::cpu
