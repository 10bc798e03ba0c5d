// accumulate_probes: x += sum_i coeffs[i] * p(seeds[i]), one read and one write of x for all seeds.
//
// The coefficients are integers q with sum |q| < 2^31, so the sum of an element is an int32 that does not depend on the
// order of summation. With bits b in {0, 1} it is 2 * sum(b q) - sum(q), modulo 2^32.
//
// Plan: a lane owns one Philox block and keeps 128 sums in registers over all seeds. Per seed it makes the block's four
// words and, per element, shifts the word and multiplies and adds: two instructions on two pipes. The sums are those of
// (word >> k) q, modulo 2^32. The sum of bit k is sum k minus twice sum k + 1, in which the bits above k cancel.
// Then the warp turns its sums from one block per lane to element order through shared memory, a word of every block at
// a time, and walks x with 16-byte accesses.
#include <cmath>

#include "../philox.h"
#include "elements.h"
#include "launch.h"
#include "pieces.h"
#include "runtime.h"
#include "update.h"

namespace zo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMinThreadBlocks = 3;  // on a multiprocessor: 168 registers a thread
// 32 sums, the word of the undone probe, and padding that keeps 16-byte accesses free of bank conflicts.
constexpr int kRowWords = 36;

struct AccumulateArgs {
  Target x;
  const Row* rows;
  int64_t num_rows;
  UpdateArgs update;  // its scale is 2^-shift
};

template <int count>
struct alignas(count < 4 ? 4 * count : 16) SomeSums {
  int32_t at[count];
};

__device__ inline void convert(int32_t sum, float& part) { part = __int2float_rn(sum); }
__device__ inline void convert(int32_t sum, double& part) { part = __int2double_rn(sum); }

// sum[k] += (word >> k) * q.
__device__ inline void add_shifted(uint32_t* sum, uint32_t word, uint32_t q) {
#pragma unroll
  for (int k = 0; k < 32; ++k) sum[k] += (word >> k) * q;
}

template <class Compute>
__device__ inline Compute updated(Compute v, int32_t sum, uint32_t undo_word, int bit, const Scalars<Compute>& s,
                                  const UpdateArgs& args) {
  Compute part;
  convert(sum, part);
  return updated(v, part, times_sign(s.undo, undo_word, bit), s, args);
}

// Rounds `count` updated elements to the type they are stored in; `index` is that of the first in its block, and a
// multiple of `count`. A call of Philox makes the random bits of eight elements, which a 16-byte access has.
template <DType type, bool at_random, int count, class Compute>
__device__ inline void put(const Compute (&v)[count], uint64_t seed, uint64_t block, int index,
                           typename Element<type>::Stored* to) {
  using E = Element<type>;
  if constexpr (at_random) {
    static_assert(count <= 8, "one call");
    const Philox4 made =
        philox_block(seed, block, kStreamStochasticRounding, static_cast<uint32_t>(index) / 8u);
#pragma unroll
    for (int e = 0; e < count; ++e) {
      const int piece = count == 8 ? e : index % 8;
      const uint32_t word = piece < 4 ? (piece < 2 ? made.word[0] : made.word[1])
                                      : (piece < 6 ? made.word[2] : made.word[3]);
      to[e] = E::put(E::round_at_random(v[e], piece % 2 == 0 ? word & 0xffffu : word >> 16));
    }
  } else {
#pragma unroll
    for (int e = 0; e < count; ++e) to[e] = E::put(v[e]);
  }
}

// Updates the elements whose sums are in `sums`: word k of each of the tile's 32 blocks.
template <DType type, bool at_random>
__device__ inline void update_words(const AccumulateArgs& args, const ListedPiece& piece,
                                    const int32_t (&sums)[32][kRowWords], int64_t first, int k, int lane) {
  using E = Element<type>;
  using Stored = typename E::Stored;
  using Compute = typename E::Compute;
  const Scalars<Compute> s(args.update);
  Stored* x = in_global_memory(static_cast<Stored*>(piece.data)) + first + 32 * k;  // of the tile's first block
  const uint64_t first_block = piece.first_block + static_cast<uint64_t>(first / kBlockSigns);
  if (!aligned(piece.data) || piece.numel - first < kTileElements) {
    for (int block = 0; block < 32; ++block) {
      const int at = 128 * block + lane;
      if (first + 32 * k + at >= piece.numel) return;
      const uint32_t undo_word = static_cast<uint32_t>(sums[block][32]);
      const Compute v[1] = {updated(E::get(x[at]), sums[block][lane], undo_word, lane, s, args.update)};
      put<type, at_random>(v, args.update.rounding_seed, first_block + static_cast<uint64_t>(block), 32 * k + lane,
                           x + at);
    }
    return;
  }
  constexpr int kWidth = 16 / static_cast<int>(sizeof(Stored));
  constexpr int kLanes = 32 / kWidth;  // that share a word
  constexpr int kBatch = at_random ? 2 : 4;  // accesses in flight: random bits take registers
  using Elements = Chunk<Stored, kWidth>;
  const int bit = lane % kLanes * kWidth;
  for (int start = lane / kLanes; start < 32; start += kBatch * kWidth) {
    Elements v[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) v[b].load(x + 128 * (start + b * kWidth) + bit);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int block = start + b * kWidth;
      const uint32_t undo_word = static_cast<uint32_t>(sums[block][32]);
      const SomeSums<kWidth> sum = *reinterpret_cast<const SomeSums<kWidth>*>(&sums[block][bit]);
      Compute moved[kWidth];
#pragma unroll
      for (int e = 0; e < kWidth; ++e)
        moved[e] = updated(E::get(v[b].at[e]), sum.at[e], undo_word, bit + e, s, args.update);
      put<type, at_random>(moved, args.update.rounding_seed, first_block + static_cast<uint64_t>(block), 32 * k + bit,
                           v[b].at);
      v[b].store(x + 128 * block + bit);
    }
  }
}

template <DType type, bool at_random>
__global__ void __launch_bounds__(32 * kWarps, kMinThreadBlocks) accumulate_kernel(const AccumulateArgs args) {
  __shared__ __align__(16) int32_t turned[kWarps][32][kRowWords];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t number = int64_t{blockIdx.x} * kWarps + warp;
  const ListedPiece piece = piece_at(args.x, find_piece(args.x, number));
  const int64_t tile = number - piece.first_tile;
  const int64_t first = tile * kTileElements;
  if (first >= piece.numel) return;  // the warp together
  const uint64_t block = piece.first_block + static_cast<uint64_t>(tile) * kTileBlocks + static_cast<uint64_t>(lane);

  uint32_t sum[128] = {};
  uint32_t total = 0;
#pragma unroll 1
  for (int64_t i = 0; i < args.num_rows; ++i) {
    const Row row = args.rows[i];
    const uint32_t q = static_cast<uint32_t>(row.quantised);
    const Philox4 made = philox_block(row.seed, block, kStreamRademacher);
    total += q;
#pragma unroll
    for (int k = 0; k < 4; ++k) add_shifted(sum + 32 * k, made.word[k], q);
  }

  const Philox4 undo = philox_block(args.update.undo_seed, block, kStreamRademacher);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    for (int bit = 0; bit < 32; ++bit) {
      const uint32_t of_bit = sum[32 * k + bit] - (bit == 31 ? 0u : 2u * sum[32 * k + bit + 1]);
      turned[warp][lane][bit] = static_cast<int32_t>(2u * of_bit - total);
    }
    turned[warp][lane][32] = static_cast<int32_t>(undo.word[k]);
    __syncwarp();
    update_words<type, at_random>(args, piece, turned[warp], first, k, lane);
    __syncwarp();
  }
}

void launch_accumulate(const Target& x, int64_t tiles, DType type, const Row* rows, int64_t num_rows, int shift,
                       const Update& update, Queue queue) {
  if (tiles == 0) return;
  AccumulateArgs args = {};
  args.x = x;
  args.rows = rows;
  args.num_rows = num_rows;
  args.update = make_update_args(update, std::ldexp(1.0, -shift));
  const dim3 grid(static_cast<unsigned>((tiles + kWarps - 1) / kWarps));
  with_dtype(type, [&](auto t) {
    auto* kernel = &accumulate_kernel<t.value, false>;
    if constexpr (size_of(t.value) == 2)
      if (update.rounds_at_random) kernel = &accumulate_kernel<t.value, true>;
    launch("accumulate_probes", kernel, grid, 32 * kWarps, 0, queue, args);
  });
}

}  // namespace

void accumulate_probes(void* x, DType type, int64_t numel, const Row* rows, int64_t num_rows, int shift, int64_t offset,
                       const Update& update, Queue queue) {
  const int64_t tiles = (numel + kTileElements - 1) / kTileElements;
  launch_accumulate(make_target(x, numel, offset), tiles, type, rows, num_rows, shift, update, queue);
}

void accumulate_probes(const PieceList& x, const Row* rows, int64_t num_rows, int shift, const Update& update,
                       Queue queue) {
  launch_accumulate(make_target(x), x.num_tiles, x.type, rows, num_rows, shift, update, queue);
}

}  // namespace zo::cuda
