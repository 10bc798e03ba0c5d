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

// A tile's signs as a bit string: bit i (little-endian) is the sign of element i. Words are read at any byte, so there
// are a few spare bytes at the end.
struct alignas(64) SignBits {
  uint8_t bytes[kTileElements / 8 + 8];
};

template <class Word>
ZO_INLINE Word word_at(const SignBits& bits, int i) {
  Word word;
  __builtin_memcpy(&word, bits.bytes + i / 8, sizeof(word));
  return kLanes < 16 ? word >> (i % 8) : word;  // with 16 lanes vectors begin at whole bytes
}

// value where the sign of elements i, i + 1, ... is +1, -value elsewhere: adding it is adding value * p.
ZO_INLINE F32 times_sign(F32 value, const SignBits& bits, int i) {
  const U32 flip = ~bit_to_sign(word_at<uint32_t>(bits, i)) & 0x80000000u;
  return reinterpret_cast<F32>(reinterpret_cast<U32>(value) ^ flip);
}

ZO_INLINE F64 times_sign(F64 value, const SignBits& bits, int i) {
  const U64 flip = ~bit_to_sign(word_at<uint64_t>(bits, i)) & 0x8000000000000000u;
  return reinterpret_cast<F64>(reinterpret_cast<U64>(value) ^ flip);
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
  for (; i + lanes <= count; i += lanes) {
    // Prefetches while the next tile's signs are made; harmless beyond the end.
    __builtin_prefetch(from + i + kTileElements);
    Out::put(to + i, f(In::get(from + i), i));
  }
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
