// What a kernel works on: one piece given by value, or a list in device memory, whose tiles are numbered through.
#pragma once

#include "../philox.h"
#include "launch.h"

namespace zo::cuda {

constexpr int kTileElements = static_cast<int>(kListTileElements);  // a warp's: a Philox block for each lane
constexpr int kTileBlocks = kTileElements / static_cast<int>(kBlockSigns);

// `list` is null where there is `one` piece.
struct Target {
  ListedPiece one;
  const ListedPiece* list;
  int count;
};

inline Target make_target(const void* data, int64_t numel, int64_t offset) {
  return {{const_cast<void*>(data), numel, static_cast<uint64_t>(offset / kBlockSigns), 0}, nullptr, 0};
}

inline Target make_target(const PieceList& x) { return {{}, x.at, static_cast<int>(x.count)}; }

// The number of the piece with this tile: the last that begins there or before, since an empty piece has no tile. All
// lanes of a warp read the same few rows, which stay in the cache: a search costs less than a map of tiles to read.
__device__ inline int find_piece(const Target& x, int64_t tile) {
  int low = 0, high = x.list == nullptr ? 0 : x.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (x.list[middle].first_tile <= tile ? low : high) = middle;
  }
  return low;
}

__device__ inline ListedPiece piece_at(const Target& x, int k) { return x.list == nullptr ? x.one : x.list[k]; }

// Tells the compiler that an address read from a list is one of global memory: its loads and stores need not find out.
template <class T>
__device__ inline T* in_global_memory(T* at) {
#if defined(__CUDACC__)
  __builtin_assume(__isGlobal(at));
#endif
  return at;
}

}  // namespace zo::cuda
