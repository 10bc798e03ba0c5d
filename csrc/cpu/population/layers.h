// Between two layers: the outputs of one, and the table of the next.

struct PositionBlock {
  int64_t first;     // its first position, counted over steps and lanes of the chunk
  int64_t position;  // the same of the whole context
  int width, count;  // lanes, and how many of them are positions
};

ZO_INLINE PositionBlock position_block(const Plan& plan, int64_t chunk, int64_t block) {
  const int64_t before = plan.first_step(chunk) * plan.batch_lanes;
  if (plan.wide) {
    const int64_t lane = block % plan.tiles() * plan.tile_lanes;
    const int64_t first = block / plan.tiles() * plan.batch_lanes + lane;
    const int width = plan.width(plan.batch_lanes - lane);
    return {first, before + first, width, width};
  }
  const int64_t first = block * plan.tile_lanes;
  const int64_t left = (plan.last_step(chunk) - plan.first_step(chunk)) * plan.batch_lanes - first;
  const int width = plan.width(left);
  return {first, before + first, width, left < width ? static_cast<int>(left) : width};
}

// Calls f(word, units, unit) for each word of the hidden states of all heads: it holds `units` of them, from `unit` on.
template <class F>
ZO_INLINE void for_each_word(const Plan& plan, F f) {
  const int64_t N = plan.args->num_heads, D = plan.args->head_dim;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < plan.head_words; ++k) {
      const int64_t left = D - k * kDepth;
      f(n * plan.head_words + k, left < kDepth ? static_cast<int>(left) : kDepth, n * D + k * kDepth);
    }
}

// The mean of `lanes` positions over all units of [word][width], and 1 / sqrt(variance + 1e-5). A head's units are added
// up first, which keeps the rounding errors of large layers small.
ZO_INLINE void moments(const Plan& plan, const float* words, int64_t width, F32& mean, F32& scale) {
  const F32 count = splat<F32>(static_cast<float>(plan.hidden_size));
  const auto total = [&](auto term) {
    F32 sum = {}, of_head = {};
    for_each_word(plan, [&](int64_t word, int units, int64_t unit) {
      F32 h[kDepth];
      unpack(load<F32>(words + word * width), h);
      for (int i = 0; i < units; ++i) of_head += term(h[i]);
      if ((unit + units) % plan.args->head_dim != 0) return;
      sum += of_head;
      of_head = F32{};
    });
    return sum;
  };
  mean = total([](F32 h) { return h; }) / count;
  const F32 variance = total([&](F32 h) { return (h - mean) * (h - mean); }) / count;
  scale = splat<F32>(1.0f) / square_root(variance + splat<F32>(1e-5f));
}

// The outputs of a layer for position blocks [first, last) of a chunk: its hidden states, normalized if there is a layer
// norm, and with the layer's inputs added if there are residual connections.
void deliver_kernel(const Plan& plan, const Member& m, const Scratch& scratch, int64_t chunk, int64_t first_block,
                    int64_t last_block) {
  const int64_t H = plan.hidden_size, layer = m.layer->index;
  const bool norm = plan.args->layer_norm, residual = plan.args->residual && layer > 0;
  const float *weight = scratch.norm, *bias = scratch.norm + plan.padded(H);
  if (norm) {
    SignReader weight_signs(m.seed), bias_signs(m.seed);
    perturb(plan, plan.args->norm_weight, layer * H, H, m.eps, weight_signs, scratch.norm);
    perturb(plan, plan.args->norm_bias, layer * H, H, m.eps, bias_signs, scratch.norm + plan.padded(H));
  }
  if (!plan.wide) transpose_states(plan, m, chunk, first_block, last_block);
  for (int64_t block = first_block; block < last_block; ++block) {
    const PositionBlock b = position_block(plan, chunk, block);
    for (int lane = 0; lane < b.width; lane += kLanes) {
      float* to = m.outputs + b.first * plan.hidden_words() + lane;
      const float* from = plan.wide ? m.hidden + plan.slot_size() + (to - m.outputs) : to;
      const float* below = m.inputs + (to - m.outputs);
      F32 mean = {}, scale = {};
      if (norm) moments(plan, from, b.width, mean, scale);
      for_each_word(plan, [&](int64_t word, int units, int64_t unit) {
        F32 h[kDepth], x[kDepth] = {};
        unpack(load<F32>(from + word * b.width), h);
        if (residual) unpack(load<F32>(below + word * b.width), x);
        for (int i = 0; i < units; ++i) {
          if (norm) h[i] = fma((h[i] - mean) * scale, splat<F32>(weight[unit + i]), splat<F32>(bias[unit + i]));
          if (residual) h[i] += x[i];
        }
        store(to + word * b.width, pack(h));
      });
    }
  }
}

// table[position of the chunk][head][column] of a layer after the first, for blocks [first, last) of lift_units units,
// counted over all heads.
void lift_kernel(const Plan& plan, const Member& m, const Scratch& scratch, int64_t chunk, int64_t first_block,
                 int64_t last_block) {
  const int64_t N = plan.args->num_heads, D = plan.args->head_dim, H = plan.hidden_size, words = plan.hidden_words();
  const int rows = plan.cell.rows, input = plan.cell.first_input_row;
  SignReader signs[4] = {SignReader(m.seed), SignReader(m.seed), SignReader(m.seed), SignReader(m.seed)};
  SignReader bias_signs(m.seed);
  for (int64_t block = first_block; block < last_block; ++block) {
    const Units units = units_at(plan, block, plan.lift_units);
    float* bias = scratch.rows;
    for (int r = 0; r < plan.cell.input_rows; ++r)  // in this order: a run is padded into the next
      perturb_words(plan, m.layer->input_weight, m.layer->first_input + ((r * N + units.head) * D + units.first) * H,
                    units.count * N, D, m.eps, signs[r], scratch.unpacked,
                    scratch.input_panel + r * units.count * words);
    perturb_bias(plan, m, bias_signs, units, bias);
    for (int64_t i = 0; i < plan.blocks(chunk); ++i) {
      const PositionBlock b = position_block(plan, chunk, i);
      with_vectors(b.width, [&](auto vectors) {
        multiply_panel<kDepth, decltype(vectors)::value>(
            scratch.input_panel, words, bias + input * units.count, m.inputs + b.first * words, words,
            (rows - input) * units.count, scratch.products + input * units.count * b.width);
      });
      spread_bias(units, input, bias, b.width, scratch.products);
      write_table(plan, units, scratch.products, b.width, b.count,
                  m.table + b.first * plan.table_stride() + units.head * plan.head_columns);
    }
  }
}
