// The interface of the CUDA kernels, with raw device pointers, sizes and a stream, without torch or Python.
//
// As on the CPU (cpu/launch.h), every function works on `numel` consecutive elements. Element i is element j = offset +
// i of the flat parameter space. `offset` is a multiple of 128, and offset + numel at most 2^63. Results are those of
// the CPU kernels to the last bit. Calls only enqueue work. They throw std::runtime_error if the launch fails, or if
// this build or machine has no CUDA.
#pragma once

#include <cstdint>

#include "../types.h"

namespace zo::cuda {

// Elements of a tile, of which a warp has one. The tiles of a list are numbered through.
constexpr int64_t kListTileElements = 4096;

// A piece of a list, in device memory. first_block: offset / 128. first_tile: of all tiles of the list.
struct ListedPiece {
  void* data;
  int64_t numel;
  uint64_t first_block;
  int64_t first_tile;
};

// A list in device memory, of pieces of one data type; num_tiles is that of all pieces.
struct PieceList {
  const ListedPiece* at;
  int64_t count;
  int64_t num_tiles;
  DType type;
};

// The stream to enqueue work on: a cudaStream_t of the device with this number.
struct Queue {
  int device;
  void* stream;
};

// One seed of accumulate_probes in device memory, with its coefficient.
struct Row {
  uint64_t seed;
  int64_t quantised;  // an int32; widened so that a row is two words of an int64 tensor
};

// One seed of accumulate_probes_from in device memory, with its coefficient.
struct DrawnRow {
  uint64_t seed;
  double coeff;
};

// out[i] = p_j(seed)
void probe(void* out, DType out_type, int64_t numel, uint64_t seed, int64_t offset, Queue queue);

// out[i] = cast(x[i] + alpha * p_j(seed)); out may be x.
void apply_probe(const void* x, DType x_type, void* out, DType out_type, int64_t numel, Term term, int64_t offset,
                 Queue queue);

// x[i] = cast((x[i] + from.alpha * p_j(from.seed)) + to.alpha * p_j(to.seed))
void swap_probe(void* x, DType type, int64_t numel, Term from, Term to, int64_t offset, Queue queue);

// out[k][0][i] = cast(x[i] + *alpha * p_j(seeds[k])), out[k][1][i] = cast(x[i] - *alpha * p_j(seeds[k])). alpha and
// seeds [num_seeds] are in device memory and are read when the kernel runs, so a captured graph can be replayed with
// other values.
void apply_probes(const void* x, DType x_type, void* out, DType out_type, int64_t numel, const double* alpha,
                  const uint64_t* seeds, int64_t num_seeds, int64_t offset, Queue queue);

// As zo::cpu::accumulate_probes, with rows [num_rows] in device memory.
void accumulate_probes(void* x, DType type, int64_t numel, const Row* rows, int64_t num_rows, int shift, int64_t offset,
                       const Update& update, Queue queue);

// The same for all pieces of a list, in one launch. The pieces of out have the sizes and offsets of those of x.
void apply_probe(const PieceList& x, const PieceList& out, Term term, Queue queue);
void swap_probe(const PieceList& x, Term from, Term to, Queue queue);
void accumulate_probes(const PieceList& x, const Row* rows, int64_t num_rows, int shift, const Update& update,
                       Queue queue);

// The ops for probes of any distribution, as those of zo::cpu with these names.
void probe_from(Distribution distribution, void* out, DType out_type, int64_t numel, uint64_t seed, int64_t offset,
                Queue queue);
void apply_probe_from(Distribution distribution, const void* x, DType x_type, void* out, DType out_type, int64_t numel,
                      Term term, int64_t offset, Queue queue);
void accumulate_probes_from(Distribution distribution, void* x, DType type, int64_t numel, const DrawnRow* rows,
                            int64_t num_rows, double scale, int64_t offset, const Update& update, Queue queue);
void apply_probe_from(Distribution distribution, const PieceList& x, const PieceList& out, Term term, Queue queue);
void accumulate_probes_from(Distribution distribution, const PieceList& x, const DrawnRow* rows, int64_t num_rows,
                            double scale, const Update& update, Queue queue);

}  // namespace zo::cuda
