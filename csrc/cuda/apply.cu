// probe, apply_probe, swap_probe and apply_probes: one read and one write of each element, signs made on the way.
//
// Plan: a warp owns a tile of 32 Philox blocks, 4096 elements. Each lane makes the 128 signs of one block and puts
// their four words into shared memory. Then the warp walks the tile with adjacent 16-byte accesses, and each lane picks
// the word with the signs of its elements. An element costs a shift, a mask, an XOR and an addition, so the kernel is
// bound by memory. Loads are issued in batches ahead of the stores, which the compiler can't do where out is x.
#include "../philox.h"
#include "elements.h"
#include "launch.h"
#include "pieces.h"
#include "runtime.h"

namespace zo::cuda {
namespace {

constexpr int kWarps = 4;  // of a thread block; they share nothing
constexpr int kTileWords = kTileElements / 32;

struct ApplyArgs {
  Target x;
  void* out;                    // where x is one piece
  const ListedPiece* out_list;  // where it is a list
  bool aligned;                 // of apply_probes: x and all members of out, to 16 bytes
  double alpha[2];
  uint64_t seed[2];
  const double* alpha_at;  // of apply_probes
  const uint64_t* seeds_at;
};

// Makes the signs of the tile's block number `lane`.
__device__ inline void make_signs(uint32_t (&words)[kTileWords], int lane, uint64_t tile_block, uint64_t seed) {
  const Philox4 made = philox_block(seed, tile_block + static_cast<uint64_t>(lane), kStreamRademacher);
  for (int k = 0; k < 4; ++k) words[4 * lane + k] = made.word[k];
}

// Elements of the tile that begins at element `first` of a piece.
__device__ inline int elements_left(int64_t numel, int64_t first) {
  return static_cast<int>(numel - first < kTileElements ? numel - first : kTileElements);
}

// Reads the `count` elements of a tile, hands each to `move(v, word, bit, moved)`, and writes what that makes for each
// output.
template <DType in, DType out, bool reads, int num_outputs, class Move>
__device__ inline void walk_tile(const void* x, void* const (&outputs)[num_outputs], int64_t first, int count,
                                 bool is_aligned, int lane, Move move) {
  using In = Element<in>;
  using Out = Element<out>;
  using Stored = typename In::Stored;
  using Result = typename Out::Stored;
  using Compute = typename In::Compute;
  constexpr int kWidth = 16 / static_cast<int>(sizeof(Stored) < sizeof(Result) ? sizeof(Stored) : sizeof(Result));
  constexpr int kBatch = kWidth * sizeof(Stored) >= 64 ? 1 : 64 / (kWidth * static_cast<int>(sizeof(Stored)));
  using From = Chunk<Stored, kWidth>;
  using To = Chunk<Result, kWidth>;
  const Stored* source = static_cast<const Stored*>(x) + first;
  Result* target[num_outputs];
  for (int k = 0; k < num_outputs; ++k) target[k] = static_cast<Result*>(outputs[k]) + first;
  if (is_aligned && count == kTileElements) {
    for (int start = lane * kWidth; start < kTileElements; start += kBatch * 32 * kWidth) {
      From from[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (reads) from[b].load(source + start + b * 32 * kWidth);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int i = start + b * 32 * kWidth;
        To to[num_outputs];
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          Compute moved[num_outputs];
          move(reads ? In::get(from[b].at[e]) : Compute{0}, i / 32, i % 32 + e, moved);
          for (int k = 0; k < num_outputs; ++k) to[k].at[e] = Out::put(moved[k]);
        }
        for (int k = 0; k < num_outputs; ++k) to[k].store(target[k] + i);
      }
    }
    return;
  }
  for (int i = lane; i < count; i += 32) {
    Compute moved[num_outputs];
    move(reads ? In::get(source[i]) : Compute{0}, i / 32, i % 32, moved);
    for (int k = 0; k < num_outputs; ++k) target[k][i] = Out::put(moved[k]);
  }
}

// out = cast(x + alpha[0] * p(seed[0]) ...), for num_terms terms.
template <DType in, DType out, bool reads, int num_terms>
__global__ void __launch_bounds__(32 * kWarps) apply_kernel(const ApplyArgs args) {
  __shared__ uint32_t signs[kWarps][num_terms][kTileWords];
  using Compute = typename Element<in>::Compute;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t number = int64_t{blockIdx.x} * kWarps + warp;
  const int found = find_piece(args.x, number);
  const ListedPiece x = piece_at(args.x, found);
  const int64_t tile = number - x.first_tile;
  if (tile * kTileElements >= x.numel) return;  // the warp together
  for (int term = 0; term < num_terms; ++term)
    make_signs(signs[warp][term], lane, x.first_block + static_cast<uint64_t>(tile) * kTileBlocks, args.seed[term]);
  __syncwarp();
  Compute alpha[num_terms];
  for (int term = 0; term < num_terms; ++term) alpha[term] = static_cast<Compute>(args.alpha[term]);
  const uint32_t(&words)[num_terms][kTileWords] = signs[warp];
  // Read only here: earlier, nvcc 13 spills a register for sm_80.
  void* const to = args.x.list == nullptr ? args.out : args.out_list[found].data;
  const int count = elements_left(x.numel, tile * kTileElements);
  const bool is_aligned = aligned(x.data) && aligned(to);
  walk_tile<in, out, reads, 1>(in_global_memory(x.data), {in_global_memory(to)}, tile * kTileElements, count,
                               is_aligned, lane, [&](Compute v, int word, int bit, Compute(&moved)[1]) {
                                 for (int term = 0; term < num_terms; ++term)
                                   v = add(v, times_sign(alpha[term], words[term][word], bit));
                                 moved[0] = v;
                               });
}

// Both signs of probe blockIdx.y.
template <DType in, DType out>
__global__ void __launch_bounds__(32 * kWarps) apply_both_kernel(const ApplyArgs args) {
  __shared__ uint32_t signs[kWarps][kTileWords];
  using Compute = typename Element<in>::Compute;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t tile = int64_t{blockIdx.x} * kWarps + warp;
  const ListedPiece& x = args.x.one;
  if (tile * kTileElements >= x.numel) return;
  const uint64_t tile_block = x.first_block + static_cast<uint64_t>(tile) * kTileBlocks;
  make_signs(signs[warp], lane, tile_block, args.seeds_at[blockIdx.y]);
  __syncwarp();
  const Compute alpha = static_cast<Compute>(*args.alpha_at);
  const uint32_t(&words)[kTileWords] = signs[warp];
  using Result = typename Element<out>::Stored;
  Result* member = static_cast<Result*>(args.out) + int64_t{blockIdx.y} * 2 * x.numel;
  walk_tile<in, out, true, 2>(x.data, {member, member + x.numel}, tile * kTileElements,
                              elements_left(x.numel, tile * kTileElements), args.aligned, lane,
                              [&](Compute v, int word, int bit, Compute(&moved)[2]) {
                                const Compute step = times_sign(alpha, words[word], bit);
                                moved[0] = add(v, step);
                                moved[1] = add(v, -step);
                              });
}

dim3 grid_of(int64_t tiles, int64_t members = 1) {
  return dim3(static_cast<unsigned>((tiles + kWarps - 1) / kWarps), static_cast<unsigned>(members));
}

int64_t tiles_of(int64_t numel) { return (numel + kTileElements - 1) / kTileElements; }

ApplyArgs make_args(const void* x, void* out, int64_t numel, int64_t offset) {
  ApplyArgs args = {};
  args.x = make_target(x, numel, offset);
  args.out = out;
  return args;
}

ApplyArgs make_args(const PieceList& x, const PieceList& out) {
  ApplyArgs args = {};
  args.x = make_target(x);
  args.out_list = out.at;
  return args;
}

void launch_apply(ApplyArgs args, int64_t tiles, DType x_type, DType out_type, Term term, Queue queue) {
  if (tiles == 0) return;
  args.alpha[0] = term.alpha;
  args.seed[0] = term.seed;
  with_dtype(x_type, [&](auto in) {
    with_dtype(out_type, [&](auto type) {
      launch("apply_probe", &apply_kernel<in.value, type.value, true, 1>, grid_of(tiles), 32 * kWarps, 0, queue, args);
    });
  });
}

void launch_swap(ApplyArgs args, int64_t tiles, DType type, Term from, Term to, Queue queue) {
  if (tiles == 0) return;
  args.alpha[0] = from.alpha, args.alpha[1] = to.alpha;
  args.seed[0] = from.seed, args.seed[1] = to.seed;
  with_dtype(type, [&](auto in) {
    launch("swap_probe", &apply_kernel<in.value, in.value, true, 2>, grid_of(tiles), 32 * kWarps, 0, queue, args);
  });
}

}  // namespace

void probe(void* out, DType out_type, int64_t numel, uint64_t seed, int64_t offset, Queue queue) {
  if (numel == 0) return;
  ApplyArgs args = make_args(out, out, numel, offset);
  args.alpha[0] = 1.0;
  args.seed[0] = seed;
  with_dtype(out_type, [&](auto type) {
    launch("probe", &apply_kernel<type.value, type.value, false, 1>, grid_of(tiles_of(numel)), 32 * kWarps, 0, queue,
           args);
  });
}

void apply_probe(const void* x, DType x_type, void* out, DType out_type, int64_t numel, Term term, int64_t offset,
                 Queue queue) {
  launch_apply(make_args(x, out, numel, offset), tiles_of(numel), x_type, out_type, term, queue);
}

void apply_probe(const PieceList& x, const PieceList& out, Term term, Queue queue) {
  launch_apply(make_args(x, out), x.num_tiles, x.type, out.type, term, queue);
}

void swap_probe(void* x, DType type, int64_t numel, Term from, Term to, int64_t offset, Queue queue) {
  launch_swap(make_args(x, x, numel, offset), tiles_of(numel), type, from, to, queue);
}

void swap_probe(const PieceList& x, Term from, Term to, Queue queue) {
  launch_swap(make_args(x, x), x.num_tiles, x.type, from, to, queue);
}

void apply_probes(const void* x, DType x_type, void* out, DType out_type, int64_t numel, const double* alpha,
                  const uint64_t* seeds, int64_t num_seeds, int64_t offset, Queue queue) {
  if (numel == 0) return;
  constexpr int64_t kMostMembers = 65535;  // what gridDim.y holds
  for (int64_t first = 0; first < num_seeds; first += kMostMembers) {
    const int64_t members = num_seeds - first < kMostMembers ? num_seeds - first : kMostMembers;
    char* part = static_cast<char*>(out) + first * 2 * numel * size_of(out_type);
    ApplyArgs args = make_args(x, part, numel, offset);
    args.aligned = aligned(x) && aligned(part, numel * size_of(out_type));
    args.alpha_at = alpha;
    args.seeds_at = seeds + first;
    with_dtype(x_type, [&](auto in) {
      with_dtype(out_type, [&](auto type) {
        launch("apply_probes", &apply_both_kernel<in.value, type.value>, grid_of(tiles_of(numel), members), 32 * kWarps,
               0, queue, args);
      });
    });
  }
}

}  // namespace zo::cuda
