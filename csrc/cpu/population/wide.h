// The recurrence for many sequences. Lanes run along sequences, so that heads of any size fill the vectors, and one
// broadcast of a weight serves a whole tile.
//
// Per tile and step, for kLanes columns of the table (a few units with all their rows) at a time:
//   1. gather the tokens' table rows and transpose them: pre-activations [column][lane], which are also the initial
//      sums;
//   2. per group of units, keep their sums in registers and walk the previous hidden state: a load of it serves all
//      rows, a broadcast of a weight all lanes;
//   3. update the cells.

// pre[column][lane] of kLanes columns from `column` on of each lane's row of the table.
template <int vectors>
ZO_INLINE void gather_columns(const float* const* table_rows, int64_t column, float* pre) {
  constexpr int width = vectors * kLanes;
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    I32 columns[kLanes];
    load_transposed([&](int i) { return table_rows[v * kLanes + i] + column; }, columns);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(pre + i * width + v * kLanes, columns[i]);
  }
}

struct TileStep {
  const float* previous;  // [word][width]: the head's hidden state before the step
  float* hidden;          // [word][width]: and after it
  float* cell;            // [unit][width], if there are cell states
  const float* weights;   // [recurrent row][unit - first_unit][word]
  int64_t row_stride;     // words from one recurrent row to the next
  int64_t head_words;
};

// Adds the recurrent projection to the pre-activations [unit][row][lane] of `units` consecutive units, whose weights
// begin at `weights`. Not inlined, because next to the cell it would lose registers to the cell's constants.
template <class Cell, int vectors, int units>
__attribute__((noinline)) void add_recurrence(const TileStep& s, const float* weights, float* pre) {
  constexpr CellShape shape = Cell::shape;
  constexpr int width = vectors * kLanes;
  const int64_t row_stride = s.row_stride, head_words = s.head_words;
  const float* previous = s.previous;
  F32 sum[units][shape.recurrent_rows][vectors];
#pragma GCC unroll 16
  for (int u = 0; u < units; ++u)
#pragma GCC unroll 4
    for (int r = 0; r < shape.recurrent_rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[u][r][v] = load<F32>(pre + (u * shape.rows + r) * width + v * kLanes);
  for (int64_t k = 0; k < head_words; ++k) {
    F32 h[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) h[v] = load<F32>(previous + k * width + v * kLanes);
#pragma GCC unroll 16
    for (int u = 0; u < units; ++u)
#pragma GCC unroll 4
      for (int r = 0; r < shape.recurrent_rows; ++r) {
        const F32 w = splat_word(weights + r * row_stride + u * head_words + k);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[u][r][v] = multiply_add(w, h[v], sum[u][r][v]);
      }
  }
#pragma GCC unroll 16
  for (int u = 0; u < units; ++u)
#pragma GCC unroll 4
    for (int r = 0; r < shape.recurrent_rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) store(pre + (u * shape.rows + r) * width + v * kLanes, sum[u][r][v]);
}

// The first vector from `lane` on of a unit of `s`, and its pre-activations.
template <class Cell, int n>
struct UnitVectors {
  CellStates at[n];
  float* pre;
  int width;

  Vectors<n> rows[Cell::shape.rows];

  ZO_INLINE UnitVectors(const TileStep& s, float* pre, int width, int64_t unit, int lane) : pre(pre + lane), width(width) {
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i)
      at[i] = {s.previous + unit / kDepth * width + lane + i * kLanes, s.cell + unit * width + lane + i * kLanes};
  }

  ZO_INLINE void load_rows(int count) {
#pragma GCC unroll 4
    for (int r = 0; r < count; ++r) rows[r] = for_each<n>([&](int i) { return load<F32>(pre + r * width + i * kLanes); });
  }

  ZO_INLINE void store_rows(int count) {
#pragma GCC unroll 4
    for (int r = 0; r < count; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < n; ++i) store(pre + r * width + i * kLanes, rows[r].v[i]);
  }
};

// The new states of `units` consecutive units from `unit` on, a multiple of kDepth, from their pre-activations.
template <class Cell, int vectors>
ZO_INLINE void update_units(const TileStep& s, float* pre, int64_t unit, int units) {
  constexpr CellShape shape = Cell::shape;
  constexpr int width = vectors * kLanes;
  constexpr int n = kInterleavesCells ? vectors : 1;
  constexpr bool in_two_passes = kInterleavesCells && Cell::parked > 0;
  for (int u = 0; in_two_passes && u < units; ++u) {
    UnitVectors<Cell, n> v(s, pre + u * shape.rows * width, width, unit + u, 0);
    v.load_rows(shape.rows);
    begin_cells<Cell>(v.rows, v.at);
    v.store_rows(Cell::parked);
  }
  for (int u = 0; u < units; u += kDepth) {
    for (int lane = 0; lane < width; lane += n * kLanes) {
      Vectors<n> h[kDepth] = {};
      for (int i = 0; i < kDepth && u + i < units; ++i) {
        UnitVectors<Cell, n> v(s, pre + (u + i) * shape.rows * width, width, unit + u + i, lane);
        v.load_rows(in_two_passes ? Cell::parked : shape.rows);
        if (!in_two_passes) begin_cells<Cell>(v.rows, v.at);
        h[i] = finish_cells<Cell>(v.rows, v.at);
      }
#pragma GCC unroll 4
      for (int i = 0; i < n; ++i) {
        F32 both[kDepth];
        for (int k = 0; k < kDepth; ++k) both[k] = h[k].v[i];
        store(s.hidden + (unit + u) / kDepth * width + lane + i * kLanes, pack(both));
      }
    }
  }
}

// Units [first, last) of one head, one tile, one step. `first` is at a column that is a multiple of kLanes.
template <class Cell, int vectors>
void step_tile(const TileStep& s, const float* table, int64_t table_stride, const int32_t* table_row, float* pre,
               int64_t first, int64_t last) {
  constexpr int rows = Cell::shape.rows;
  constexpr int width = vectors * kLanes;
  constexpr int at_once = kSums / (rows * vectors) > 1 ? kSums / (rows * vectors) : 1;
  constexpr int block_units = kLanes / rows;
  constexpr int group = at_once < block_units ? at_once : block_units;
  const float* table_rows[width];
  for (int i = 0; i < width; ++i) table_rows[i] = table + table_row[i] * table_stride;
  for (int64_t unit = first; unit < last; unit += block_units) {
    gather_columns<vectors>(table_rows, unit * rows, pre);
    const int units = last - unit < block_units ? static_cast<int>(last - unit) : block_units;
    const float* weights = s.weights + (unit - first) * s.head_words;
    int u = 0;
    for (; u + group <= units; u += group)
      add_recurrence<Cell, vectors, group>(s, weights + u * s.head_words, pre + u * rows * width);
    for (; group > 1 && u < units; ++u)
      add_recurrence<Cell, vectors, 1>(s, weights + u * s.head_words, pre + u * rows * width);
    update_units<Cell, vectors>(s, pre, unit, units);
  }
}

// One step of the tiles [first_tile, last_tile) of a head, units [first, last).
template <class Cell>
void step_tiles(const Plan& plan, const Member& m, const Scratch& scratch, int64_t chunk, int64_t step, int64_t head,
                int64_t first_tile, int64_t last_tile, int64_t first, int64_t last) {
  const float* table = m.table + head * plan.head_columns;
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    const int64_t lane = tile * plan.tile_lanes;
    const int width = plan.width(plan.batch_lanes - lane);
    const int64_t at = lane * plan.hidden_words() + head * plan.head_words * width;
    const TileStep s = {m.hidden + plan.slot_before(step) * plan.slot_size() + at,
                        m.hidden + plan.slot_after(step) * plan.slot_size() + at,
                        m.cell + lane * plan.hidden_size + head * plan.args->head_dim * width,
                        scratch.recurrent_panel,
                        (last - first) * plan.head_words,
                        plan.head_words};
    const int32_t* rows = plan.table_rows(*m.layer, chunk, step) + lane;
    const auto run = [&](auto vectors) {
      step_tile<Cell, decltype(vectors)::value>(s, table, plan.table_stride(), rows, scratch.pre, first, last);
    };
    with_vectors(width, run);
  }
}

// weights[row][unit - first][word] of units [first, last).
void make_wide_panel(const Plan& plan, const Member& m, const Scratch& scratch, SignReader (&signs)[4], int64_t head,
                     int64_t first, int64_t last) {
  const int64_t N = plan.args->num_heads, D = plan.args->head_dim;
  for (int r = 0; r < plan.cell.recurrent_rows; ++r)  // in this order: a row is padded into the next
    perturb_words(plan, m.layer->recurrent_weight, m.layer->first_recurrent + ((r * N + head) * D + first) * D,
                  last - first, D, m.eps, signs[r], scratch.unpacked,
                  scratch.recurrent_panel + r * (last - first) * plan.head_words);
}

// Tiles [first_tile, last_tile) of a head over all steps of a chunk.
template <class Cell>
void wide_recurrence(const Plan& plan, const Member& m, const Scratch& scratch, int64_t chunk, int64_t head,
                     int64_t first_tile, int64_t last_tile) {
  const int64_t D = plan.args->head_dim;
  SignReader signs[4] = {SignReader(m.seed), SignReader(m.seed), SignReader(m.seed), SignReader(m.seed)};
  if (plan.panel_units == D) make_wide_panel(plan, m, scratch, signs, head, 0, D);
  for (int64_t step = plan.first_step(chunk); step < plan.last_step(chunk); ++step) {
    for (int64_t first = 0; first < D; first += plan.panel_units) {
      const int64_t last = first + plan.panel_units < D ? first + plan.panel_units : D;
      if (plan.panel_units != D) make_wide_panel(plan, m, scratch, signs, head, first, last);
      step_tiles<Cell>(plan, m, scratch, chunk, step, head, first_tile, last_tile, first, last);
    }
  }
}
