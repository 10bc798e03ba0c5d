// Stochastic rounding to 16 bits: up with the probability that makes the result right on average. docs/contract.md has
// the rule. The result is a float that the 16-bit type holds exactly, so that storing it rounds no more.

struct alignas(64) RandomBits {
  uint16_t at[kTileElements];  // of the elements of a tile
};

// A call of Philox makes the 16 bits of eight elements. Not inlined, as generate_bits.
__attribute__((noinline)) void generate_random_bits(uint64_t seed, uint64_t first_block, RandomBits& random) {
  constexpr int n = 2 / kParts;  // vectors of calls at once, for two chains of rounds
  for (int block = 0; block < kLanes; ++block) {
    const CallKey key(seed, first_block + static_cast<uint64_t>(block), kStreamStochasticRounding);
    for (int call = 0; call < 16; call += n * kLanes) {
      Words word[n * kParts][4];
      generate_call_parts<n>(key, static_cast<uint32_t>(call), bit_order, word);
#pragma GCC unroll 4
      for (int i = 0; i < n; ++i)
        store_in_sequence(word + i * kParts,
                          reinterpret_cast<uint8_t*>(random.at + 128 * block + 8 * (call + i * kLanes)));
    }
  }
}

template <DType type>
constexpr bool is_16_bit = type == DType::kBFloat16 || type == DType::kFloat16;

// random: of the element in the first lane and those behind it.
template <DType type>
ZO_INLINE F32 round_at_random(F32 v, const uint16_t* random) {
  static_assert(is_16_bit<type>, "wider types are rounded to nearest");
  const U32 r = __builtin_convertvector(load<U16>(random), U32);
  const U32 bits = reinterpret_cast<U32>(v), magnitude = bits & 0x7fffffffu;
  const U32 finite = reinterpret_cast<U32>(magnitude < 0x7f800000u);
  if (type == DType::kBFloat16) return reinterpret_cast<F32>(bit_select(finite, (bits + r) & 0xffff0000u, bits));
  // float16: below 2^-14 its numbers are multiples of 2^-24, and above it has 13 bits less than float.
  const U32 small = reinterpret_cast<U32>(magnitude < 0x38800000u);
  const F32 fixed = reinterpret_cast<F32>(magnitude & small) * 0x1p40f;
  const U32 steps = (reinterpret_cast<U32>(__builtin_convertvector(fixed, I32)) + r) >> 16;
  const F32 low = __builtin_convertvector(reinterpret_cast<I32>(steps), F32) * 0x1p-24f;
  const U32 high = (magnitude + (r >> 3)) & 0xffffe000u;
  const U32 rounded = bit_select(small, reinterpret_cast<U32>(low), high) | (bits & 0x80000000u);
  return reinterpret_cast<F32>(bit_select(finite, rounded, bits));
}
