// Products of small matrices with a fixed order of sums, whatever the number of threads: the token table, and the
// gradients behind it.

// c[i][j] = sum over k of a[i][k] * b[k][j], for rows [first, last). Columns are a multiple of 16.
void multiply_rows(const MatrixProduct& p, int64_t first, int64_t last) {
  constexpr int n = 64 / kLanes;  // vectors of a row at once
  for (int64_t i = first; i < last; ++i)
    for (int64_t j = 0; j < p.columns; j += n * kLanes) {
      const int64_t left = (p.columns - j) / kLanes;
      const int count = left < n ? static_cast<int>(left) : n;
      F32 sum[n] = {};
      if (count == n) {
        for (int64_t k = 0; k < p.inner; ++k) {
          const F32 x = splat<F32>(p.a[i * p.a_row + k * p.a_inner]);
          const float* b = p.b + k * p.columns + j;
#pragma GCC unroll 16
          for (int v = 0; v < n; ++v) sum[v] = fma(x, load<F32>(b + v * kLanes), sum[v]);
        }
      } else {
        for (int v = 0; v < count; ++v)
          for (int64_t k = 0; k < p.inner; ++k)
            sum[v] = fma(splat<F32>(p.a[i * p.a_row + k * p.a_inner]),
                         load<F32>(p.b + k * p.columns + j + v * kLanes), sum[v]);
      }
      for (int v = 0; v < count; ++v) store(p.c + i * p.columns + j + v * kLanes, sum[v]);
    }
}
