// The product of a panel of perturbed weights with a block of columns, one per lane. Used by the token table and the
// output projection.

// The sum of a product of words that are floats (depth 1) or those of hidden states (kDepth).
template <int depth>
ZO_INLINE F32 add_product(F32 weight, F32 column, F32 sum) {
  if constexpr (depth == kDepth) return multiply_add(weight, column, sum);
  return fma(weight, column, sum);
}

// to[r][lane] = bias[r] + sum_k weights[r][k] * columns[k][lane], for `rows` x `vectors` sums held in registers. Without
// a bias, the sums go on from what is in `to`.
template <int depth, int rows, int vectors>
ZO_INLINE void multiply_tile(const float* weights, int64_t stride, const float* bias, const float* columns,
                             int64_t count, float* to) {
  constexpr int width = vectors * kLanes;
  F32 sum[rows][vectors];
#pragma GCC unroll 24
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[r][v] = bias ? splat<F32>(bias[r]) : load<F32>(to + r * width + v * kLanes);
  for (int64_t k = 0; k < count; ++k) {
    F32 x[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) x[v] = load<F32>(columns + k * width + v * kLanes);
#pragma GCC unroll 24
    for (int r = 0; r < rows; ++r) {
      const F32 w = splat_word(weights + r * stride + k);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = add_product<depth>(w, x[v], sum[r][v]);
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store(to + r * width + v * kLanes, sum[r][v]);
}

// The same for any number of rows; `stride` is that of the weights' rows.
template <int depth, int vectors>
__attribute__((noinline)) void multiply_rows(const float* weights, int64_t stride, const float* bias,
                                             const float* columns, int64_t count, int64_t rows, float* to) {
  constexpr int width = vectors * kLanes;
  constexpr int at_once = kRowTile * kTileVectors / vectors;  // a narrow block leaves registers for more rows
  const auto bias_of = [&](int64_t r) { return bias ? bias + r : nullptr; };
  int64_t r = 0;
  for (; r + at_once <= rows; r += at_once)
    multiply_tile<depth, at_once, vectors>(weights + r * stride, stride, bias_of(r), columns, count, to + r * width);
  for (; r + 2 <= rows; r += 2)
    multiply_tile<depth, 2, vectors>(weights + r * stride, stride, bias_of(r), columns, count, to + r * width);
  if (r < rows)
    multiply_tile<depth, 1, vectors>(weights + r * stride, stride, bias_of(r), columns, count, to + r * width);
}

constexpr int64_t kColumnFloats = 1 << 12;  // of the columns that all rows meet before the next: half of a small first cache

// The same for any number of columns, in parts that stay in the first cache.
template <int depth, int vectors>
ZO_INLINE void multiply_panel(const float* weights, int64_t stride, const float* bias, const float* columns,
                              int64_t count, int64_t rows, float* to) {
  constexpr int width = vectors * kLanes;
  const int64_t parts = (count * width + kColumnFloats - 1) / kColumnFloats;
  const int64_t most = (count + parts - 1) / parts;
  for (int64_t k = 0; k < count; k += most)
    multiply_rows<depth, vectors>(weights + k, stride, k == 0 ? bias : nullptr, columns + k * width,
                                  count - k < most ? count - k : most, rows, to);
}
