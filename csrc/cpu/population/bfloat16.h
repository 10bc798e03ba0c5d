// Words of hidden states and of the weights that multiply them, in bfloat16: a word is two of them, and a multiply-add
// takes two products at once into a float32 sum (AVX512_BF16).
//
// A weight is rounded to the bfloat16 grid that holds at |w| + eps before eps is added, so that w + eps and w - eps are
// both exact: L+ and L- see the same rounded model, and all of eps. For this eps must be a power of two that is not
// finer than the grid (ops/recurrent.py checks it).

constexpr int kDepth = 2;

// The word at p in all lanes: as an integer, for no operation on floats is to meet two bfloat16 numbers.
ZO_INLINE F32 splat_word(const float* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return reinterpret_cast<F32>(splat<U32>(word));
}

ZO_INLINE F32 multiply_add(F32 weight, F32 hidden, F32 sum) {
  return reinterpret_cast<F32>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(hidden),
                                                reinterpret_cast<__m512bh>(weight)));
}

// The word of each lane: units 2k and 2k + 1.
ZO_INLINE F32 pack(const F32 (&hidden)[kDepth]) {
  const __m512i even = _mm512_cvtepu16_epi32(
      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(hidden[0]))));
  const __m512i odd = _mm512_cvtepu16_epi32(
      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(hidden[1]))));
  return reinterpret_cast<F32>(_mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
}

ZO_INLINE void unpack(F32 word, F32 (&hidden)[kDepth]) {
  const U32 bits = reinterpret_cast<U32>(word);
  hidden[0] = reinterpret_cast<F32>(bits << 16);
  hidden[1] = reinterpret_cast<F32>(bits & 0xffff0000u);
}

// The units of consecutive lanes as consecutive words.
ZO_INLINE void store_words(float* to, F32 hidden) {
  const __m256bh words = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(hidden));
  __builtin_memcpy(to, &words, sizeof(words));
}

// to[row][word] of `rows` rows of `count` floats; the last word of an odd row is filled up with 0. Reads and writes up
// to two vectors more.
ZO_INLINE void pack_rows(const float* from, int64_t rows, int64_t count, float* to) {
  const int64_t words = (count + 1) / 2;
  if (count % 2 == 0) {
    count *= rows;
    rows = 1;
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < count; i += 2 * kLanes) {
      const F32 low = load<F32>(from + row * count + i), high = load<F32>(from + row * count + i + kLanes);
      store(to + row * words + i / 2,
            _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
    }
    if (count % 2 != 0) {
      uint32_t last;
      __builtin_memcpy(&last, to + row * words + words - 1, sizeof(last));
      last &= 0xffffu;
      __builtin_memcpy(to + row * words + words - 1, &last, sizeof(last));
    }
  }
}

// to[row][word] = the perturbed weights p[start + row * count ...], for `rows` rows of `count` elements.
ZO_INLINE void perturb_words(const Plan& plan, const Parameter& p, int64_t start, int64_t rows, int64_t count,
                             float eps, SignReader& signs, float* unpacked, float* to) {
  perturb<true>(plan, p, start, rows * count, eps, signs, unpacked);
  pack_rows(unpacked, rows, count, to);
}
