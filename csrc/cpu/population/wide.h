// The recurrence for many sequences. Lanes run along sequences, so that heads of any size fill the vectors, and one
// broadcast of a weight serves a whole tile.
//
// Per tile and step, for kLanes columns of the table (a few units with all their rows) at a time:
//   1. gather the tokens' table rows and transpose them: pre-activations [column][lane], which are also the initial
//      sums;
//   2. per group of units, keep their sums in registers and walk the previous hidden state: a load of it serves all
//      rows, a broadcast of a weight all lanes;
//   3. update the cells.

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
