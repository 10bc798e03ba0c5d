// accumulate_probes: x += sum_i coeffs[i] * p(seeds[i]), one read and one write of x for all seeds.
//
// The coefficients are integers q with sum |q| < 2^31, so the sum of an element is an int32 that does not depend on the
// order of summation. For a group of kGroup seeds, the sums of their +-q for all combinations of signs form a table of
// 2^kGroup entries, which fits registers. So one look-up replaces kGroup additions.
//
// Plan, per tile of kLanes blocks and batch of seeds:
//   1. generate the words of each group's seeds and transpose their bits, so that the kGroup signs of one element lie
//      side by side in a nibble: column r of word k holds bits r, 4+r, 8+r, ... of word k of all the group's seeds;
//   2. per word and column, keep sums in registers and walk the groups: look up, add (sums.h, sums_neon.h).
// After all batches, one pass over the tile of x, transposing the sums to element order.

struct alignas(64) AccumulateScratch {
  Nibbles nibbles[kBatchGroups];
  I32 sums[128];
  SignBits undo_bits;
  RandomBits random;
};

// Bit b of nibble m of column[r] = bit 4m + r of word[b].
ZO_INLINE void transpose_bits(const U32 (&word)[4], U32 (&column)[4]) {
  const U32 pairs = splat<U32>(0x33333333u), singles = splat<U32>(0x55555555u);
  const U32 a0 = bit_select(pairs, word[0], word[2] << 2), a2 = bit_select(pairs, word[0] >> 2, word[2]);
  const U32 a1 = bit_select(pairs, word[1], word[3] << 2), a3 = bit_select(pairs, word[1] >> 2, word[3]);
  column[0] = bit_select(singles, a0, a1 << 1);
  column[1] = bit_select(singles, a0 >> 1, a1);
  column[2] = bit_select(singles, a2, a3 << 1);
  column[3] = bit_select(singles, a2 >> 1, a3);
}

ZO_INLINE void generate_group(const TileCounters& counters, const ProbeKey* keys, Nibbles& nibbles) {
  U32 words[4][4];  // [seed][word]
  generate_words<2>(counters, keys, words);
  generate_words<kGroup - 2>(counters, keys + 2, words + 2);
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const U32 word[4] = {words[0][k], words[1][k], words[2][k], kGroup == 4 ? words[kGroup - 1][k] : U32{}};
    transpose_bits(word, nibbles.column[k]);
  }
}

ZO_INLINE void part_of(I32 sums, int /*first: always 0*/, F32& part) { part = __builtin_convertvector(sums, F32); }
ZO_INLINE void part_of(I32 sums, int first, F64& part) {
  I32Half half;
  __builtin_memcpy(&half, reinterpret_cast<const int32_t*>(&sums) + first, sizeof(half));
  part = __builtin_convertvector(half, F64);
}

// Updates a whole tile, by squares of kLanes rows of sums that are transposed to element order.
template <DType type>
void update_tile(const AccumulateArgs& args, const AccumulateScratch& scratch, typename Element<type>::Stored* x) {
  using Vec = typename Element<type>::Vec;
  using Scalar = decltype(Vec{}[0] + 0);
  const bool has_undo = args.update.has_undo, has_grid = args.update.grid != 0.0;
  const Vec scale = splat<Vec>(static_cast<Scalar>(args.scale));
  const Vec undo = splat<Vec>(static_cast<Scalar>(args.update.undo.alpha));
  const Vec decay = splat<Vec>(static_cast<Scalar>(args.update.decay));
  const Vec grid = splat<Vec>(static_cast<Scalar>(args.update.grid));
  const Vec per_grid = splat<Vec>(static_cast<Scalar>(has_grid ? 1.0 / args.update.grid : 0.0));
  for (int square = 0; square < 128 / kLanes; ++square) {
    I32 rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = scratch.sums[square * kLanes + i];
    transpose(rows);
    for (int row = 0; row < kLanes; ++row) {
      for (int first = 0; first < kLanes; first += lanes_of<Vec>()) {
        const int element = element_of(square, row) + first;
        Vec sum, v = Element<type>::get(x + element);
        part_of(rows[row], first, sum);
        if (has_undo) v += times_sign(undo, scratch.undo_bits, element);
        v *= decay;
        v += sum * scale;
        if (has_grid) v = round_even(v * per_grid) * grid;
        if constexpr (is_16_bit<type>)
          if (args.update.rounds_at_random) v = round_at_random<type>(v, scratch.random.at + element);
        Element<type>::put(x + element, v);
      }
    }
  }
}

template <DType type>
ZO_INLINE void update_elements(const AccumulateArgs& args, const AccumulateScratch& scratch, int64_t first) {
  using Stored = typename Element<type>::Stored;
  Stored* x = static_cast<Stored*>(args.x) + first;
  const int count = elements_in_tile(args.numel, first);
  if (count == kTileElements) return update_tile<type>(args, scratch, x);
  Stored padded[kTileElements] = {};
  __builtin_memcpy(padded, x, sizeof(Stored) * static_cast<unsigned>(count));
  update_tile<type>(args, scratch, padded);
  __builtin_memcpy(x, padded, sizeof(Stored) * static_cast<unsigned>(count));
}

// While the signs of a tile are made, x is not touched for microseconds, too long for the hardware's prefetcher. So
// each group of seeds prefetches its share of the tile's lines.
struct Prefetcher {
  const char* x;
  int64_t tile_bytes;
  int64_t share;

  ZO_INLINE explicit Prefetcher(const AccumulateArgs& args) : x(static_cast<const char*>(args.x)) {
    tile_bytes = kTileElements * size_of(args.type);
    share = (tile_bytes / args.num_groups / 64 + 1) * 64;
  }

  // In the last tile this may prefetch lines beyond the end of x, which is harmless.
  ZO_INLINE void fetch(int64_t tile, int64_t group) const {
    const char* p = x + tile * tile_bytes;
    for (int64_t i = group * share; i < (group + 1) * share && i < tile_bytes; i += 64) __builtin_prefetch(p + i, 0, 3);
  }
};

void accumulate_kernel(const AccumulateArgs& args, int64_t first_tile, int64_t last_tile) {
  AccumulateScratch scratch;
  const Prefetcher prefetcher(args);
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    const uint64_t block = args.first_block + static_cast<uint64_t>(tile) * kLanes;
    const TileCounters counters = tile_counters(block, word_order);
    for (int64_t batch = 0; batch < args.num_groups; batch += kBatchGroups) {
      const int64_t left = args.num_groups - batch;
      const int in_batch = left < kBatchGroups ? static_cast<int>(left) : kBatchGroups;
      for (int g = 0; g < in_batch; ++g) {
        prefetcher.fetch(tile, batch + g);
        generate_group(counters, args.keys + (batch + g) * kGroup, scratch.nibbles[g]);
      }
      sum_batch(scratch.nibbles, args.tables + (batch << kGroup), in_batch, batch == 0, scratch.sums);
    }
    if (args.update.has_undo) generate_bits(tile_counters(block, bit_order), args.undo_key, scratch.undo_bits.bytes);
    if (args.update.rounds_at_random) generate_random_bits(args.update.rounding_seed, block, scratch.random);
    with_dtype(args.type, [&](auto t) { update_elements<decltype(t)::value>(args, scratch, tile * kTileElements); });
  }
}

uint64_t fold_kernel(const FoldArgs& args, int64_t first_tile, int64_t last_tile) {
  uint64_t folded = 0;
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    const TileCounters counters = tile_counters(args.first_block + static_cast<uint64_t>(tile) * kLanes, word_order);
    const int64_t left = (args.numel - tile * kTileElements + 127) / 128;  // blocks
    U32 sum = {}, word[2][4];
    int64_t seed = 0;
    for (; seed + 2 <= args.num_seeds; seed += 2) {
      generate_words<2>(counters, args.keys + seed, word);
      for (int k = 0; k < 4; ++k) sum ^= word[0][k] ^ word[1][k];
    }
    for (; seed < args.num_seeds; ++seed) {
      generate_words<1>(counters, args.keys + seed, word);
      sum ^= word[0][0] ^ word[0][1] ^ word[0][2] ^ word[0][3];
    }
    const uint64_t tile_block = args.first_block + static_cast<uint64_t>(tile) * kLanes;
    for (int lane = 0; lane < kLanes && lane < left; ++lane)
      folded ^= uint64_t{sum[lane]} << (32 * ((tile_block + static_cast<uint64_t>(lane)) % 2));
  }
  return folded;
}
