// Vector types of one instruction set, and functions that are the same for all. An isa_*.cpp defines ZO_VECTOR_BYTES,
// opens its own anonymous namespace and includes this file, then its simd_*.h. GCC's vector extension does the plain
// arithmetic. Intrinsics are used only where it is slow (widening multiply, table look-up, rounding).
//
// Everything stays in an anonymous namespace and uses no inline function of the standard library: the linker would
// otherwise keep one copy of a shared inline function, perhaps the AVX-512 one, for all instruction sets.

constexpr int kLanes = ZO_VECTOR_BYTES / 4;  // 32-bit lanes; also the number of blocks of a tile
constexpr int kTileElements = kLanes * 128;

typedef uint32_t U32 __attribute__((vector_size(ZO_VECTOR_BYTES)));
typedef int32_t I32 __attribute__((vector_size(ZO_VECTOR_BYTES)));
typedef uint64_t U64 __attribute__((vector_size(ZO_VECTOR_BYTES)));
typedef float F32 __attribute__((vector_size(ZO_VECTOR_BYTES)));
typedef double F64 __attribute__((vector_size(ZO_VECTOR_BYTES)));
typedef uint16_t U16 __attribute__((vector_size(ZO_VECTOR_BYTES / 2)));       // kLanes of them
typedef int32_t I32Half __attribute__((vector_size(ZO_VECTOR_BYTES / 2)));    // as many as F64 has lanes
typedef float F32Half __attribute__((vector_size(ZO_VECTOR_BYTES / 2)));      // likewise
typedef uint32_t U32Half __attribute__((vector_size(ZO_VECTOR_BYTES / 2)));   // likewise
typedef uint16_t U16Half __attribute__((vector_size(ZO_VECTOR_BYTES / 4)));   // likewise

#define ZO_INLINE inline __attribute__((always_inline))

template <class V, class T>
ZO_INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
ZO_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

template <class V, class S>
ZO_INLINE V splat(S s) {
  return s - V{};  // exact: subtracting +0 changes nothing, the sign of zero included
}

// float <-> bfloat16: round to nearest, ties to even; NaN becomes the quiet NaN 0x7fc0.
template <class FVec, class UVec, class HVec>
ZO_INLINE FVec from_bfloat16(HVec h) {
  const UVec bits = __builtin_convertvector(h, UVec) << 16;
  return reinterpret_cast<FVec>(bits);
}

template <class HVec, class UVec, class FVec>
ZO_INLINE HVec to_bfloat16(FVec f) {
  const UVec bits = reinterpret_cast<UVec>(f);
  const UVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UVec nan = splat<UVec>(0x7fc0u);
  const UVec is_nan = reinterpret_cast<UVec>(f != f);
  return __builtin_convertvector((rounded & ~is_nan) | (nan & is_nan), HVec);
}
