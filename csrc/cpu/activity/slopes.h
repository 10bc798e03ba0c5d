// A step of the cells that also leaves the derivatives of their hidden states.

struct Gate {
  F32 value, slope;
};

ZO_INLINE Gate sigmoid_of(F32 x) {
  const F32 one = splat<F32>(1.0f), e = gate_exp(x, -1.0f), value = one / (one + e);
  return {value, value * value * e};
}

ZO_INLINE Gate tanh_of(F32 x) {
  const F32 one = splat<F32>(1.0f), e = gate_exp(x, -2.0f), value = (one - e) / (one + e);
  return {value, one - value * value};
}

// Each `advance` returns the new hidden state, and puts its derivatives by the rows, at fixed states before, in their
// place. c becomes the new cell state.
ZO_INLINE F32 advance(LstmCell, F32 (&rows)[4], F32 /*h*/, F32& c) {
  const Gate i = sigmoid_of(rows[0]), f = sigmoid_of(rows[1]), z = tanh_of(rows[2]), o = sigmoid_of(rows[3]);
  const F32 before = c;
  c = fma(f.value, before, i.value * z.value);
  const Gate of_c = tanh_of(c);
  const F32 slope = o.value * of_c.slope;
  rows[0] = slope * z.value * i.slope;
  rows[1] = slope * before * f.slope;
  rows[2] = slope * i.value * z.slope;
  rows[3] = of_c.value * o.slope;
  return o.value * of_c.value;
}

ZO_INLINE F32 advance(GruCell, F32 (&rows)[4], F32 h, F32& /*c*/) {
  const Gate r = sigmoid_of(rows[1]), z = sigmoid_of(rows[2]), n = tanh_of(fma(r.value, rows[0], rows[3]));
  const F32 slope = (splat<F32>(1.0f) - z.value) * n.slope;
  rows[1] = slope * rows[0] * r.slope;
  rows[0] = slope * r.value;
  rows[2] = (h - n.value) * z.slope;
  rows[3] = slope;
  return fma(z.value, h - n.value, n.value);
}

ZO_INLINE F32 advance(ElmanCell, F32 (&rows)[1], F32 /*h*/, F32& /*c*/) {
  const Gate all = tanh_of(rows[0]);
  rows[0] = all.slope;
  return all.value;
}

// The new states of `units` consecutive units from `unit` on, from their pre-activations [unit][row][lane], and the
// derivatives of their hidden states in the same order.
template <class Cell, int vectors>
ZO_INLINE void update_with_slopes(const TileStep& s, const float* pre, int64_t unit, int units, float* slopes) {
  constexpr int width = vectors * kLanes;
  constexpr CellShape shape = Cell::shape;
  for (int u = 0; u < units; ++u)
    for (int lane = 0; lane < width; lane += kLanes) {
      const int64_t at = (unit + u) * width + lane;
      F32 rows[shape.rows], h = {}, c = {};
#pragma GCC unroll 4
      for (int r = 0; r < shape.rows; ++r) rows[r] = load<F32>(pre + (u * shape.rows + r) * width + lane);
      if (Cell::needs_hidden) h = load<F32>(s.previous + at);
      if (shape.has_cell_state) c = load<F32>(s.cell + at);
      store(s.hidden + at, advance(Cell{}, rows, h, c));
      if (shape.has_cell_state) store(s.cell + at, c);
#pragma GCC unroll 4
      for (int r = 0; r < shape.rows; ++r) store(slopes + (u * shape.rows + r) * width + lane, rows[r]);
    }
}
