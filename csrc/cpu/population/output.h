// Output projection and cross-entropy for blocks of positions, one position per lane. A panel of the output weights is
// used for all blocks while it is in the cache. A block's logits exist for one panel at a time, and each position keeps
// a running logsumexp from panel to panel.

// Takes a panel's logits [rows][width] into the running maximum and the sum of e^(logit - maximum).
template <int n>
void add_to_logsumexp(const float* logits, int64_t rows, float* maximum, float* sum) {
  const auto vectors_at = [](const float* p) { return for_each<n>([&](int i) { return load<F32>(p + i * kLanes); }); };
  const Vectors<n> before = vectors_at(maximum);
  Vectors<n> top = before;
  for (int64_t r = 0; r < rows; ++r) {
    const Vectors<n> row = vectors_at(logits + r * n * kLanes);
    top = for_each<n>([&](int i) { return larger(top.v[i], row.v[i]); });
  }
  Vectors<n> total = vectors_at(sum) * exp_of_negative(before - top);
  for (int64_t r = 0; r < rows; ++r) total = total + exp_of_negative(vectors_at(logits + r * n * kLanes) - top);
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i) {
    store(maximum + i * kLanes, top.v[i]);
    store(sum + i * kLanes, total.v[i]);
  }
}

// Sum over the scored positions of a block of maximum - logit of the target + log(sum). The logarithms are taken of
// products of sums, which are at least 1 and at most V each: 16 of them fit a double.
ZO_INLINE double nats_of_block(const int32_t* target, int count, const float* maximum, const float* sum,
                               const float* at_target) {
  double nats = 0.0, product = 1.0;
  int factors = 0;
  for (int lane = 0; lane < count; ++lane) {
    if (target[lane] < 0) continue;
    nats += static_cast<double>(maximum[lane]) - static_cast<double>(at_target[lane]);
    product *= static_cast<double>(sum[lane]);
    if (++factors % 16 == 0) {
      nats += __builtin_log(product);
      product = 1.0;
    }
  }
  return nats + __builtin_log(product);
}

// How many scored positions of a block have the largest logit at their target, and at no token before it.
ZO_INLINE int64_t correct_of_block(const int32_t* target, int count, const float* maximum, const float* at_target,
                                   const bool* leads) {
  int64_t correct = 0;
  for (int lane = 0; lane < count; ++lane)
    correct += target[lane] >= 0 && leads[lane] && at_target[lane] == maximum[lane];
  return correct;
}

// Consumes a block's logits of vocabulary rows [first, first + rows).
ZO_INLINE void score_panel(const Plan& plan, const Member& m, const PositionBlock& b, int64_t block, int64_t first,
                           int64_t rows, const float* logits) {
  float* at = m.maximum + block * plan.tile_lanes;
  float* sum = m.sum + block * plan.tile_lanes;
  if (plan.args->correct) {  // before `maximum` has this panel's logits, too
    for (int lane = 0; lane < b.count; ++lane) {
      const int64_t row = plan.target[b.position + lane] - first;
      if (row < 0 || row >= rows) continue;
      float best = at[lane];
      for (int64_t r = 0; r < row; ++r) best = logits[r * b.width + lane] > best ? logits[r * b.width + lane] : best;
      m.leads[block * plan.tile_lanes + lane] = logits[row * b.width + lane] > best;
    }
  }
  with_vectors(b.width, [&](auto vectors) { add_to_logsumexp<decltype(vectors)::value>(logits, rows, at, sum); });
  for (int lane = 0; lane < b.count; ++lane) {
    const int64_t row = plan.target[b.position + lane] - first;
    if (row >= 0 && row < rows) m.at_target[block * plan.tile_lanes + lane] = logits[row * b.width + lane];
  }
}

ZO_INLINE void export_panel(const Plan& plan, const PositionBlock& b, int64_t first, int64_t rows, const float* logits,
                            float* out) {
  const int64_t last_step = (plan.num_steps - 1) * plan.batch_lanes;
  for (int lane = 0; lane < b.count; ++lane) {
    const int64_t sequence = b.position + lane - last_step;
    if (sequence < 0 || sequence >= plan.args->batch_size) continue;
    for (int64_t r = 0; r < rows; ++r) out[sequence * plan.args->vocab_size + first + r] = logits[r * b.width + lane];
  }
}

ZO_INLINE bool is_scored(const Plan& plan, const PositionBlock& b) {
  for (int lane = 0; lane < b.count; ++lane)
    if (plan.target[b.position + lane] >= 0) return true;
  return false;
}

void output_kernel(const Plan& plan, const Member& m, const Scratch& scratch, int64_t chunk, int64_t first_block,
                   int64_t last_block, float* logits_out) {
  const int64_t V = plan.args->vocab_size, N = plan.args->num_heads, D = plan.args->head_dim;
  const int64_t words = plan.hidden_words();
  float* bias = scratch.output_panel + plan.panel_rows * words;
  SignReader weight_signs(m.seed), bias_signs(m.seed);
  if (!plan.wide && !plan.delivers) transpose_states(plan, m, chunk, first_block, last_block);
  for (int64_t block = first_block; block < last_block; ++block) {
    for (int lane = 0; lane < plan.tile_lanes; ++lane) {
      m.maximum[block * plan.tile_lanes + lane] = -1.0e38f;  // minus a logit, and times log2(e), it is still finite
      m.sum[block * plan.tile_lanes + lane] = 0.0f;
    }
  }
  for (int64_t first = 0; first < V; first += plan.panel_rows) {
    const int64_t rows = V - first < plan.panel_rows ? V - first : plan.panel_rows;
    perturb_words(plan, plan.args->output_weight, first * N * D, rows * N, D, m.eps, weight_signs, scratch.unpacked,
                  scratch.output_panel);
    perturb(plan, plan.args->output_bias, first, rows, m.eps, bias_signs, bias);
    for (int64_t block = first_block; block < last_block; ++block) {
      const PositionBlock b = position_block(plan, chunk, block);
      if (!logits_out && !is_scored(plan, b)) continue;
      with_vectors(b.width, [&](auto vectors) {
        multiply_panel<kDepth, decltype(vectors)::value>(scratch.output_panel, words, bias,
                                                         m.outputs + b.first * words, words, rows, scratch.products);
      });
      if (logits_out)
        export_panel(plan, b, first, rows, scratch.products, logits_out);
      else
        score_panel(plan, m, b, block, first, rows, scratch.products);
    }
  }
  for (int64_t block = first_block; block < last_block && !logits_out; ++block) {
    const PositionBlock b = position_block(plan, chunk, block);
    const int64_t at = block * plan.tile_lanes;
    m.nats[block] = nats_of_block(plan.target + b.position, b.count, m.maximum + at, m.sum + at, m.at_target + at);
    if (plan.args->correct)
      m.correct[block] =
          correct_of_block(plan.target + b.position, b.count, m.maximum + at, m.at_target + at, m.leads + at);
  }
}
