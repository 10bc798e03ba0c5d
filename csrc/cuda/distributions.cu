// probe_from, apply_probe_from and accumulate_probes_from: the ops for probes of any distribution, drawn on the way.
//
// Plan: a thread block owns a tile, and each of its warps a few of the tile's Philox blocks, one after the other
// (draw.h). Drawing takes most of the instructions. Elements therefore move as they are drawn, 32 adjacent ones at a
// time, and their types are looked at when the kernel runs: a kernel for each distribution and compute type is enough.
//
// Elements are float32 numbers, so sums over seeds are not exact. They are taken in double in the order of the seeds.
#include <type_traits>

#include "draw.h"
#include "elements.h"
#include "launch.h"
#include "pieces.h"
#include "runtime.h"
#include "update.h"

namespace zo::cuda {
namespace {

constexpr int kWarps = 8;  // that share a tile
constexpr int kWarpBlocks = kTileBlocks / kWarps;

struct ApplyArgs {
  Target x;
  bool reads;                   // or the probe alone
  DType type, out_type;
  void* out;                    // where x is one piece
  const ListedPiece* out_list;  // where it is a list
  int sparsity;
  double alpha;
  uint64_t seed;
};

struct AccumulateArgs {
  Target x;
  DType type;
  int sparsity;
  const DrawnRow* rows;
  int64_t num_rows;
  UpdateArgs update;
};

// Where a warp is: at the Philox block `block`, whose first `count` elements are those of a piece from `first` on.
struct Place {
  int64_t first;
  uint64_t block;
  int count, lane;
};

// Calls f(piece, number of the piece, place) for each block of the warp, all lanes together.
template <class Function>
__device__ inline void for_each_block(const Target& x, Function f) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int found = find_piece(x, blockIdx.x);
  const ListedPiece piece = piece_at(x, found);
  const int64_t tile = int64_t{blockIdx.x} - piece.first_tile;
#pragma unroll 1
  for (int turn = 0; turn < kWarpBlocks; ++turn) {
    const int64_t number = tile * kTileBlocks + turn * kWarps + warp, first = number * kBlockSigns;
    if (first >= piece.numel) return;
    const int64_t left = piece.numel - first;
    const int count = static_cast<int>(left < kBlockSigns ? left : kBlockSigns);
    f(piece, found, Place{first, piece.first_block + static_cast<uint64_t>(number), count, lane});
  }
}

template <class Function>
__device__ inline void for_dtype(DType type, Function f) {
  switch (type) {
    case DType::kFloat32: return f(TypeTag<DType::kFloat32>{});
    case DType::kFloat64: return f(TypeTag<DType::kFloat64>{});
    case DType::kBFloat16: return f(TypeTag<DType::kBFloat16>{});
    case DType::kFloat16: return f(TypeTag<DType::kFloat16>{});
  }
}

// Reads a lane's elements of a block from a piece of a type that is computed in Compute.
template <class Compute>
__device__ inline void read(const void* x, DType type, const Place& place, Compute (&v)[kPerLane]) {
  for_dtype(type, [&](auto t) {
    using E = Element<decltype(t)::value>;
    if constexpr (std::is_same_v<typename E::Compute, Compute>) {
      const auto* from = in_global_memory(static_cast<const typename E::Stored*>(x)) + place.first + place.lane;
#pragma unroll
      for (int k = 0; k < kPerLane; ++k)
        if (place.lane + 32 * k < place.count) v[k] = E::get(from[32 * k]);
    }
  });
}

template <class Compute>
__device__ inline void write(void* out, DType type, const Place& place, const Compute (&v)[kPerLane]) {
  for_dtype(type, [&](auto t) {
    using E = Element<decltype(t)::value>;
    auto* to = in_global_memory(static_cast<typename E::Stored*>(out)) + place.first + place.lane;
#pragma unroll
    for (int k = 0; k < kPerLane; ++k)
      if (place.lane + 32 * k < place.count) to[32 * k] = E::put(v[k]);
  });
}

// out = cast(x + alpha * z), or z.
template <class Compute, Stream stream>
__global__ void __launch_bounds__(32 * kWarps) apply_from_kernel(const ApplyArgs args) {
  const Compute alpha = static_cast<Compute>(args.alpha);
  for_each_block(args.x, [&](const ListedPiece& piece, int found, const Place& place) {
    Compute v[kPerLane] = {};
    if (args.reads) read(piece.data, args.type, place, v);
    float z[kPerLane];
    draw<stream>(args.seed, place.block, args.sparsity, place.lane, z);
#pragma unroll
    for (int k = 0; k < kPerLane; ++k) {
      const Compute drawn = static_cast<Compute>(z[k]);
      v[k] = args.reads ? add(v[k], multiply(alpha, drawn)) : drawn;
    }
    write(args.x.list == nullptr ? args.out : args.out_list[found].data, args.out_type, place, v);
  });
}

template <class Compute, Stream stream>
__global__ void __launch_bounds__(32 * kWarps) accumulate_from_kernel(const AccumulateArgs args) {
  const Scalars<Compute> s(args.update);
  for_each_block(args.x, [&](const ListedPiece& piece, int, const Place& place) {
    double sum[kPerLane] = {};
    float z[kPerLane] = {};
#pragma unroll 1
    for (int64_t i = 0; i < args.num_rows; ++i) {
      const DrawnRow row = args.rows[i];
      draw<stream>(row.seed, place.block, args.sparsity, place.lane, z);
#pragma unroll
      for (int k = 0; k < kPerLane; ++k) sum[k] = add(sum[k], multiply(row.coeff, static_cast<double>(z[k])));
    }
    if (args.update.has_undo) draw<stream>(args.update.undo_seed, place.block, args.sparsity, place.lane, z);
    Compute v[kPerLane] = {};
    read(piece.data, args.type, place, v);
#pragma unroll
    for (int k = 0; k < kPerLane; ++k)
      v[k] = updated(v[k], static_cast<Compute>(sum[k]), multiply(s.undo, static_cast<Compute>(z[k])), s, args.update);
    if constexpr (std::is_same_v<Compute, float>) {
      if (args.update.rounds_at_random) {
        uint32_t random[kPerLane];
        draw_random_bits(args.update.rounding_seed, place.block, place.lane, random);
        for_dtype(args.type, [&](auto t) {
          if constexpr (sizeof(typename Element<decltype(t)::value>::Stored) == 2)
            for (int k = 0; k < kPerLane; ++k) v[k] = Element<decltype(t)::value>::round_at_random(v[k], random[k]);
        });
      }
    }
    write(piece.data, args.type, place, v);
  });
}

int64_t tiles_of(int64_t numel) { return (numel + kTileElements - 1) / kTileElements; }

template <Stream stream>
struct StreamTag {
  static constexpr Stream value = stream;
};

// Calls f with the compute type of `type`, as a value, and the stream of a distribution.
template <class Function>
void with_kernel_of(DType type, Distribution distribution, Function f) {
  const auto with_stream = [&](auto stream) { type == DType::kFloat64 ? f(double{}, stream) : f(float{}, stream); };
  switch (distribution.stream) {
    case kStreamNormal: return with_stream(StreamTag<kStreamNormal>{});
    case kStreamUniform: return with_stream(StreamTag<kStreamUniform>{});
    default: return with_stream(StreamTag<kStreamRademacher>{});
  }
}

void launch_apply(const char* what, ApplyArgs args, int64_t tiles, DType x_type, DType out_type,
                  Distribution distribution, Term term, Queue queue) {
  if (tiles == 0) return;
  args.type = x_type, args.out_type = out_type;
  args.sparsity = distribution.sparsity;
  args.alpha = term.alpha, args.seed = term.seed;
  with_kernel_of(x_type, distribution, [&](auto compute, auto stream) {
    launch(what, &apply_from_kernel<decltype(compute), stream.value>, dim3(static_cast<unsigned>(tiles)), 32 * kWarps,
           0, queue, args);
  });
}

void launch_accumulate(const Target& x, int64_t tiles, DType type, Distribution distribution, const DrawnRow* rows,
                       int64_t num_rows, double scale, const Update& update, Queue queue) {
  if (tiles == 0) return;
  const AccumulateArgs args = {x, type, distribution.sparsity, rows, num_rows, make_update_args(update, scale)};
  with_kernel_of(type, distribution, [&](auto compute, auto stream) {
    launch("accumulate_probes", &accumulate_from_kernel<decltype(compute), stream.value>,
           dim3(static_cast<unsigned>(tiles)), 32 * kWarps, 0, queue, args);
  });
}

}  // namespace

void probe_from(Distribution distribution, void* out, DType out_type, int64_t numel, uint64_t seed, int64_t offset,
                Queue queue) {
  ApplyArgs args = {};
  args.x = make_target(out, numel, offset);
  args.out = out;
  launch_apply("probe", args, tiles_of(numel), DType::kFloat32, out_type, distribution, {1.0, seed}, queue);
}

void apply_probe_from(Distribution distribution, const void* x, DType x_type, void* out, DType out_type, int64_t numel,
                      Term term, int64_t offset, Queue queue) {
  ApplyArgs args = {};
  args.x = make_target(x, numel, offset);
  args.out = out;
  args.reads = true;
  launch_apply("apply_probe", args, tiles_of(numel), x_type, out_type, distribution, term, queue);
}

void apply_probe_from(Distribution distribution, const PieceList& x, const PieceList& out, Term term, Queue queue) {
  ApplyArgs args = {};
  args.x = make_target(x);
  args.out_list = out.at;
  args.reads = true;
  launch_apply("apply_probe", args, x.num_tiles, x.type, out.type, distribution, term, queue);
}

void accumulate_probes_from(Distribution distribution, void* x, DType type, int64_t numel, const DrawnRow* rows,
                            int64_t num_rows, double scale, int64_t offset, const Update& update, Queue queue) {
  launch_accumulate(make_target(x, numel, offset), tiles_of(numel), type, distribution, rows, num_rows, scale, update,
                    queue);
}

void accumulate_probes_from(Distribution distribution, const PieceList& x, const DrawnRow* rows, int64_t num_rows,
                            double scale, const Update& update, Queue queue) {
  launch_accumulate(make_target(x), x.num_tiles, x.type, distribution, rows, num_rows, scale, update, queue);
}

}  // namespace zo::cuda
