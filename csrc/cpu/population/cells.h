// The cells, which compute a unit's new state from its pre-activations, in FlashRNN's gate order.
//
// sigmoid(x) = 1 / (1 + e^-x) and tanh(x) = (1 - e^-2x) / (1 + e^-2x); a state is one fraction of sums and products of
// such exponentials, which saves three of five divisions. Exponents are at most 40 in base 2, where a gate is closed to
// 1e-12, so that the product of three stays finite. Absolute error of a state: about 1e-7.

constexpr float kLog2E = 1.44269504f;

// 2^power for a power up to 127, to 1.6e-7; 0 or 1e-38 below -126; NaN stays NaN. The minimax polynomial
// of 2^f on [0, 1] is 1 at 0.
ZO_INLINE F32 exp2_of(F32 power) {
  const F32 t = bounded_power(power);
  const F32 f = fraction_of(t);
  F32 p = splat<F32>(0x1.e974fep-10f);
  p = fma(p, f, splat<F32>(0x1.277854p-7f));
  p = fma(p, f, splat<F32>(0x1.c91ce6p-5f));
  p = fma(p, f, splat<F32>(0x1.ebdb56p-3f));
  p = fma(p, f, splat<F32>(0x1.62e4bap-1f));
  p = fma(p, f, splat<F32>(1.0f));
  return scale_by_power(p, t, f);
}

// e^(factor * x) for a gate, at most 2^40.
ZO_INLINE F32 gate_exp(F32 x, float factor) {
  return exp2_of(smaller(splat<F32>(40.0f), x * splat<F32>(factor * kLog2E)));
}

// e^x for x <= 0.
ZO_INLINE F32 exp_of_negative(F32 x) { return exp2_of(x * splat<F32>(kLog2E)); }

struct LstmCell {
  static constexpr CellShape shape = cell_shape(Cell::kLstm);
  static constexpr bool needs_hidden = false;
  // pre: i, f, z, o.  c = sigmoid(f) c + sigmoid(i) tanh(z),  h = sigmoid(o) tanh(c)
  static ZO_INLINE F32 update(const F32 (&pre)[4], F32 /*h*/, F32& c) {
    const F32 one = splat<F32>(1.0f);
    const F32 i = one + gate_exp(pre[0], -1.0f), f = one + gate_exp(pre[1], -1.0f);
    const F32 ez = gate_exp(pre[2], -2.0f), o = one + gate_exp(pre[3], -1.0f);
    const F32 iz = fma(i, ez, i);  // i (1 + ez)
    c = fma(c, iz, fma(-ez, f, f)) / (f * iz);
    const F32 ec = gate_exp(c, -2.0f);
    return (one - ec) / fma(o, ec, o);
  }
};

struct GruCell {
  static constexpr CellShape shape = cell_shape(Cell::kGru);
  static constexpr bool needs_hidden = true;
  // pre: g (recurrent), r, z, n (input).  h = sigmoid(z) h + (1 - sigmoid(z)) tanh(n + sigmoid(r) g)
  static ZO_INLINE F32 update(const F32 (&pre)[4], F32 h, F32& /*c*/) {
    const F32 one = splat<F32>(1.0f);
    const F32 n = pre[3] + pre[0] / (one + gate_exp(pre[1], -1.0f));
    const F32 en = gate_exp(n, -2.0f), ez = gate_exp(pre[2], -1.0f);
    return fma(ez, one - en, fma(h, en, h)) / ((one + ez) * (one + en));
  }
};

struct ElmanCell {
  static constexpr CellShape shape = cell_shape(Cell::kElman);
  static constexpr bool needs_hidden = false;
  static ZO_INLINE F32 update(const F32 (&pre)[1], F32 /*h*/, F32& /*c*/) {
    const F32 one = splat<F32>(1.0f);
    const F32 e = gate_exp(pre[0], -2.0f);
    return (one - e) / (one + e);
  }
};

// Updates the states of a vector of units and returns the new hidden state. `hidden` has the hidden state before the
// step, as words; `cell` has the cell state. If words are not floats, a GRU keeps its state as floats in `cell`.
template <class Cell>
ZO_INLINE F32 update_cell(const F32 (&pre)[Cell::shape.rows], const float* hidden, float* cell) {
  constexpr bool in_cell = kDepth > 1 && !Cell::shape.has_cell_state && Cell::needs_hidden;
  F32 c = Cell::shape.has_cell_state || in_cell ? load<F32>(cell) : F32{};
  F32 before = {};
  if (Cell::needs_hidden) before = in_cell ? c : load<F32>(hidden);
  const F32 h = Cell::update(pre, before, c);
  if (Cell::shape.has_cell_state) store(cell, c);
  if (in_cell) store(cell, h);
  return h;
}

// Calls f with the cell of the plan.
template <class F>
ZO_INLINE void with_cell(Cell cell, F f) {
  switch (cell) {
    case Cell::kLstm: return f(LstmCell{});
    case Cell::kGru: return f(GruCell{});
    case Cell::kElman: return f(ElmanCell{});
  }
}
