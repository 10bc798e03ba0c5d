// The recurrence for few sequences: lanes run along the units of a head, so that one sequence fills the vectors. The
// weights are transposed when they are perturbed, [word][recurrent row][unit], and each is read from the first or
// second cache once per step.

struct NarrowStep {
  const float* weights;  // [word][recurrent row][unit - first_unit], units padded to whole vectors
  int64_t panel_units;   // padded units of the panel
  int64_t head_words;
  int64_t padded_dim;
};

// `vectors` vectors of units from `unit` on, for `count` sequences. Pointers are to the head's first unit.
template <class Cell, int vectors, int count>
ZO_INLINE void update_vectors(const NarrowStep& s, const float* weights, const float* const* table,
                              const float* const* previous, float* const* hidden, float* const* cell, int64_t unit) {
  constexpr CellShape shape = Cell::shape;
  F32 sum[shape.rows][vectors][count];
#pragma GCC unroll 4
  for (int r = 0; r < shape.rows; ++r)
    for (int v = 0; v < vectors; ++v)
      for (int b = 0; b < count; ++b) sum[r][v][b] = load<F32>(table[b] + r * s.padded_dim + unit + v * kLanes);
  for (int64_t k = 0; k < s.head_words; ++k) {
    F32 h[count];
#pragma GCC unroll 4
    for (int b = 0; b < count; ++b) h[b] = splat_word(previous[b] + k);
#pragma GCC unroll 4
    for (int r = 0; r < shape.recurrent_rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        const F32 w = load<F32>(weights + (k * shape.recurrent_rows + r) * s.panel_units + v * kLanes);
#pragma GCC unroll 4
        for (int b = 0; b < count; ++b) sum[r][v][b] = multiply_add(w, h[b], sum[r][v][b]);
      }
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v)
#pragma GCC unroll 4
    for (int b = 0; b < count; ++b) {
      const int64_t at = unit + v * kLanes;
      F32 rows[shape.rows];
      for (int r = 0; r < shape.rows; ++r) rows[r] = sum[r][v][b];
      store_words(hidden[b] + at / kDepth, update_cell<Cell>(rows, previous[b] + at / kDepth, cell[b] + at));
    }
}

// Padded units [first, last) of a head for `count` sequences.
template <class Cell, int count>
void step_sequences(const NarrowStep& s, const float* const* table, const float* const* previous, float* const* hidden,
                    float* const* cell, int64_t first, int64_t last) {
  constexpr int vectors = count >= 4 ? 1 : kSums / 8;
  int64_t unit = first;
  for (; unit + vectors * kLanes <= last; unit += vectors * kLanes)
    update_vectors<Cell, vectors, count>(s, s.weights + (unit - first), table, previous, hidden, cell, unit);
  for (; vectors > 1 && unit < last; unit += kLanes)
    update_vectors<Cell, 1, count>(s, s.weights + (unit - first), table, previous, hidden, cell, unit);
}

// All sequences of one step, padded units [first, last) of a head.
template <class Cell>
void step_all(const Plan& plan, const Member& m, const float* panel, int64_t chunk, int64_t step, int64_t head,
              int64_t first, int64_t last) {
  const int64_t B = plan.args->batch_size;
  const int64_t N = plan.args->num_heads;
  const int64_t slot = step - plan.first_step(chunk);
  const NarrowStep s = {panel, last - first, plan.head_words, plan.padded_dim};
  const int32_t* table_rows = plan.table_rows(*m.layer, chunk, step);
  for (int64_t b = 0; b < B;) {
    const int count = B - b >= 4 ? 4 : B - b >= 2 ? 2 : 1;
    const float *table[4], *previous[4];
    float *hidden[4], *cell[4];
    for (int i = 0; i < count; ++i) {
      const int64_t at = ((b + i) * N + head) * plan.padded_words();
      table[i] = m.table + table_rows[b + i] * plan.table_stride() + head * plan.head_columns;
      previous[i] = m.hidden + slot * plan.slot_size() + at;
      hidden[i] = m.hidden + (slot + 1) * plan.slot_size() + at;
      cell[i] = m.cell + ((b + i) * N + head) * plan.padded_dim;
    }
    if (count == 4) step_sequences<Cell, 4>(s, table, previous, hidden, cell, first, last);
    if (count == 2) step_sequences<Cell, 2>(s, table, previous, hidden, cell, first, last);
    if (count == 1) step_sequences<Cell, 1>(s, table, previous, hidden, cell, first, last);
    b += count;
  }
}

// panel[word][row][unit - first] of padded units [first, last).
void make_narrow_panel(const Plan& plan, const Member& m, const Scratch& scratch, SignReader (&signs)[4], int64_t head,
                       int64_t first, int64_t last, float* panel) {
  const int64_t N = plan.args->num_heads, D = plan.args->head_dim;
  const int64_t k_stride = plan.cell.recurrent_rows * (last - first);
  for (int r = 0; r < plan.cell.recurrent_rows; ++r) {
    float* row_panel = panel + r * (last - first);
    for (int64_t unit = first; unit < last; unit += kLanes) {
      const int64_t units = D - unit < kLanes ? D - unit : kLanes;
      for (int i = 0; i < units; ++i)
        perturb_words(plan, m.layer->recurrent_weight, m.layer->first_recurrent + ((r * N + head) * D + unit + i) * D,
                      1, D, m.eps, signs[r], scratch.unpacked, scratch.rows + i * plan.padded_dim);
      for (int64_t i = units; i < kLanes; ++i)
        __builtin_memset(scratch.rows + i * plan.padded_dim, 0, static_cast<uint64_t>(plan.head_words) * sizeof(float));
      for (int64_t k = 0; k < plan.head_words; k += kLanes)
        transpose_block(scratch.rows + k, plan.padded_dim, row_panel + k * k_stride + (unit - first), k_stride,
                        plan.head_words - k);
    }
  }
}

// Heads [first_head, last_head), at most panel_heads, over all steps of a chunk. The heads take each step in turn, so
// that the latency at the end of one head's step overlaps with another head's work.
template <class Cell>
void narrow_recurrence(const Plan& plan, const Member& m, const Scratch& scratch, int64_t chunk, int64_t first_head,
                       int64_t last_head) {
  const int64_t padded = plan.padded_dim;
  const bool resident = plan.panel_units == plan.args->head_dim;
  const int64_t panel_units = resident ? padded : plan.panel_units;
  const int64_t panel_size = plan.cell.recurrent_rows * panel_units * plan.head_words;
  SignReader signs[4] = {SignReader(m.seed), SignReader(m.seed), SignReader(m.seed), SignReader(m.seed)};
  for (int64_t head = first_head; resident && head < last_head; ++head)
    make_narrow_panel(plan, m, scratch, signs, head, 0, padded,
                      scratch.recurrent_panel + (head - first_head) * panel_size);
  for (int64_t step = plan.first_step(chunk); step < plan.last_step(chunk); ++step) {
    for (int64_t head = first_head; head < last_head; ++head) {
      float* panel = scratch.recurrent_panel + (head - first_head) * panel_size;
      for (int64_t first = 0; first < padded; first += panel_units) {
        const int64_t last = first + panel_units < padded ? first + panel_units : padded;
        if (!resident) make_narrow_panel(plan, m, scratch, signs, head, first, last, panel);
        step_all<Cell>(plan, m, panel, chunk, step, head, first, last);
      }
    }
  }
}

// outputs[block][word][lane] = the hidden states, for position blocks [first, last) of a chunk.
void transpose_states(const Plan& plan, const Member& m, int64_t chunk, int64_t first_block, int64_t last_block) {
  const int64_t N = plan.args->num_heads, words = plan.head_words, sequence = N * plan.padded_words();
  const int64_t positions = (plan.last_step(chunk) - plan.first_step(chunk)) * plan.args->batch_size;
  const float* states = m.hidden + plan.slot_size();  // [position][head][padded word]
  for (int64_t block = first_block; block < last_block; ++block) {
    const int64_t first = block * plan.tile_lanes;
    const int width = plan.width(positions - first);
    float* to = m.outputs + first * plan.hidden_words();
    for (int lane = 0; lane < width; lane += kLanes) {
      for (int64_t n = 0; n < N; ++n) {
        for (int64_t k = 0; k < words; k += kLanes)
          transpose_block(states + (first + lane) * sequence + n * plan.padded_words() + k, sequence,
                          to + (n * words + k) * width + lane, width, words - k);
      }
    }
  }
}
