// Vectorised Philox4x32-10 for signs and other bits of elements: one block per 32-bit lane.
//
// The four counter words are in the low halves of 64-bit lanes; the high halves are ignored. A widening multiply reads
// low halves only, so a product is the next round's low word without masking, and one shift gives its high word. A
// round of half a tile is two multiplies, two shifts and two three-way XORs.
//
// Blocks of one launch share the high half of their index (dispatch.cpp cuts ranges where it changes), the stream s and
// counter word 3, n, so with counter (b, B, s, n), key (k0, k1), r = M1*s and [x] for what is the same in all lanes:
//   round 1:  p0 = M0*b (shared by all seeds)   [r]           -> [hi(r)^B^k0],    [lo(r)], hi(p0)^[n^k1],    lo(p0)
//   round 2:  [q] = M0*[hi(r)^B^k0]             p1 = M1*c2    -> hi(p1)^[lo(r)^k0'], lo(p1), lo(p0)^[hi(q)^k1'], [lo(q)]
//   round 3:  p0 = M0*c0                        p1 = M1*c2    -> hi(p1)^c1^[k0''], lo(p1), hi(p0)^[lo(q)^k1''], lo(p0)
// Each bracketed term is one XOR constant, stored in ProbeKey.

// Block indices (low halves) of one tile times M0, which all generators of a tile share.
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

// Broadcasts to both halves of every 64-bit lane. The high halves are ignored, so no zero-extension is needed.
ZO_INLINE U64 splat_key(uint32_t key) { return reinterpret_cast<U64>(splat<U32>(key)); }

// The four output words, in low halves, of both half-tiles of `count` probes. The code interleaves them, because one
// chain of ten dependent rounds leaves the ports idle, and the processor looks ahead over two chains at best.
template <int count>
ZO_INLINE void generate_halves(const TileCounters& tile, const ProbeKey* key, U64 (&word)[2 * count][4]) {
  constexpr int n = 2 * count;  // half-tile i % 2 of probe i / 2
  U64 p0[n], p1[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i)
    p1[i] = widening_mul(tile.high_product[i % 2] ^ splat_key(key[i / 2].round1), kPhiloxM1);
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    word[i][0] = (p1[i] >> 32) ^ splat_key(key[i / 2].round2[0]);
    word[i][1] = p1[i];
    word[i][2] = tile.low_product[i % 2] ^ splat_key(key[i / 2].round2[1]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    p0[i] = widening_mul(word[i][0], kPhiloxM0);
    p1[i] = widening_mul(word[i][2], kPhiloxM1);
    word[i][0] = xor3(p1[i] >> 32, word[i][1], splat_key(key[i / 2].round3[0]));
    word[i][1] = p1[i];
    word[i][2] = (p0[i] >> 32) ^ splat_key(key[i / 2].round3[1]);
    word[i][3] = p0[i];
  }
#pragma GCC unroll 7
  for (int round = 0; round < 7; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      p0[i] = widening_mul(word[i][0], kPhiloxM0);
      p1[i] = widening_mul(word[i][2], kPhiloxM1);
    }
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      word[i][0] = xor3(p1[i] >> 32, word[i][1], splat_key(key[i / 2].rounds4to10[round][0]));
      word[i][1] = p1[i];
      word[i][2] = xor3(p0[i] >> 32, word[i][3], splat_key(key[i / 2].rounds4to10[round][1]));
      word[i][3] = p0[i];
    }
  }
}

// Lane order in which 32-bit lane L of an interleaved word belongs to block L.
ZO_INLINE int word_order(int half, int lane) { return 2 * lane + half; }

// The words of `count` probes: word[i][k] lane L = word k of block L of probe i.
template <int count>
ZO_INLINE void generate_words(const TileCounters& tile, const ProbeKey* key, U32 (*word)[4]) {
  U64 half[2 * count][4];
  generate_halves<count>(tile, key, half);
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i)
    for (int k = 0; k < 4; ++k) word[i][k] = interleave(half[2 * i][k], half[2 * i + 1][k]);
}

// Lane order in which unpacking 64-bit pairs brings a half-tile's blocks into sequence.
ZO_INLINE int bit_order(int half, int lane) {
  return half * (kLanes / 2) + (lane % 2 == 0 ? lane / 2 : kLanes / 4 + lane / 2);
}

// The four words of each lane behind each other, lanes in sequence: 16 kLanes bytes.
ZO_INLINE void store_in_sequence(const U64 (&word)[2][4], uint8_t* bytes) {
  for (int half = 0; half < 2; ++half) {
    const U32 first = interleave(word[half][0], word[half][1]);
    const U32 second = interleave(word[half][2], word[half][3]);
    store(bytes + half * (kTileElements / 16), unpack_low64(first, second));
    store(bytes + half * (kTileElements / 16) + sizeof(U32), unpack_high64(first, second));
  }
}

// The tile's signs as a bit string: bit i (little-endian) is the sign of element i of the tile. Not inlined: ten rounds
// in each kernel of each pair of data types would be most of the code to compile, and a tile is worth a call.
__attribute__((noinline)) void generate_bits(const TileCounters& tile, const ProbeKey& key, uint8_t* bits) {
  U64 word[2][4];
  generate_halves<1>(tile, &key, word);
  store_in_sequence(word, bits);
}

// What is the same in all calls of a block, one constant for each XOR as in generate_halves: rounds 1 to 4 then depend
// on the call, n, in half of their words.
struct CallKey {
  uint32_t round1, round2, round3[2], round4[2], rounds5to10[6][2];

  ZO_INLINE CallKey(uint64_t seed, uint64_t block, uint32_t stream) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    const uint64_t p0 = (block & 0xffffffffu) * kPhiloxM0, p1 = uint64_t{stream} * kPhiloxM1;
    round1 = static_cast<uint32_t>(p0 >> 32) ^ k1;  // ^ n is c2; c3 is lo(p0), c1 is lo(p1)
    const uint32_t c0 = static_cast<uint32_t>(p1 >> 32) ^ static_cast<uint32_t>(block >> 32) ^ k0;
    k0 += kPhiloxW0, k1 += kPhiloxW1;
    round2 = static_cast<uint32_t>(p1) ^ k0;
    const uint64_t q = uint64_t{c0} * kPhiloxM0;
    const uint64_t r = uint64_t{static_cast<uint32_t>(q >> 32) ^ static_cast<uint32_t>(p0) ^ k1} * kPhiloxM1;
    k0 += kPhiloxW0, k1 += kPhiloxW1;
    round3[0] = static_cast<uint32_t>(r >> 32) ^ k0;
    round3[1] = static_cast<uint32_t>(q) ^ k1;
    k0 += kPhiloxW0, k1 += kPhiloxW1;
    round4[0] = static_cast<uint32_t>(r) ^ k0;
    round4[1] = k1;
    for (int round = 0; round < 6; ++round) {
      k0 += kPhiloxW0, k1 += kPhiloxW1;
      rounds5to10[round][0] = k0;
      rounds5to10[round][1] = k1;
    }
  }
};

// Words of calls first, first + 1, ... (counter word 3) of one block, in low halves: word[2 * i + half][k] has in lane L
// that of call first + i * kLanes + order(half, L).
template <int count, class Order>
ZO_INLINE void generate_call_halves(const CallKey& key, uint32_t first, Order order, U64 (&word)[2 * count][4]) {
  constexpr int n = 2 * count;
  U64 p0[n], p1[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    U64 call = {};
    for (int lane = 0; lane < kLanes / 2; ++lane)
      call[lane] = first + static_cast<uint32_t>(i / 2 * kLanes + order(i % 2, lane));
    p1[i] = widening_mul(call ^ splat_key(key.round1), kPhiloxM1);
    p0[i] = widening_mul((p1[i] >> 32) ^ splat_key(key.round2), kPhiloxM0);
    word[i][0] = p1[i] ^ splat_key(key.round3[0]);
    word[i][2] = (p0[i] >> 32) ^ splat_key(key.round3[1]);
    word[i][3] = p0[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    p0[i] = widening_mul(word[i][0], kPhiloxM0);
    p1[i] = widening_mul(word[i][2], kPhiloxM1);
    word[i][0] = (p1[i] >> 32) ^ splat_key(key.round4[0]);
    word[i][1] = p1[i];
    word[i][2] = xor3(p0[i] >> 32, word[i][3], splat_key(key.round4[1]));
    word[i][3] = p0[i];
  }
#pragma GCC unroll 6
  for (int round = 0; round < 6; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      p0[i] = widening_mul(word[i][0], kPhiloxM0);
      p1[i] = widening_mul(word[i][2], kPhiloxM1);
      word[i][0] = xor3(p1[i] >> 32, word[i][1], splat_key(key.rounds5to10[round][0]));
      word[i][1] = p1[i];
      word[i][2] = xor3(p0[i] >> 32, word[i][3], splat_key(key.rounds5to10[round][1]));
      word[i][3] = p0[i];
    }
  }
}
