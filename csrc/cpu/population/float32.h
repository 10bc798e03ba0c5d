// Words of hidden states and of the weights that multiply them, in float32: a word is a float.

constexpr int kDepth = 1;

// The word at p in all lanes.
ZO_INLINE F32 splat_word(const float* p) { return splat<F32>(*p); }

ZO_INLINE F32 multiply_add(F32 weight, F32 hidden, F32 sum) { return fma(weight, hidden, sum); }

// The word of each lane.
ZO_INLINE F32 pack(const F32 (&hidden)[kDepth]) { return hidden[0]; }

ZO_INLINE void unpack(F32 word, F32 (&hidden)[kDepth]) { hidden[0] = word; }

// The units of consecutive lanes as consecutive words.
ZO_INLINE void store_words(float* to, F32 hidden) { store(to, hidden); }

// to[row][word] = the perturbed weights p[start + row * count ...], for `rows` rows of `count` elements.
ZO_INLINE void perturb_words(const Plan& plan, const Parameter& p, int64_t start, int64_t rows, int64_t count,
                             float eps, SignReader& signs, float* /*unpacked*/, float* to) {
  perturb<false>(plan, p, start, rows * count, eps, signs, to);
}
