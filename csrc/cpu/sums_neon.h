// Sums of table look-ups for accumulate.h by bytes. tbl looks up bytes in a register of 16, for 16 elements at once, so a
// table becomes four registers, of the first to the last bytes of its entries. Each is looked up and summed by itself,
// in 16 bits. At the end of a batch the four sums of an element are put together. For 32 elements of a group that takes
// 26 operations, where look-ups of 32 bits, with indices made of nibbles, would take 48.

constexpr int kBatchGroups = 48;  // 12 KB of nibbles: they stay in L1. (257 bytes at most fit 16 bits)

struct Nibbles {
  U32 column[4][4];  // [word][column]
};

// Adds the look-ups of a batch to the sums, which begin with the first batch. Their rows are [block][word][half: 4 h
// bits into each byte][column], and lanes are bytes of the word.
ZO_INLINE void sum_batch(const Nibbles* nibbles, const int32_t* tables, int num_groups, bool first_batch, I32* sums) {
  uint8x16_t bytes[kBatchGroups][4];  // [byte of the entries]
  for (int g = 0; g < num_groups; ++g) {
    const uint8x16x4_t table = vld4q_u8(reinterpret_cast<const uint8_t*>(tables + (g << kGroup)));
    for (int b = 0; b < 4; ++b) bytes[g][b] = table.val[b];
  }
  for (int k = 0; k < 4; ++k) {
    for (int r = 0; r < 4; ++r) {
      uint16x8_t sum[2][4][2] = {};  // [half of a byte][byte of the entries][blocks 0 and 1, or 2 and 3]
      for (int g = 0; g < num_groups; ++g) {
        const uint8x16_t column = reinterpret_cast<uint8x16_t>(nibbles[g].column[k][r]);
        const uint8x16_t index[2] = {vandq_u8(column, vdupq_n_u8(15)), vshrq_n_u8(column, 4)};
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h)
#pragma GCC unroll 4
          for (int b = 0; b < 4; ++b) {
            const uint8x16_t found = vqtbl1q_u8(bytes[g][b], index[h]);
            sum[h][b][0] = vaddw_u8(sum[h][b][0], vget_low_u8(found));
            sum[h][b][1] = vaddw_high_u8(sum[h][b][1], found);
          }
      }
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h)
#pragma GCC unroll 2
        for (int pair = 0; pair < 2; ++pair) {
          const uint16x8_t(*s)[2] = sum[h];
          const uint16x8_t bytes02[2] = {vzip1q_u16(s[0][pair], s[2][pair]), vzip2q_u16(s[0][pair], s[2][pair])};
          const uint16x8_t bytes13[2] = {vzip1q_u16(s[1][pair], s[3][pair]), vzip2q_u16(s[1][pair], s[3][pair])};
#pragma GCC unroll 2
          for (int i = 0; i < 2; ++i) {
            I32& total = sums[(((2 * pair + i) * 4 + k) * 2 + h) * 4 + r];
            const U32 batch = reinterpret_cast<U32>(bytes02[i]) + (reinterpret_cast<U32>(bytes13[i]) << 8);
            total = reinterpret_cast<I32>(first_batch ? batch : reinterpret_cast<U32>(total) + batch);
          }
        }
    }
  }
}

// The first element of the tile that row `row` of a square of sums has, once it is transposed.
ZO_INLINE int element_of(int square, int row) { return 32 * (square / 2) + 4 * (square % 2) + 8 * row; }
