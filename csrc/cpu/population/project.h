// The token table: bias + input projection of every distinct token, once per member instead of once per position.

// embedded[block][e][lane] of the span's tokens.
void embed_kernel(const Plan& plan, const Member& m, const Scratch& scratch, const Span& span, int64_t first_block,
                  int64_t last_block) {
  const int64_t E = plan.args->embed_dim;
  const int64_t padded = (E + kLanes - 1) / kLanes * kLanes;
  SignReader signs(m.seed);
  for (int64_t block = first_block; block < last_block; ++block) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t row = block * kLanes + lane;
      if (row < span.num_rows)
        perturb(plan, plan.args->embedding, span.tokens[row] * E, E, m.eps, signs, scratch.rows + lane * padded);
    }
    for (int64_t e = 0; e < E; e += kLanes)
      transpose_block(scratch.rows + e, padded, m.embedded + (block * E + e) * kLanes, kLanes, E - e);
  }
}

// Column `column` of a head's part of the table belongs to row `row` of unit `unit`. Wide: a unit's rows lie side by
// side, as a step reads them; narrow: a row's units, padded to whole vectors.
struct Column {
  int64_t unit;
  int row;
};

ZO_INLINE Column column_at(const Plan& plan, int64_t column) {
  if (plan.wide) return {column / plan.cell.rows, static_cast<int>(column % plan.cell.rows)};
  return {column % plan.padded_dim, static_cast<int>(column / plan.padded_dim)};
}

// table[row][head][column], for column blocks [first, last) counted over all heads.
void project_kernel(const Plan& plan, const Member& m, const Scratch& scratch, const Span& span, int64_t first_block,
                    int64_t last_block) {
  const PopulationArgs& args = *plan.args;
  const int64_t E = args.embed_dim, N = args.num_heads, D = args.head_dim;
  const int64_t padded = (E + kLanes - 1) / kLanes * kLanes;
  const int64_t blocks_per_head = plan.head_columns / kLanes;
  SignReader signs[4] = {SignReader(m.seed), SignReader(m.seed), SignReader(m.seed), SignReader(m.seed)};
  SignReader bias_signs(m.seed);
  for (int64_t block = first_block; block < last_block; ++block) {
    const int64_t head = block / blocks_per_head;
    float bias[kLanes] = {};
    for (int lane = 0; lane < kLanes; ++lane) {
      const Column at = column_at(plan, (block % blocks_per_head) * kLanes + lane);
      float* weights = scratch.input_panel + lane * padded;
      const int input_row = at.row - plan.cell.first_input_row;
      if (at.unit < D) {
        float single[kLanes];
        perturb(plan, args.bias, (at.row * N + head) * D + at.unit, 1, m.eps, bias_signs, single);
        bias[lane] = single[0];
      }
      if (at.unit < D && input_row >= 0)
        perturb(plan, args.input_weight, ((input_row * N + head) * D + at.unit) * E, E, m.eps, signs[at.row], weights);
      else
        __builtin_memset(weights, 0, static_cast<uint64_t>(padded) * sizeof(float));
    }
    for (int64_t first_row = 0; first_row < span.num_rows; first_row += kLanes) {
      const float* x = m.embedded + first_row * E;  // [e][lane]
      F32 sum[kLanes];
      for (int i = 0; i < kLanes; ++i) sum[i] = splat<F32>(bias[i]);
      for (int64_t e = 0; e < E; ++e) {
        const F32 tokens = load<F32>(x + e * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) sum[i] = fma(splat<F32>(scratch.input_panel[i * padded + e]), tokens, sum[i]);
      }
      I32 rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = reinterpret_cast<I32>(sum[i]);
      transpose(rows);
      const int64_t left = span.num_rows - first_row;
      for (int i = 0; i < kLanes && i < left; ++i)
        store(m.table + (first_row + i) * plan.table_stride() + block * kLanes, rows[i]);
    }
  }
}
