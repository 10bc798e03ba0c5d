// probe_from, apply_probe_from and accumulate_probes_from: the ops for probes of any distribution, a tile at a time.
//
// Elements are float32 numbers, so sums over seeds are not exact. They are taken in float64 in the order of the seeds,
// so that they do not depend on tiles, vectors or threads.

ZO_INLINE void numbers_at(const float* z, int i, F32& v) { v = load<F32>(z + i); }
ZO_INLINE void numbers_at(const float* z, int i, F64& v) { v = __builtin_convertvector(load<F32Half>(z + i), F64); }

ZO_INLINE void numbers_at(const double* sums, int i, F64& v) { v = load<F64>(sums + i); }
ZO_INLINE void numbers_at(const double* sums, int i, F32& v) {
  const F32Half halves[2] = {__builtin_convertvector(load<F64>(sums + i), F32Half),
                             __builtin_convertvector(load<F64>(sums + i + kLanes / 2), F32Half)};
  __builtin_memcpy(&v, halves, sizeof(v));
}

template <DType out>
void probe_from_tiles(const ProbeFromArgs& args, int64_t first_tile, int64_t last_tile) {
  using Vec = typename Element<out>::Vec;
  DrawScratch scratch;
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    const int64_t first = tile * kTileElements;
    const int count = elements_in_tile(args.numel, first);
    const uint64_t block = args.first_block + static_cast<uint64_t>(tile) * kLanes;
    draw_tile(args.distribution, args.term.seed, block, count, scratch);
    for_each_vector<out, out>(args.out, args.out, first, count, [&](Vec, int i) {
      Vec z;
      numbers_at(scratch.z, i, z);
      return z;
    });
  }
}

template <DType in, DType out>
void apply_from_tiles(const ProbeFromArgs& args, int64_t first_tile, int64_t last_tile) {
  using Vec = typename Element<in>::Vec;
  using Scalar = decltype(Vec{}[0] + 0);
  DrawScratch scratch;
  const Vec alpha = splat<Vec>(static_cast<Scalar>(args.term.alpha));
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    const int64_t first = tile * kTileElements;
    const int count = elements_in_tile(args.numel, first);
    const uint64_t block = args.first_block + static_cast<uint64_t>(tile) * kLanes;
    draw_tile(args.distribution, args.term.seed, block, count, scratch);
    for_each_vector<in, out>(args.x, args.out, first, count, [&](Vec v, int i) {
      Vec z;
      numbers_at(scratch.z, i, z);
      return v + alpha * z;
    });
  }
}

void probe_from_kernel(const ProbeFromArgs& args, int64_t first_tile, int64_t last_tile) {
  with_dtype(args.out_type, [&](auto out) {
    constexpr DType out_type = decltype(out)::value;
    if (!args.x) return probe_from_tiles<out_type>(args, first_tile, last_tile);
    with_dtype(args.x_type, [&](auto in) {
      apply_from_tiles<decltype(in)::value, out_type>(args, first_tile, last_tile);
    });
  });
}

template <DType type>
void update_from_sums(const AccumulateFromArgs& args, int64_t first, int count, const double* sums,
                      const float* undone, const RandomBits& random) {
  using Vec = typename Element<type>::Vec;
  using Scalar = decltype(Vec{}[0] + 0);
  const bool has_undo = args.update.has_undo, has_grid = args.update.grid != 0.0;
  const Vec scale = splat<Vec>(static_cast<Scalar>(args.scale));
  const Vec undo = splat<Vec>(static_cast<Scalar>(args.update.undo.alpha));
  const Vec decay = splat<Vec>(static_cast<Scalar>(args.update.decay));
  const Vec grid = splat<Vec>(static_cast<Scalar>(args.update.grid));
  const Vec per_grid = splat<Vec>(static_cast<Scalar>(has_grid ? 1.0 / args.update.grid : 0.0));
  for_each_vector<type, type>(args.x, args.x, first, count, [&](Vec v, int i) {
    Vec z, sum;
    if (has_undo) {
      numbers_at(undone, i, z);
      v += undo * z;
    }
    numbers_at(sums, i, sum);
    v *= decay;
    v += sum * scale;
    if (has_grid) v = round_even(v * per_grid) * grid;
    if constexpr (is_16_bit<type>)
      if (args.update.rounds_at_random) v = round_at_random<type>(v, random.at + i);
    return v;
  });
}

void accumulate_from_kernel(const AccumulateFromArgs& args, int64_t first_tile, int64_t last_tile) {
  DrawScratch scratch;
  RandomBits random;
  alignas(64) double sums[kTileElements];
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    const uint64_t block = args.first_block + static_cast<uint64_t>(tile) * kLanes;
    const int64_t first = tile * kTileElements;
    const int count = elements_in_tile(args.numel, first);
    __builtin_memset(sums, 0, sizeof(sums));
    for (int64_t seed = 0; seed < args.num_seeds; ++seed) {
      draw_tile(args.distribution, args.seeds[seed], block, count, scratch);
      const F64 coeff = splat<F64>(args.coeffs[seed]);
      for (int i = 0; i < count; i += kLanes / 2) {
        F64 z;
        numbers_at(scratch.z, i, z);
        store(sums + i, load<F64>(sums + i) + coeff * z);
      }
    }
    if (args.update.has_undo) draw_tile(args.distribution, args.update.undo.seed, block, count, scratch);
    if (args.update.rounds_at_random) generate_random_bits(args.update.rounding_seed, block, random);
    with_dtype(args.type, [&](auto type) {
      update_from_sums<decltype(type)::value>(args, first, count, sums, scratch.z, random);
    });
  }
}
