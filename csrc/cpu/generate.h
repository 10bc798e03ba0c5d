// Vectorised Philox4x32-10 for Rademacher probes: one block per 32-bit lane.
//
// The four counter words live in 64-bit lanes, of which only the low halves count: a widening multiply reads low
// halves, so a product can be passed on as the next round's low word without masking, and its high word is one shift
// away. A round of half a tile is two multiplies, two shifts, two three-way XORs.
//
// Blocks of one launch share the high half of their index (dispatch.cpp cuts ranges where it changes) and the stream
// is 0, so with counter (b, B, 0, 0), key (k0, k1) and [x] for what is the same in all lanes:
//   round 1:  p0 = M0*b (shared by all seeds)   p1 = 0        -> [B^k0],          [0],     hi(p0)^[k1],      lo(p0)
//   round 2:  [q] = M0*[B^k0]                   p1 = M1*c2    -> hi(p1)^[k0'],    lo(p1),  lo(p0)^[hi(q)^k1'], [lo(q)]
//   round 3:  p0 = M0*c0                        p1 = M1*c2    -> hi(p1)^c1^[k0''], lo(p1), hi(p0)^[lo(q)^k1''], lo(p0)
// The bracketed terms are one XOR constant each: ProbeKey.

// Block indices (low halves) of one tile times M0: what a tile's generators share.
struct TileCounters {
  U64 low_product[2];   // two half-tiles
  U64 high_product[2];
};

// lane_block(half, lane): which block of the tile a 64-bit lane makes.
template <class LaneBlock>
ZO_INLINE TileCounters tile_counters(uint64_t first_block, LaneBlock lane_block) {
  TileCounters t;
  for (int half = 0; half < 2; ++half) {
    U64 block;
    for (int lane = 0; lane < kLanes / 2; ++lane) block[lane] = static_cast<uint64_t>(lane_block(half, lane));
    block += first_block;
    t.low_product[half] = widening_mul(block, kPhiloxM0);
    t.high_product[half] = t.low_product[half] >> 32;
  }
  return t;
}

struct Words {
  U64 word[4];  // low halves count
};

// In both halves of every 64-bit lane: a broadcasting load needs no zero-extension, and high halves don't count.
ZO_INLINE U64 splat_key(uint32_t key) { return reinterpret_cast<U64>(splat<U32>(key)); }

ZO_INLINE Words generate_half(const TileCounters& tile, int half, const ProbeKey& key) {
  U64 c0, c1, c2, c3, p0, p1;
  c2 = tile.high_product[half] ^ splat_key(key.round1);
  p1 = widening_mul(c2, kPhiloxM1);
  c0 = (p1 >> 32) ^ splat_key(key.round2[0]);
  c1 = p1;
  c2 = tile.low_product[half] ^ splat_key(key.round2[1]);
  p0 = widening_mul(c0, kPhiloxM0);
  p1 = widening_mul(c2, kPhiloxM1);
  c0 = xor3(p1 >> 32, c1, splat_key(key.round3[0]));
  c1 = p1;
  c2 = (p0 >> 32) ^ splat_key(key.round3[1]);
  c3 = p0;
#pragma GCC unroll 7
  for (int round = 0; round < 7; ++round) {
    p0 = widening_mul(c0, kPhiloxM0);
    p1 = widening_mul(c2, kPhiloxM1);
    c0 = xor3(p1 >> 32, c1, splat_key(key.rounds4to10[round][0]));
    c1 = p1;
    c2 = xor3(p0 >> 32, c3, splat_key(key.rounds4to10[round][1]));
    c3 = p0;
  }
  return {{c0, c1, c2, c3}};
}

// Lane order in which 32-bit lane L of an interleaved word belongs to block L.
ZO_INLINE int word_order(int half, int lane) { return 2 * lane + half; }

ZO_INLINE void generate_words(const TileCounters& tile, const ProbeKey& key, U32 (&word)[4]) {
  const Words even = generate_half(tile, 0, key);
  const Words odd = generate_half(tile, 1, key);
  for (int k = 0; k < 4; ++k) word[k] = interleave(even.word[k], odd.word[k]);
}

// Lane order in which unpacking 64-bit pairs brings a half-tile's blocks into sequence.
ZO_INLINE int bit_order(int half, int lane) {
  return half * (kLanes / 2) + (lane % 2 == 0 ? lane / 2 : kLanes / 4 + lane / 2);
}

// The tile's signs as a bit string: bit i (little-endian) is the sign of element i of the tile.
ZO_INLINE void generate_bits(const TileCounters& tile, const ProbeKey& key, uint8_t* bits) {
  for (int half = 0; half < 2; ++half) {
    const Words w = generate_half(tile, half, key);
    const U32 first = interleave(w.word[0], w.word[1]);
    const U32 second = interleave(w.word[2], w.word[3]);
    store(bits + half * (kTileElements / 16), unpack_low64(first, second));
    store(bits + half * (kTileElements / 16) + sizeof(U32), unpack_high64(first, second));
  }
}
