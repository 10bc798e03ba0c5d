// Sums of table look-ups for accumulate.h where a look-up of 32 bits is one operation: sums are [32 * word + bit], and a
// lane has those of a block. Per word and column, the sums of 8 bits stay in registers.

// 12 KB of nibbles with AVX-512: they stay in L1 with the sums, the keys and the tile of x.
constexpr int kBatchGroups = 12;

struct Nibbles {
  U32 column[4][4];  // [word][column]
};

// Adds the look-ups of a batch to the sums, which begin with the first batch.
ZO_INLINE void sum_batch(const Nibbles* nibbles, const int32_t* tables, int num_groups, bool first_batch, I32* sums) {
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    for (int r = 0; r < 4; r += kColumns) {
      I32 sum[kColumns][8];
      for (int c = 0; c < kColumns; ++c)
        for (int m = 0; m < 8; ++m)
          sum[c][m] = first_batch ? I32{} : sums[32 * k + 4 * m + r + c];
      for (int g = 0; g < num_groups; ++g) {
        const Table table = load_table(tables + (g << kGroup));
        for (int c = 0; c < kColumns; ++c) {
          const U32 column = nibbles[g].column[k][r + c];
#pragma GCC unroll 8
          for (int m = 0; m < 8; ++m) sum[c][m] += look_up(table, nibble_to_front(column, m));
        }
      }
      for (int c = 0; c < kColumns; ++c)
        for (int m = 0; m < 8; ++m) sums[32 * k + 4 * m + r + c] = sum[c][m];
    }
  }
}

// The first element of the tile that row `row` of a square of sums has, once it is transposed.
ZO_INLINE int element_of(int square, int row) { return 128 * row + square * kLanes; }
