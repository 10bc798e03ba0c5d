// The product of a panel of perturbed weights with a block of columns, one per lane: what the token table and the output
// projection have in common.

// to[r][lane] = bias[r] + sum_k weights[r][k] * columns[k][lane], for `rows` x `vectors` sums held in registers.
template <int rows, int vectors>
ZO_INLINE void multiply_tile(const float* weights, int64_t stride, const float* bias, const float* columns, int64_t count,
                             float* to) {
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
      const F32 w = splat<F32>(weights[r * stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = fma(w, x[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store(to + r * width + v * kLanes, sum[r][v]);
}

// The same for any number of rows; `stride` is that of the weights' rows.
template <int vectors>
__attribute__((noinline)) void multiply_panel(const float* weights, int64_t stride, const float* bias,
                                              const float* columns, int64_t count, int64_t rows, float* to) {
  constexpr int width = vectors * kLanes;
  int64_t r = 0;
  for (; r + kRowTile <= rows; r += kRowTile)
    multiply_tile<kRowTile, vectors>(weights + r * stride, stride, bias + r, columns, count, to + r * width);
  for (; r + 2 <= rows; r += 2)
    multiply_tile<2, vectors>(weights + r * stride, stride, bias + r, columns, count, to + r * width);
  if (r < rows) multiply_tile<1, vectors>(weights + r * stride, stride, bias + r, columns, count, to + r * width);
}
