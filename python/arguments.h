// Checks of arguments that would crash a kernel.
#pragma once

#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "philox.h"
#include "types.h"

namespace zo_python {

void bind_forwards(pybind11::module_& m);  // forwards.cpp
void bind_cuda(pybind11::module_& m);      // cuda.cpp

inline zo::DType to_dtype(int code) {
  if (code < 0 || code > 3) throw std::invalid_argument("dtype code " + std::to_string(code) + " is not in 0..3");
  return static_cast<zo::DType>(code);
}

inline zo::Distribution to_distribution(int stream, int sparsity) {
  if (stream < 0 || stream > static_cast<int>(zo::kStreamUniform))
    throw std::invalid_argument("no distribution has stream " + std::to_string(stream));
  if (sparsity < 0 || sparsity > 16) throw std::invalid_argument("sparsity is not in 0..16");
  return {static_cast<zo::Stream>(stream), sparsity};
}

inline void check_range(uintptr_t address, int64_t numel, int64_t offset) {
  if (numel < 0) throw std::invalid_argument("numel is negative");
  if (numel > 0 && address == 0) throw std::invalid_argument("null address");
  if (offset < 0 || offset % zo::kBlockSigns != 0)
    throw std::invalid_argument("offset " + std::to_string(offset) + " is not a multiple of 128 in [0, 2^63)");
  if (offset > std::numeric_limits<int64_t>::max() - numel)
    throw std::invalid_argument("offset + numel passes 2^63");
}

// A table of pieces is a bytes object: address, numel and offset of each, as 64-bit integers. It must outlive the result.
inline zo::Pieces to_pieces(const pybind11::bytes& table, int dtype) {
  static_assert(sizeof(zo::Piece) == 24, "a row is three 64-bit words");
  const char* data = PyBytes_AS_STRING(table.ptr());
  const int64_t size = PyBytes_GET_SIZE(table.ptr());
  if (size % 24 != 0 || reinterpret_cast<uintptr_t>(data) % alignof(zo::Piece) != 0)
    throw std::invalid_argument("this is not a table of pieces");
  const zo::Pieces pieces = {reinterpret_cast<const zo::Piece*>(data), size / 24, to_dtype(dtype)};
  for (int64_t i = 0; i < pieces.count; ++i)
    check_range(reinterpret_cast<uintptr_t>(pieces.at[i].data), pieces.at[i].numel, pieces.at[i].offset);
  return pieces;
}

inline void check_alike(const zo::Pieces& x, const zo::Pieces& out) {
  bool alike = x.count == out.count;
  for (int64_t i = 0; alike && i < x.count; ++i)
    alike = x.at[i].numel == out.at[i].numel && x.at[i].offset == out.at[i].offset;
  if (!alike) throw std::invalid_argument("the pieces of x and out differ in size or offset");
}

inline void check_seeds(uintptr_t seeds, int64_t count) {
  if (count < 0 || (count > 0 && seeds == 0)) throw std::invalid_argument("no seeds at this address");
}

// Tests the bits, because a comparison treats subnormals as zero if the calling thread flushes them.
inline bool is_zero(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return (bits & 0x7fffffffffffffffu) == 0;
}

inline zo::Update make_update(double undo_alpha, uint64_t undo_seed, double decay, double grid,
                              std::optional<uint64_t> rounding_seed) {
  int exponent;
  if (grid != 0.0 && (!std::isfinite(grid) || std::frexp(grid, &exponent) != 0.5))
    throw std::invalid_argument("grid is not a power of two");
  zo::Update update;
  update.has_undo = !is_zero(undo_alpha);
  update.undo = {undo_alpha, undo_seed};
  update.decay = decay;
  update.grid = grid;
  update.rounds_at_random = rounding_seed.has_value();
  update.rounding_seed = rounding_seed.value_or(0);
  return update;
}

}  // namespace zo_python
