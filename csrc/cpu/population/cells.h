// The cells, which compute a unit's new state from its pre-activations, in FlashRNN's gate order.
//
// sigmoid(x) = 1 / (1 + e^-x) and tanh(x) = (1 - e^-2x) / (1 + e^-2x); a state is one fraction of sums and products of
// such exponentials, which saves three of five divisions. Exponents are at most 40 in base 2, where a gate is closed to
// 1e-12, so that the product of three stays finite. Absolute error of a state: about 1e-7.

constexpr float kLog2E = 1.44269504f;

// Vectors that go through a cell together. Each operation is written for all of them in turn, so that their chains of
// dependent operations run side by side.
template <int n>
struct Vectors {
  F32 v[n];
};

template <int n, class F>
ZO_INLINE Vectors<n> for_each(F f) {
  Vectors<n> result;
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i) result.v[i] = f(i);
  return result;
}

template <int n>
ZO_INLINE Vectors<n> operator+(const Vectors<n>& a, const Vectors<n>& b) {
  return for_each<n>([&](int i) { return a.v[i] + b.v[i]; });
}
template <int n>
ZO_INLINE Vectors<n> operator+(F32 a, const Vectors<n>& b) {
  return for_each<n>([&](int i) { return a + b.v[i]; });
}
template <int n>
ZO_INLINE Vectors<n> operator-(const Vectors<n>& a, const Vectors<n>& b) {
  return for_each<n>([&](int i) { return a.v[i] - b.v[i]; });
}
template <int n>
ZO_INLINE Vectors<n> operator-(F32 a, const Vectors<n>& b) {
  return for_each<n>([&](int i) { return a - b.v[i]; });
}
template <int n>
ZO_INLINE Vectors<n> operator*(const Vectors<n>& a, const Vectors<n>& b) {
  return for_each<n>([&](int i) { return a.v[i] * b.v[i]; });
}
template <int n>
ZO_INLINE Vectors<n> operator/(const Vectors<n>& a, const Vectors<n>& b) {
  return for_each<n>([&](int i) { return a.v[i] / b.v[i]; });
}
template <int n>
ZO_INLINE Vectors<n> operator-(const Vectors<n>& a) {
  return for_each<n>([&](int i) { return -a.v[i]; });
}
template <int n>
ZO_INLINE Vectors<n> fma(const Vectors<n>& a, const Vectors<n>& b, const Vectors<n>& c) {
  return for_each<n>([&](int i) { return fma(a.v[i], b.v[i], c.v[i]); });
}

// 2^(factor * x), to 1.6e-7, where `most` bounds the exponent as power_of says; 0 or 1e-38 below 2^-126; NaN stays NaN.
template <int n>
ZO_INLINE Vectors<n> exp2_of(const Vectors<n>& x, float factor, float most) {
  constexpr int terms = sizeof(kExp2) / sizeof(kExp2[0]);  // of a minimax polynomial that is 1 at 0
  Power power[n];
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i) power[i] = power_of(x.v[i], factor, most);
  Vectors<n> p = for_each<n>([&](int) { return splat<F32>(kExp2[0]); });
#pragma GCC unroll 4
  for (int k = 1; k < terms; ++k)
    p = for_each<n>([&](int i) { return fma(p.v[i], power[i].fraction, splat<F32>(kExp2[k])); });
  p = for_each<n>([&](int i) { return fma(p.v[i], power[i].fraction, splat<F32>(1.0f)); });
  return for_each<n>([&](int i) { return scale(p.v[i], power[i]); });
}

// e^(factor * x) for a gate, at most 2^40.
template <int n>
ZO_INLINE Vectors<n> gate_exp(const Vectors<n>& x, float factor) {
  return exp2_of(x, factor * kLog2E, 40.0f);
}

// e^x for x <= 0.
template <int n>
ZO_INLINE Vectors<n> exp_of_negative(const Vectors<n>& x) {
  return exp2_of(x, kLog2E, 0.0f);
}

// Of one vector.
ZO_INLINE F32 gate_exp(F32 x, float factor) { return gate_exp(Vectors<1>{{x}}, factor).v[0]; }
ZO_INLINE F32 exp_of_negative(F32 x) { return exp_of_negative(Vectors<1>{{x}}).v[0]; }

// A cell is two functions, because the second waits for the division at the end of the first: `begin` makes c, and leaves
// in the first `parked` rows what `finish` needs to make h.
struct LstmCell {
  static constexpr CellShape shape = cell_shape(Cell::kLstm);
  static constexpr bool needs_hidden = false;
  static constexpr int parked = 1;
  // rows: i, f, z, o.  c = sigmoid(f) c + sigmoid(i) tanh(z),  h = sigmoid(o) tanh(c)
  template <class V>
  static ZO_INLINE void begin(V (&rows)[4], V& c) {
    const F32 one = splat<F32>(1.0f);
    const V i = one + gate_exp(rows[0], -1.0f), f = one + gate_exp(rows[1], -1.0f);
    const V ez = gate_exp(rows[2], -2.0f), o = one + gate_exp(rows[3], -1.0f);
    const V iz = fma(i, ez, i);  // i (1 + ez)
    c = fma(c, iz, fma(-ez, f, f)) / (f * iz);
    rows[0] = o;
  }
  template <class V>
  static ZO_INLINE V finish(const V (&rows)[4], const V& /*h*/, const V& c) {
    const V ec = gate_exp(c, -2.0f);
    return (splat<F32>(1.0f) - ec) / fma(rows[0], ec, rows[0]);
  }
};

struct GruCell {
  static constexpr CellShape shape = cell_shape(Cell::kGru);
  static constexpr bool needs_hidden = true;
  static constexpr int parked = 2;
  // rows: g (recurrent), r, z, n (input).  h = sigmoid(z) h + (1 - sigmoid(z)) tanh(n + sigmoid(r) g)
  template <class V>
  static ZO_INLINE void begin(V (&rows)[4], V& /*c*/) {
    rows[0] = rows[3] + rows[0] / (splat<F32>(1.0f) + gate_exp(rows[1], -1.0f));
    rows[1] = gate_exp(rows[2], -1.0f);
  }
  template <class V>
  static ZO_INLINE V finish(const V (&rows)[4], const V& h, const V& /*c*/) {
    const F32 one = splat<F32>(1.0f);
    const V en = gate_exp(rows[0], -2.0f), &ez = rows[1];
    return fma(ez, one - en, fma(h, en, h)) / ((one + ez) * (one + en));
  }
};

struct ElmanCell {
  static constexpr CellShape shape = cell_shape(Cell::kElman);
  static constexpr bool needs_hidden = false;
  static constexpr int parked = 0;
  template <class V>
  static ZO_INLINE void begin(V (&)[1], V& /*c*/) {}
  template <class V>
  static ZO_INLINE V finish(const V (&rows)[1], const V& /*h*/, const V& /*c*/) {
    const F32 one = splat<F32>(1.0f);
    const V e = gate_exp(rows[0], -2.0f);
    return (one - e) / (one + e);
  }
};

// Where a vector of a cell's states is: the hidden state before the step, as words, and the cell state.
struct CellStates {
  const float* hidden;
  float* cell;
};

template <class Cell, int n>
ZO_INLINE void begin_cells(Vectors<n> (&rows)[Cell::shape.rows], const CellStates (&at)[n]) {
  Vectors<n> c = {};
  if (Cell::shape.has_cell_state) c = for_each<n>([&](int i) { return load<F32>(at[i].cell); });
  Cell::begin(rows, c);
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i)
    if (Cell::shape.has_cell_state) store(at[i].cell, c.v[i]);
}

// Returns the new hidden states. If words are not floats, a GRU keeps its state as floats where others have cell states.
template <class Cell, int n>
ZO_INLINE Vectors<n> finish_cells(const Vectors<n> (&rows)[Cell::shape.rows], const CellStates (&at)[n]) {
  constexpr bool in_cell = kDepth > 1 && !Cell::shape.has_cell_state && Cell::needs_hidden;
  Vectors<n> c = {}, before = {};
  if (Cell::shape.has_cell_state || in_cell) c = for_each<n>([&](int i) { return load<F32>(at[i].cell); });
  if (Cell::needs_hidden) before = in_cell ? c : for_each<n>([&](int i) { return load<F32>(at[i].hidden); });
  const Vectors<n> h = Cell::finish(rows, before, c);
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i)
    if (in_cell) store(at[i].cell, h.v[i]);
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
