// What accumulating does to an element besides summing: see Update in ../types.h.
#pragma once

#include "elements.h"

namespace zo::cuda {

struct UpdateArgs {
  double scale;
  bool has_undo, has_grid, rounds_at_random;
  double undo_alpha, decay, grid, per_grid;
  uint64_t undo_seed, rounding_seed;
};

inline UpdateArgs make_update_args(const Update& update, double scale) {
  UpdateArgs args = {};
  args.scale = scale;
  args.has_undo = update.has_undo;
  args.undo_alpha = update.undo.alpha;
  args.undo_seed = update.undo.seed;
  args.decay = update.decay;
  args.has_grid = update.grid != 0.0;
  args.grid = update.grid;
  args.per_grid = args.has_grid ? 1.0 / update.grid : 0.0;
  args.rounds_at_random = update.rounds_at_random;
  args.rounding_seed = update.rounding_seed;
  return args;
}

template <class Compute>
struct Scalars {
  Compute scale, undo, decay, grid, per_grid;

  __device__ explicit Scalars(const UpdateArgs& args)
      : scale(static_cast<Compute>(args.scale)),
        undo(static_cast<Compute>(args.undo_alpha)),
        decay(static_cast<Compute>(args.decay)),
        grid(static_cast<Compute>(args.grid)),
        per_grid(static_cast<Compute>(args.per_grid)) {}
};

__device__ inline float round_even(float v) { return rintf(v); }
__device__ inline double round_even(double v) { return rint(v); }

// `undone` is the term to undo, s.undo times the element of its probe.
template <class Compute>
__device__ inline Compute updated(Compute v, Compute sum, Compute undone, const Scalars<Compute>& s,
                                  const UpdateArgs& args) {
  if (args.has_undo) v = add(v, undone);
  v = multiply(v, s.decay);
  v = add(v, multiply(sum, s.scale));
  if (args.has_grid) v = multiply(round_even(multiply(v, s.per_grid)), s.grid);
  return v;
}

}  // namespace zo::cuda
