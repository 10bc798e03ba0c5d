// Types shared by the kernels' interfaces: element types, distributions and the rows of a perturbation.
#pragma once

#include <cstdint>

#include "philox.h"

namespace zo {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

// static: files compiled for one instruction set must not share code with others.
static constexpr int64_t size_of(DType type) { return type == DType::kFloat64 ? 8 : type == DType::kFloat32 ? 4 : 2; }

// Distribution of a probe's elements: kStreamNormal, kStreamUniform, or kStreamRademacher. Of the latter an element is
// kept if all of its `sparsity` bits are 1.
struct Distribution {
  Stream stream;
  int sparsity;
};

// Elements of the flat parameter space in memory: those at `data` have the numbers offset, offset + 1, ...
struct Piece {
  void* data;
  int64_t numel;
  int64_t offset;
};

// Pieces of one data type, such as the parameters of a model. A kernel works on all of them in one call.
struct Pieces {
  const Piece* at;
  int64_t count;
  DType type;
};

// One row of a perturbation: alpha * p(seed).
struct Term {
  double alpha;
  uint64_t seed;
};

// What accumulate does to each element besides adding the sum; see accumulate_probes().
struct Update {
  bool has_undo = false;
  Term undo = {0.0, 0};
  double decay = 1.0;
  double grid = 0.0;  // 0: no grid; otherwise a power of two
  bool rounds_at_random = false;  // to a 16-bit type, by the bits of rounding_seed; wider types are rounded as ever
  uint64_t rounding_seed = 0;
};

}  // namespace zo
