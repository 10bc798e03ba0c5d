// The recurrence for few sequences: lanes run along the units of a head, so that one sequence fills the vectors. The
// weights are transposed when they are perturbed, [word][recurrent row][unit], and each is read from the first or
// second cache once per step.

struct NarrowStep {
  const float* weights;  // [word][recurrent row][unit - first_unit], units padded to whole vectors
  int64_t panel_units;   // padded units of the panel
  int64_t head_words;
  int64_t padded_dim;
};

// Of one sequence; pointers are to the head's first unit.
struct HeadStates {
  const float* table;
  const float* previous;
  float* hidden;
  float* cell;
};

constexpr int kBlockVectors = 8;    // of units, whose pre-activations are made before their cells
constexpr int kMostSequences = 4;   // at once
constexpr int kMostVectors = 3;     // of units at once

// The pre-activations of a block, [row][slot], and where the states of a slot are: a vector of units of a sequence.
template <class Cell>
struct NarrowBlock {
  F32 pre[Cell::shape.rows][kBlockVectors * kMostSequences];
  CellStates at[kBlockVectors * kMostSequences];
  float* hidden[kBlockVectors * kMostSequences];
};

// `vectors` vectors of units from `unit` on, for `count` sequences, into the slots from `slot` on.
template <class Cell, int vectors, int count>
ZO_INLINE void add_vectors(const NarrowStep& s, const float* weights, const HeadStates* head, int64_t unit,
                           NarrowBlock<Cell>& block, int slot) {
  constexpr CellShape shape = Cell::shape;
  F32 sum[shape.rows][vectors][count];
#pragma GCC unroll 4
  for (int r = 0; r < shape.rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v)
#pragma GCC unroll 4
      for (int b = 0; b < count; ++b) sum[r][v][b] = load<F32>(head[b].table + r * s.padded_dim + unit + v * kLanes);
  for (int64_t k = 0; k < s.head_words; ++k) {
    F32 h[count];
#pragma GCC unroll 4
    for (int b = 0; b < count; ++b) h[b] = splat_word(head[b].previous + k);
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
      const int64_t first = unit + v * kLanes;
      const CellStates at = {head[b].previous + first / kDepth, head[b].cell + first};
      float* const hidden = head[b].hidden + first / kDepth;
      if constexpr (kInterleavesCells) {
        const int to = slot + v * count + b;
#pragma GCC unroll 4
        for (int r = 0; r < shape.rows; ++r) block.pre[r][to] = sum[r][v][b];
        block.at[to] = at;
        block.hidden[to] = hidden;
      } else {
        Vectors<1> rows[shape.rows];
#pragma GCC unroll 4
        for (int r = 0; r < shape.rows; ++r) rows[r].v[0] = sum[r][v][b];
        begin_cells<Cell, 1>(rows, {at});
        store_words(hidden, finish_cells<Cell, 1>(rows, {at}).v[0]);
      }
    }
}

// Not inlined where the cells come later, because their constants would take registers from the sums.
template <class Cell, int vectors, int count>
__attribute__((noinline)) void add_vectors_alone(const NarrowStep& s, const float* weights, const HeadStates* head,
                                                 int64_t unit, NarrowBlock<Cell>& block, int slot) {
  add_vectors<Cell, vectors, count>(s, weights, head, unit, block, slot);
}

// The cells of `n` slots, or one of the two passes over them.
template <class Cell, int n, bool begin, bool finish>
ZO_INLINE void update_slots(NarrowBlock<Cell>& block, int slot) {
  Vectors<n> rows[Cell::shape.rows];
  CellStates at[n];
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i) at[i] = block.at[slot + i];
#pragma GCC unroll 4
  for (int r = 0; r < (begin ? Cell::shape.rows : Cell::parked); ++r)
    rows[r] = for_each<n>([&](int i) { return block.pre[r][slot + i]; });
  if (begin) begin_cells<Cell>(rows, at);
  if (!finish) {
#pragma GCC unroll 4
    for (int r = 0; r < Cell::parked; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < n; ++i) block.pre[r][slot + i] = rows[r].v[i];
    return;
  }
  const Vectors<n> h = finish_cells<Cell>(rows, at);
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i) store_words(block.hidden[slot + i], h.v[i]);
}

template <class Cell, bool begin, bool finish>
ZO_INLINE void pass_over_slots(NarrowBlock<Cell>& block, int slots) {
  for (int slot = 0; slot < slots;) {
    const int left = slots - slot;
    const int n = left == 4 || left > 6 ? 4 : left < 3 ? left : 3;
    if (n == 4) update_slots<Cell, 4, begin, finish>(block, slot);
    if (n == 3) update_slots<Cell, 3, begin, finish>(block, slot);
    if (n == 2) update_slots<Cell, 2, begin, finish>(block, slot);
    if (n == 1) update_slots<Cell, 1, begin, finish>(block, slot);
    slot += n;
  }
}

// Padded units [first, last) of a head for `count` sequences.
template <class Cell, int count>
void step_sequences(const NarrowStep& s, const HeadStates* head, int64_t first, int64_t last) {
  constexpr int fit = !kInterleavesCells ? (count >= 4 ? 1 : kSums / 8) : kSums / (4 * count);
  constexpr int most = fit < kMostVectors ? fit : kMostVectors;
  NarrowBlock<Cell> block;
  for (int64_t unit = first; unit < last;) {
    const int64_t end = last < unit + kBlockVectors * kLanes ? last : unit + kBlockVectors * kLanes;
    int slots = 0;
    for (int vectors; unit < end; unit += vectors * kLanes) {
      const int64_t left = (end - unit) / kLanes;
      vectors = left == 4 && most == 3 ? 2 : left < most ? static_cast<int>(left) : most;
      const float* weights = s.weights + (unit - first);
      if (vectors == 1) add_vectors_alone<Cell, 1, count>(s, weights, head, unit, block, slots);
      if constexpr (most >= 2)
        if (vectors == 2) add_vectors_alone<Cell, 2, count>(s, weights, head, unit, block, slots);
      if constexpr (most >= 3)
        if (vectors == 3) add_vectors_alone<Cell, 3, count>(s, weights, head, unit, block, slots);
      slots += vectors * count;
    }
    if constexpr (kInterleavesCells) {
      if (Cell::parked > 0) pass_over_slots<Cell, true, false>(block, slots);
      pass_over_slots<Cell, Cell::parked == 0, true>(block, slots);
    }
  }
}

// All sequences of one step, padded units [first, last) of a head.
template <class Cell>
void step_all(const Plan& plan, const Member& m, const float* panel, int64_t chunk, int64_t step, int64_t head,
              int64_t first, int64_t last) {
  const int64_t B = plan.args->batch_size;
  const int64_t N = plan.args->num_heads;
  const NarrowStep s = {panel, last - first, plan.head_words, plan.padded_dim};
  const int32_t* table_rows = plan.table_rows(*m.layer, chunk, step);
  for (int64_t b = 0; b < B;) {
    const int64_t left = B - b;
    const int count = kInterleavesCells ? (left == 3 || left > 4 ? 3 : left > 1 ? 2 : 1) : left > 3 ? 4 : left > 1 ? 2 : 1;
    HeadStates states[kMostSequences];
    for (int i = 0; i < count; ++i) {
      const int64_t at = ((b + i) * N + head) * plan.padded_words();
      states[i] = {m.table + table_rows[b + i] * plan.table_stride() + head * plan.head_columns,
                   m.hidden + plan.slot_before(step) * plan.slot_size() + at,
                   m.hidden + plan.slot_after(step) * plan.slot_size() + at,
                   m.cell + ((b + i) * N + head) * plan.padded_dim};
    }
    if constexpr (kInterleavesCells) {
      if (count == 3) step_sequences<Cell, 3>(s, states, first, last);
    } else {
      if (count == 4) step_sequences<Cell, 4>(s, states, first, last);
    }
    if (count == 2) step_sequences<Cell, 2>(s, states, first, last);
    if (count == 1) step_sequences<Cell, 1>(s, states, first, last);
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
