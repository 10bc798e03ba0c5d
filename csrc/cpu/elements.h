// Elements of each data type as vectors of their compute type, and the loop over the elements of a tile.

template <DType type>
struct Element;

template <>
struct Element<DType::kFloat32> {
  using Stored = float;
  using Vec = F32;
  static ZO_INLINE F32 get(const float* p) { return load<F32>(p); }
  static ZO_INLINE void put(float* p, F32 v) { store(p, v); }
  static ZO_INLINE void put(float* p, F64 v) { store(p, __builtin_convertvector(v, F32Half)); }
};

template <>
struct Element<DType::kFloat64> {
  using Stored = double;
  using Vec = F64;
  static ZO_INLINE F64 get(const double* p) { return load<F64>(p); }
  static ZO_INLINE void put(double* p, F64 v) { store(p, v); }
  static ZO_INLINE void put(double* p, F32 v) {
    for (int i = 0; i < kLanes; ++i) p[i] = v[i];
  }
};

template <>
struct Element<DType::kBFloat16> {
  using Stored = uint16_t;
  using Vec = F32;
  static ZO_INLINE F32 get(const uint16_t* p) { return from_bfloat16<F32, U32>(load<U16>(p)); }
  static ZO_INLINE void put(uint16_t* p, F32 v) { store(p, to_bfloat16<U16, U32>(v)); }
  static ZO_INLINE void put(uint16_t* p, F64 v) {  // through float, as torch casts
    store(p, to_bfloat16<U16Half, U32Half>(__builtin_convertvector(v, F32Half)));
  }
};

template <>
struct Element<DType::kFloat16> {
  using Stored = uint16_t;
  using Vec = F32;
  static ZO_INLINE F32 get(const uint16_t* p) { return from_float16(load<U16>(p)); }
  static ZO_INLINE void put(uint16_t* p, F32 v) { store(p, to_float16(v)); }
  static ZO_INLINE void put(uint16_t* p, F64 v) {  // through float, as torch casts
    const F32Half narrow = __builtin_convertvector(v, F32Half);
    F32 wide = {};
    __builtin_memcpy(&wide, &narrow, sizeof(narrow));
    const U16 half = to_float16(wide);
    __builtin_memcpy(p, &half, sizeof(half) / 2);
  }
};

template <class Vec>
constexpr int lanes_of();
template <>
constexpr int lanes_of<F32>() { return kLanes; }
template <>
constexpr int lanes_of<F64>() { return kLanes / 2; }

// The sign bits of elements i, i + 1, ... of a tile (as many as a vector has lanes; higher bits are arbitrary).
template <class Vec>
ZO_INLINE uint32_t sign_bits(const uint8_t* tile_bits, int i) {
  if constexpr (lanes_of<Vec>() == 16) {
    uint16_t bits;
    __builtin_memcpy(&bits, tile_bits + i / 8, 2);
    return bits;
  } else if constexpr (lanes_of<Vec>() == 8) {
    return tile_bits[i / 8];
  } else {
    return static_cast<uint32_t>(tile_bits[i / 8]) >> (i % 8);
  }
}

// out[i] = f(x[i], i) for the `count` first elements of a tile; f works on whole vectors, so the last one is padded.
template <DType in, DType out, class F>
ZO_INLINE void for_each_vector(const void* x, void* y, int64_t first, int count, F f) {
  using In = Element<in>;
  using Out = Element<out>;
  constexpr int lanes = lanes_of<typename In::Vec>();
  const typename In::Stored* from = static_cast<const typename In::Stored*>(x) + first;
  typename Out::Stored* to = static_cast<typename Out::Stored*>(y) + first;
  int i = 0;
  for (; i + lanes <= count; i += lanes) Out::put(to + i, f(In::get(from + i), i));
  if (i < count) {
    const unsigned rest = static_cast<unsigned>(count - i);
    typename In::Stored padded[lanes] = {};
    typename Out::Stored result[lanes];
    __builtin_memcpy(padded, from + i, rest * sizeof(padded[0]));
    Out::put(result, f(In::get(padded), i));
    __builtin_memcpy(to + i, result, rest * sizeof(result[0]));
  }
}

ZO_INLINE int elements_in_tile(int64_t numel, int64_t first) {
  return numel - first < kTileElements ? static_cast<int>(numel - first) : kTileElements;
}

// Calls f with each data type as a compile-time constant.
template <DType type>
struct DTypeConstant {
  static constexpr DType value = type;
};

template <class F>
ZO_INLINE void with_dtype(DType type, F f) {
  switch (type) {
    case DType::kFloat32: return f(DTypeConstant<DType::kFloat32>{});
    case DType::kFloat64: return f(DTypeConstant<DType::kFloat64>{});
    case DType::kBFloat16: return f(DTypeConstant<DType::kBFloat16>{});
    case DType::kFloat16: return f(DTypeConstant<DType::kFloat16>{});
  }
}
