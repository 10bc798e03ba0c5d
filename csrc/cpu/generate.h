// Vectorised Philox4x32-10 for signs and other bits of elements. A vector has a word of one block in each lane, and
// kParts vectors have one of all blocks of a tile (halves.h, simd_neon.h). A round of a part is two widening multiplies,
// what brings low and high words of products into lanes, and two three-way XORs.
//
// Blocks of one launch share the high half of their index (dispatch.cpp cuts ranges where it changes), the stream s and
// counter word 3, n, so with counter (b, B, s, n), key (k0, k1), r = M1*s and [x] for what is the same in all lanes:
//   round 1:  p0 = M0*b (shared by all seeds)   [r]           -> [hi(r)^B^k0],    [lo(r)], hi(p0)^[n^k1],    lo(p0)
//   round 2:  [q] = M0*[hi(r)^B^k0]             p1 = M1*c2    -> hi(p1)^[lo(r)^k0'], lo(p1), lo(p0)^[hi(q)^k1'], [lo(q)]
//   round 3:  p0 = M0*c0                        p1 = M1*c2    -> hi(p1)^c1^[k0''], lo(p1), hi(p0)^[lo(q)^k1''], lo(p0)
// Each bracketed term is one XOR constant, stored in ProbeKey.

// Block indices of one tile times M0, which all generators of a tile share.
struct TileCounters {
  Words low_product[kParts];
  Words high_product[kParts];
};

// lane_block(part, lane): which block of the tile a lane makes.
template <class LaneBlock>
ZO_INLINE TileCounters tile_counters(uint64_t first_block, LaneBlock lane_block) {
  TileCounters t;
  for (int part = 0; part < kParts; ++part) {
    Words block;
    for (int lane = 0; lane < kLanes / kParts; ++lane) block[lane] = static_cast<uint32_t>(lane_block(part, lane));
    block += static_cast<uint32_t>(first_block);
    const Product product = widening_mul(block, kPhiloxM0);
    t.low_product[part] = low_words(product);
    t.high_product[part] = high_words(product);
  }
  return t;
}

// The four output words of all parts of `count` probes. The code interleaves them, because one chain of ten dependent
// rounds leaves the ports idle, and the processor looks ahead over two chains at best.
template <int count>
ZO_INLINE void generate_parts(const TileCounters& tile, const ProbeKey* key, Words (&word)[kParts * count][4]) {
  constexpr int n = kParts * count;  // part i % kParts of probe i / kParts
  Product p0[n], p1[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i)
    p1[i] = widening_mul(tile.high_product[i % kParts] ^ splat_key(key[i / kParts].round1), kPhiloxM1);
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    word[i][0] = high_words(p1[i]) ^ splat_key(key[i / kParts].round2[0]);
    word[i][1] = low_words(p1[i]);
    word[i][2] = tile.low_product[i % kParts] ^ splat_key(key[i / kParts].round2[1]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    p0[i] = widening_mul(word[i][0], kPhiloxM0);
    p1[i] = widening_mul(word[i][2], kPhiloxM1);
    word[i][0] = xor3(high_words(p1[i]), word[i][1], splat_key(key[i / kParts].round3[0]));
    word[i][1] = low_words(p1[i]);
    word[i][2] = high_words(p0[i]) ^ splat_key(key[i / kParts].round3[1]);
    word[i][3] = low_words(p0[i]);
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
      word[i][0] = xor3(high_words(p1[i]), word[i][1], splat_key(key[i / kParts].rounds4to10[round][0]));
      word[i][1] = low_words(p1[i]);
      word[i][2] = xor3(high_words(p0[i]), word[i][3], splat_key(key[i / kParts].rounds4to10[round][1]));
      word[i][3] = low_words(p0[i]);
    }
  }
}

// The words of `count` probes: word[i][k] lane L = word k of block L of probe i.
template <int count>
ZO_INLINE void generate_words(const TileCounters& tile, const ProbeKey* key, U32 (*word)[4]) {
  Words part[kParts * count][4];
  generate_parts<count>(tile, key, part);
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i)
    for (int k = 0; k < 4; ++k) word[i][k] = join_parts(part + kParts * i, k);
}

// The tile's signs as a bit string: bit i (little-endian) is the sign of element i of the tile. Not inlined: ten rounds
// in each kernel of each pair of data types would be most of the code to compile, and a tile is worth a call.
__attribute__((noinline)) void generate_bits(const TileCounters& tile, const ProbeKey& key, uint8_t* bits) {
  Words word[kParts][4];
  generate_parts<1>(tile, &key, word);
  store_in_sequence(word, bits);
}

// What is the same in all calls of a block, one constant for each XOR as in generate_parts: rounds 1 to 4 then depend
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

// Words of calls first, first + 1, ... (counter word 3) of one block: word[kParts * i + part][k] has in lane L that of
// call first + i * kLanes + order(part, L).
template <int count, class Order>
ZO_INLINE void generate_call_parts(const CallKey& key, uint32_t first, Order order, Words (&word)[kParts * count][4]) {
  constexpr int n = kParts * count;
  Product p0[n], p1[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    Words call = {};
    for (int lane = 0; lane < kLanes / kParts; ++lane)
      call[lane] = first + static_cast<uint32_t>(i / kParts * kLanes + order(i % kParts, lane));
    p1[i] = widening_mul(call ^ splat_key(key.round1), kPhiloxM1);
    p0[i] = widening_mul(high_words(p1[i]) ^ splat_key(key.round2), kPhiloxM0);
    word[i][0] = low_words(p1[i]) ^ splat_key(key.round3[0]);
    word[i][2] = high_words(p0[i]) ^ splat_key(key.round3[1]);
    word[i][3] = low_words(p0[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    p0[i] = widening_mul(word[i][0], kPhiloxM0);
    p1[i] = widening_mul(word[i][2], kPhiloxM1);
    word[i][0] = high_words(p1[i]) ^ splat_key(key.round4[0]);
    word[i][1] = low_words(p1[i]);
    word[i][2] = xor3(high_words(p0[i]), word[i][3], splat_key(key.round4[1]));
    word[i][3] = low_words(p0[i]);
  }
#pragma GCC unroll 6
  for (int round = 0; round < 6; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      p0[i] = widening_mul(word[i][0], kPhiloxM0);
      p1[i] = widening_mul(word[i][2], kPhiloxM1);
      word[i][0] = xor3(high_words(p1[i]), word[i][1], splat_key(key.rounds5to10[round][0]));
      word[i][1] = low_words(p1[i]);
      word[i][2] = xor3(high_words(p0[i]), word[i][3], splat_key(key.rounds5to10[round][1]));
      word[i][3] = low_words(p0[i]);
    }
  }
}
