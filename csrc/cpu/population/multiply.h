// The product of a panel of perturbed weights with a block of columns, one per lane. Used by the token table and the
// output projection.

// The sum of a product of words that are floats (depth 1) or those of hidden states (kDepth).
template <int depth>
ZO_INLINE F32 add_product(F32 weight, F32 column, F32 sum) {
  if constexpr (depth == kDepth) return multiply_add(weight, column, sum);
  return fma(weight, column, sum);
}

// to[r][lane] = bias[r] + sum_k weights[r][k] * columns[k][lane], for `rows` x `vectors` sums held in registers.
template <int depth, int rows, int vectors>
ZO_INLINE void multiply_tile(const float* weights, int64_t stride, const float* bias, const float* columns,
                             int64_t count, float* to) {
  constexpr int width = vectors * kLanes;
  F32 sum[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[r][v] = splat<F32>(bias[r]);
  for (int64_t k = 0; k < count; ++k) {
    F32 x[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) x[v] = load<F32>(columns + k * width + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const F32 w = splat_word(weights + r * stride + k);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = add_product<depth>(w, x[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store(to + r * width + v * kLanes, sum[r][v]);
}

// The same for any number of rows; `stride` is that of the weights' rows.
template <int depth, int vectors>
__attribute__((noinline)) void multiply_panel(const float* weights, int64_t stride, const float* bias,
                                              const float* columns, int64_t count, int64_t rows, float* to) {
  constexpr int width = vectors * kLanes;
  int64_t r = 0;
  for (; r + kRowTile <= rows; r += kRowTile)
    multiply_tile<depth, kRowTile, vectors>(weights + r * stride, stride, bias + r, columns, count, to + r * width);
  for (; r + 2 <= rows; r += 2)
    multiply_tile<depth, 2, vectors>(weights + r * stride, stride, bias + r, columns, count, to + r * width);
  if (r < rows)
    multiply_tile<depth, 1, vectors>(weights + r * stride, stride, bias + r, columns, count, to + r * width);
}
