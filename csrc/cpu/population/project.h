// The token table: bias + input projection of every distinct token, once per member instead of once per position.

// embedded[block][e][lane] of the span's tokens, for blocks of tile_lanes tokens (the last may be narrower).
void embed_kernel(const Plan& plan, const Member& m, const Scratch& scratch, const Span& span, int64_t first_block,
                  int64_t last_block) {
  const int64_t E = plan.args->embed_dim;
  const int64_t padded = plan.padded(E);
  SignReader signs(m.seed);
  for (int64_t block = first_block; block < last_block; ++block) {
    const int64_t first = block * plan.tile_lanes;
    const int width = plan.width(span.num_rows - first);
    float* to = m.embedded + first * E;
    for (int lane = 0; lane < width; lane += kLanes) {
      for (int i = 0; i < kLanes && first + lane + i < span.num_rows; ++i)
        perturb(plan, plan.args->embedding, span.tokens[first + lane + i] * E, E, m.eps, signs,
                scratch.rows + i * padded);
      for (int64_t e = 0; e < E; e += kLanes)
        transpose_block(scratch.rows + e, padded, to + e * width + lane, width, E - e);
    }
  }
}

// Consecutive units of a head, for which the table is made at a time. Their products with a block of tokens are
// [row][unit][lane].
struct Units {
  int64_t head, first, count;
};

ZO_INLINE Units units_at(const Plan& plan, int64_t block, int64_t at_once) {
  const int64_t blocks_per_head = (plan.args->head_dim + at_once - 1) / at_once;
  const int64_t first = block % blocks_per_head * at_once;
  const int64_t left = plan.args->head_dim - first;
  return {block / blocks_per_head, first, left < at_once ? left : at_once};
}

// Perturbed biases [row][unit].
ZO_INLINE void perturb_bias(const Plan& plan, const Member& m, SignReader& signs, const Units& units, float* bias) {
  const int64_t N = plan.args->num_heads, D = plan.args->head_dim;
  for (int r = 0; r < plan.cell.rows; ++r)
    perturb(plan, m.layer->bias, m.layer->first_bias + (r * N + units.head) * D + units.first, units.count, m.eps, signs,
            bias + r * units.count);
}

// Perturbed weights [input row][unit][E] and biases [row][unit].
ZO_INLINE void make_input_panel(const Plan& plan, const Member& m, SignReader (&signs)[4], SignReader& bias_signs,
                                const Units& units, float* panel, float* bias) {
  const int64_t E = plan.args->embed_dim, N = plan.args->num_heads, D = plan.args->head_dim;
  for (int r = 0; r < plan.cell.input_rows; ++r)  // in this order: a run is padded into the next
    perturb(plan, m.layer->input_weight, ((r * N + units.head) * D + units.first) * E, units.count * E, m.eps, signs[r],
            panel + r * units.count * E);
  perturb_bias(plan, m, bias_signs, units, bias);
}

// Copies `tokens` lanes of products into the table, in the order of columns that the recurrence reads: wide, a unit's
// rows side by side; narrow, a row's units padded to whole vectors. Padding is 0.
ZO_INLINE void write_table(const Plan& plan, const Units& units, const float* products, int width, int64_t tokens,
                           float* table) {
  const int rows = plan.cell.rows;
  const int64_t columns = plan.wide ? plan.padded(units.count * rows) : plan.padded(units.count);
  const int64_t unit_of_lane = plan.wide ? kLanes / rows : kLanes;
  for (int r = 0; r < (plan.wide ? 1 : rows); ++r) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      float* to = plan.wide ? table + units.first * rows + c : table + r * plan.padded_dim + units.first + c;
      for (int lane = 0; lane < width; lane += kLanes) {
        I32 block[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          const int64_t unit = plan.wide ? c / kLanes * unit_of_lane + i / rows : c + i;
          const int64_t row = plan.wide ? i % rows : r;
          block[i] = unit < units.count ? load<I32>(products + (row * units.count + unit) * width + lane) : I32{};
        }
        transpose(block);
        for (int i = 0; i < kLanes && lane + i < tokens; ++i) store(to + (lane + i) * plan.table_stride(), block[i]);
      }
    }
  }
}

// The rows of which the products begin with bias alone: those that come before the first input row.
ZO_INLINE void spread_bias(const Units& units, int rows, const float* bias, int width, float* products) {
  for (int64_t i = 0; i < rows * units.count; ++i)
    for (int lane = 0; lane < width; lane += kLanes) store(products + i * width + lane, splat<F32>(bias[i]));
}

// table[token][head][column], for blocks [first, last) of table_units units, counted over all heads.
void project_kernel(const Plan& plan, const Member& m, const Scratch& scratch, const Span& span, int64_t first_block,
                    int64_t last_block) {
  const int64_t E = plan.args->embed_dim;
  const int rows = plan.cell.rows, input = plan.cell.first_input_row;
  SignReader signs[4] = {SignReader(m.seed), SignReader(m.seed), SignReader(m.seed), SignReader(m.seed)};
  SignReader bias_signs(m.seed);
  for (int64_t block = first_block; block < last_block; ++block) {
    const Units units = units_at(plan, block, plan.table_units);
    float* bias = scratch.rows;
    make_input_panel(plan, m, signs, bias_signs, units, scratch.input_panel, bias);
    for (int64_t first = 0; first < span.num_rows; first += plan.tile_lanes) {
      const int width = plan.width(span.num_rows - first);
      float* with_input = scratch.products + input * units.count * width;
      with_vectors(width, [&](auto vectors) {
        multiply_panel<1, decltype(vectors)::value>(scratch.input_panel, E, bias + input * units.count,
                                                 m.embedded + first * E, E, (rows - input) * units.count, with_input);
      });
      spread_bias(units, input, bias, width, scratch.products);
      write_table(plan, units, scratch.products, width, span.num_rows - first,
                  m.table + first * plan.table_stride() + units.head * plan.head_columns);
    }
  }
}
