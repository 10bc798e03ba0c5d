// probe, apply_probe and swap_probe: one read and one write of each element, signs made in the same pass.
//
// Plan, per tile of kLanes Philox blocks: generate its signs as a bit string (256 bytes with AVX-512, in L1), then walk
// the elements with vectors, shifting each element's bit to where it flips the sign of alpha: x + alpha*p needs no
// multiply.

template <DType out>
void probe_tiles(const ProbeArgs& args, int64_t first_tile, int64_t last_tile) {
  using Vec = typename Element<out>::Vec;
  SignBits bits = {};
  const Vec one = splat<Vec>(1.0f);
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    generate_bits(tile_counters(args.first_block + static_cast<uint64_t>(tile) * kLanes, bit_order), args.key, bits.bytes);
    const int64_t first = tile * kTileElements;
    for_each_vector<out, out>(args.out, args.out, first, elements_in_tile(args.numel, first),
                              [&](Vec, int i) { return times_sign(one, bits, i); });
  }
}

template <DType in, DType out, int num_terms>
void apply_tiles(const ApplyArgs& args, int64_t first_tile, int64_t last_tile) {
  using Vec = typename Element<in>::Vec;
  using Scalar = decltype(Vec{}[0] + 0);
  SignBits bits[num_terms] = {};
  Vec alpha[num_terms];
  for (int term = 0; term < num_terms; ++term) alpha[term] = splat<Vec>(static_cast<Scalar>(args.alpha[term]));
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    const TileCounters counters = tile_counters(args.first_block + static_cast<uint64_t>(tile) * kLanes, bit_order);
    for (int term = 0; term < num_terms; ++term) generate_bits(counters, args.key[term], bits[term].bytes);
    const int64_t first = tile * kTileElements;
    for_each_vector<in, out>(args.x, args.out, first, elements_in_tile(args.numel, first), [&](Vec v, int i) {
      for (int term = 0; term < num_terms; ++term) v += times_sign(alpha[term], bits[term], i);
      return v;
    });
  }
}

void probe_kernel(const ProbeArgs& args, int64_t first_tile, int64_t last_tile) {
  with_dtype(args.out_type, [&](auto out) { probe_tiles<decltype(out)::value>(args, first_tile, last_tile); });
}

void apply_kernel(const ApplyArgs& args, int64_t first_tile, int64_t last_tile) {
  with_dtype(args.x_type, [&](auto in) {
    constexpr DType in_type = decltype(in)::value;
    if (args.num_terms == 2) return apply_tiles<in_type, in_type, 2>(args, first_tile, last_tile);
    with_dtype(args.out_type, [&](auto out) {
      apply_tiles<in_type, decltype(out)::value, 1>(args, first_tile, last_tile);
    });
  });
}
