// Words of Philox for instruction sets whose widening multiply reads the low halves of 64-bit lanes: a word is in the low
// half of a lane, and the high half is ignored. So a product is the next round's low word without masking, and one shift
// gives its high word. A vector has half the blocks of a tile.

constexpr int kParts = 2;  // vectors that have a word of each block of a tile

using Words = U64;
using Product = U64;

ZO_INLINE Words low_words(Product p) { return p; }
ZO_INLINE Words high_words(Product p) { return p >> 32; }

// Broadcasts to both halves of every 64-bit lane. The high halves are ignored, so no zero-extension is needed.
ZO_INLINE Words splat_key(uint32_t key) { return reinterpret_cast<U64>(splat<U32>(key)); }

// Which block of the tile a lane of a part makes, for join_parts: then lane L is block L.
ZO_INLINE int word_order(int part, int lane) { return 2 * lane + part; }

// The same for store_in_sequence: unpacking 64-bit pairs brings a part's blocks into sequence.
ZO_INLINE int bit_order(int part, int lane) {
  return part * (kLanes / 2) + (lane % 2 == 0 ? lane / 2 : kLanes / 4 + lane / 2);
}

// Word k of all blocks of a tile.
ZO_INLINE U32 join_parts(const Words (*part)[4], int k) { return interleave(part[0][k], part[1][k]); }

// The four words of each block behind each other, blocks in sequence: 16 kLanes bytes.
ZO_INLINE void store_in_sequence(const Words (*word)[4], uint8_t* bytes) {
  for (int part = 0; part < kParts; ++part) {
    const U32 first = interleave(word[part][0], word[part][1]);
    const U32 second = interleave(word[part][2], word[part][3]);
    store(bytes + part * (kTileElements / 16), unpack_low64(first, second));
    store(bytes + part * (kTileElements / 16) + sizeof(U32), unpack_high64(first, second));
  }
}
