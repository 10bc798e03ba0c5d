// Calls f with the number of vectors of a tile or block of `width` lanes as a compile-time constant.
template <int n>
struct IntConstant {
  static constexpr int value = n;
};

template <class F>
ZO_INLINE void with_vectors(int width, F f) {
  if constexpr (kTileVectors >= 4)
    if (width == 4 * kLanes) return f(IntConstant<4>{});
  if constexpr (kTileVectors >= 3)
    if (width == 3 * kLanes) return f(IntConstant<3>{});
  if (width == 2 * kLanes) return f(IntConstant<2>{});
  return f(IntConstant<1>{});
}
