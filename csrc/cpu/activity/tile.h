// Activity perturbation of a tile of sequences.
//
// The first pass over time runs all members, and keeps a number per probe and step: the difference of its losses. The
// second runs the clean member again, a chunk of steps at a time, and adds up the gradients. A context that fits one
// chunk is not run again, and without probes there is no first pass.

template <class Cell, int vectors>
class TileRun {
 public:
  TileRun(const ActivityPlan& plan, const ActivityBuffers& buffers, const ActivitySums& sums, int64_t tile)
      : plan_(plan), args_(*plan.args), b_(buffers), sums_(sums), first_(tile * plan.tile_lanes),
        state_(plan.hidden_size * width) {}

  void run() {
    const bool is_perturbed = args_.num_seeds > 0;
    begin();
    if (is_perturbed) {
      for (int64_t t = 0; t < args_.num_steps; ++t) run_members(t);
      make_credits();
      if (plan_.reads_twice) begin();
    }
    for (int64_t t = 0; t < args_.num_steps; t += plan_.chunk_steps) {
      const int64_t steps = args_.num_steps - t < plan_.chunk_steps ? args_.num_steps - t : plan_.chunk_steps;
      for (int64_t s = 0; s < steps && (plan_.reads_twice || !is_perturbed); ++s) run_clean(t + s, !is_perturbed);
      for (int64_t s = 0; s < steps; ++s) make_all_signs(t + s, s);
      for (int64_t head = 0; head < args_.num_heads && (is_perturbed || args_.local_gradient); ++head)
        add_head(head, t, steps);
      add_output(t, steps);
    }
  }

 private:
  static constexpr int width = vectors * kLanes;
  static constexpr int rows = Cell::shape.rows;

  uint32_t* signs_of(int64_t slot, int64_t probe) const {
    return b_.signs + (slot * args_.num_seeds + probe) * 4 * plan_.blocks * width;
  }

  void make_all_signs(int64_t t, int64_t slot) {
    const uint32_t sequence = args_.first_sequence + static_cast<uint32_t>(first_);
    for (int64_t i = 0; i < args_.num_seeds; ++i)
      make_signs<vectors>(plan_, args_.seeds[i], t, sequence, signs_of(slot, i));
  }

  // The states before the first step.
  void begin() {
    const int64_t N = args_.num_heads, D = args_.head_dim, B = args_.batch_size;
    for (int64_t m = 0; m < plan_.members; ++m) {
      float *h = before(m, 0), *c = b_.cell + m * state_;
      for (int64_t n = 0; n < N; ++n)
        for (int64_t d = 0; d < D; ++d)
          for (int lane = 0; lane < width; ++lane) {
            const int64_t at = (n * B + first_ + lane) * D + d, to = (n * D + d) * width + lane;
            const bool is_real = first_ + lane < B && args_.h;
            h[to] = is_real ? args_.h[at] : 0.0f;
            c[to] = is_real && args_.c ? args_.c[at] : 0.0f;
          }
    }
  }

  float* before(int64_t member, int64_t t) const {
    if (member == 0) return b_.clean + t % plan_.chunk_steps * state_;
    return b_.hidden + ((member - 1) * 2 + t % 2) * state_;
  }
  float* after(int64_t member, int64_t t) const {
    if (member == 0) return b_.clean + (t % plan_.chunk_steps + 1) * state_;
    return b_.hidden + ((member - 1) * 2 + (t + 1) % 2) * state_;
  }

  // The tokens and targets of a step. Lanes beyond the last sequence have the first token, and nothing is scored.
  void find_step(int64_t t) {
    for (int lane = 0; lane < width; ++lane) {
      const bool is_real = first_ + lane < args_.batch_size;
      const int64_t at = t * args_.batch_size + first_ + lane;
      row_[lane] = is_real ? args_.table_row[at] : 0;
      target_[lane] = is_real ? args_.targets[at] : -1;
    }
  }

  void run_members(int64_t t) {
    run_clean(t, true);
    make_all_signs(t, 0);
    const int64_t n = args_.num_seeds;
    for (int64_t m = 1; m < plan_.members; ++m) {
      step_member(m, t, signs_of(0, (m - 1) % n), m <= n ? args_.sigma : -args_.sigma);
      score_member(m, t, b_.products, false, nullptr);
    }
    const F32 scale = splat<F32>(0.5f / args_.sigma);
    for (int64_t i = 0; i < n; ++i)
      for (int lane = 0; lane < width; lane += kLanes) {
        const F32 plus = load<F32>(b_.losses + (1 + i) * width + lane);
        const F32 minus = load<F32>(b_.losses + (1 + n + i) * width + lane);
        F32 difference = (plus - minus) * scale;
        if (args_.local_gradient)
          difference -= along_signs<rows>(plan_, local_of(t) + lane, signs_of(0, i) + lane, width);
        store(b_.differences + (i * args_.num_steps + t) * width + lane, difference);
      }
  }

  // The clean member at a step, and what follows from it for the gradients of the step. `is_first`: for the first time.
  void run_clean(int64_t t, bool is_first) {
    find_step(t);
    step_member(0, t, nullptr, 0.0f);
    const bool keeps = plan_.keeps_errors;
    if (is_first) score_member(0, t, keeps ? errors_of(t) : b_.products, keeps, logsumexp_of(t));
    if (keeps) make_errors(t, 0, is_first);
    if (args_.local_gradient) make_local(t);
  }

  void score_member(int64_t m, int64_t t, float* logits, bool keeps_logits, float* logsumexp) {
    float* loss = b_.losses + m * width;
    member_losses<vectors>(plan_, b_, after(m, t), target_, logits, keeps_logits, loss, logsumexp);
    double total = 0.0;
    for (int lane = 0; lane < width; ++lane) total += static_cast<double>(loss[lane]);
    sums_.nats[m] += total;
  }

  float* errors_of(int64_t t) const { return b_.errors + t % plan_.chunk_steps * plan_.error_rows * width; }
  float* local_of(int64_t t) const { return b_.local + t % plan_.chunk_steps * plan_.units * width; }
  float* logsumexp_of(int64_t t) const {
    return b_.logsumexp + (plan_.reads_twice ? t : t % plan_.chunk_steps) * width;
  }
  int64_t error_rows(int64_t first) const {
    const int64_t left = args_.vocab_size - first;
    return left < plan_.error_rows ? left : plan_.error_rows;
  }

  // The errors at the logits of a step, from row `first` of the vocabulary on.
  void make_errors(int64_t t, int64_t first, bool has_logits) {
    const int64_t H = plan_.hidden_size, count = error_rows(first);
    float* error = errors_of(t);
    if (!has_logits)
      multiply_panel<kDepth, vectors>(args_.output_weight + first * H, H, args_.output_bias + first, after(0, t), H,
                                      count, error);
    logits_to_errors<vectors>(error, first, count, target_, logsumexp_of(t), b_.row_of_lanes);
  }

  // The local gradient of a step: the error at its logits, back through the output layer and the cells.
  void make_local(int64_t t) {
    const int64_t V = args_.vocab_size;
    __builtin_memset(b_.outer, 0, static_cast<uint64_t>(state_) * sizeof(float));
    for (int64_t first = 0; first < V; first += plan_.error_rows) {
      if (!plan_.keeps_errors) make_errors(t, first, false);
      multiply_panel<kDepth, vectors>(plan_.output_columns + first, V, nullptr, errors_of(t), error_rows(first),
                                      plan_.hidden_size, b_.outer);
    }
    for (int64_t i = 0; i < plan_.units; ++i)
      for (int lane = 0; lane < width; lane += kLanes) {
        float* p = local_of(t) + i * width + lane;
        store(p, load<F32>(p) * load<F32>(b_.outer + i / rows * width + lane));
      }
  }

  // One step of a member, whose pre-activations are moved by sigma if there are signs.
  void step_member(int64_t member, int64_t t, const uint32_t* signs, float sigma) {
    const int64_t D = args_.head_dim, N = args_.num_heads;
    if (member == 0 && t > 0 && t % plan_.chunk_steps == 0)
      __builtin_memcpy(b_.clean, b_.clean + plan_.chunk_steps * state_, static_cast<uint64_t>(state_) * sizeof(float));
    for (int64_t head = 0; head < N; ++head) {
      const int64_t at = head * D * width;
      const TileStep s = {before(member, t) + at, after(member, t) + at, b_.cell + member * state_ + at,
                          args_.recurrent_weight + head * D * D, N * D * D, D};
      const float* table_rows[width];
      for (int lane = 0; lane < width; ++lane)
        table_rows[lane] = args_.table + (row_[lane] * N + head) * args_.head_columns;
      float* slopes = member == 0 && args_.local_gradient ? local_of(t) + at * rows : nullptr;
      step_head(s, table_rows, head, signs, sigma, slopes);
    }
  }

  void step_head(const TileStep& s, const float* const* table_rows, int64_t head, const uint32_t* signs, float sigma,
                 float* slopes) {
    constexpr int at_once = kSums / (rows * vectors) > 1 ? kSums / (rows * vectors) : 1;
    constexpr int block_units = kLanes / rows;
    constexpr int group = at_once < block_units ? at_once : block_units;
    for (int64_t unit = 0; unit < args_.head_dim; unit += block_units) {
      gather_columns<vectors>(table_rows, unit * rows, b_.pre);
      const int64_t left = args_.head_dim - unit;
      const int units = left < block_units ? static_cast<int>(left) : block_units;
      if (signs) {
        for (int i = 0; i < units * rows; ++i) {
          const int64_t j = unit_number(head, unit + i / rows, i % rows);
          for (int lane = 0; lane < width; lane += kLanes) {
            float* p = b_.pre + i * width + lane;
            store(p, load<F32>(p) + with_sign(splat<F32>(sigma), signs + lane, width, j));
          }
        }
      }
      const float* weights = s.weights + unit * s.head_words;
      int u = 0;
      for (; u + group <= units; u += group)
        add_recurrence<Cell, vectors, group>(s, weights + u * s.head_words, b_.pre + u * rows * width);
      for (; group > 1 && u < units; ++u)
        add_recurrence<Cell, vectors, 1>(s, weights + u * s.head_words, b_.pre + u * rows * width);
      if (slopes)
        update_with_slopes<Cell, vectors>(s, b_.pre, unit, units, slopes + unit * rows * width);
      else
        update_units<Cell, vectors>(s, b_.pre, unit, units);
    }
  }

  int64_t unit_number(int64_t head, int64_t unit, int64_t row) const {
    return (row * args_.num_heads + head) * args_.head_dim + unit;
  }

  // The differences of the losses from each step on, within the credit length, over the number of probes. With the
  // local gradient, from the next step on.
  void make_credits() {
    const int64_t skipped = args_.local_gradient ? 1 : 0;
    const int64_t T = args_.num_steps, K = args_.credit_length < T ? args_.credit_length : T;
    const double scale = 1.0 / static_cast<double>(args_.num_seeds);
    for (int64_t i = 0; i < args_.num_seeds; ++i)
      for (int lane = 0; lane < width; ++lane) {
        float* d = b_.differences + i * T * width + lane;
        double window = 0.0;
        for (int64_t t = skipped; t < K; ++t) window += static_cast<double>(d[t * width]);
        for (int64_t t = 0; t < T; ++t) {
          const double next = t + K < T ? static_cast<double>(d[(t + K) * width]) : 0.0;
          const double first = t + skipped < T ? static_cast<double>(d[(t + skipped) * width]) : 0.0;
          d[t * width] = static_cast<float>(window * scale);
          window += next - first;
        }
      }
  }

  // The gradients of a head over the steps of a chunk: those of the recurrent weights, and of the tokens' table.
  void add_head(int64_t head, int64_t first_step, int64_t steps) {
    const int64_t D = args_.head_dim, N = args_.num_heads, columns = args_.head_columns, T = args_.num_steps;
    for (int64_t s = 0; s < steps; ++s) {
      float* delta = b_.deltas + s * columns * width;
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t j = unit_number(head, column / rows, column % rows);
        for (int lane = 0; lane < width; lane += kLanes) {
          F32 sum = {};
          if (args_.local_gradient && column < D * rows)
            sum = load<F32>(local_of(first_step + s) + (head * D * rows + column) * width + lane);
          for (int64_t i = 0; i < args_.num_seeds && column < D * rows; ++i)
            sum += with_sign(load<F32>(b_.differences + (i * T + first_step + s) * width + lane), signs_of(s, i) + lane,
                             width, j);
          store(delta + column * width + lane, sum);
        }
      }
      add_to_table(head, first_step + s, delta);
    }
    const Rows hidden = {b_.clean + head * D * width, D, width, state_};
    for (int64_t r = 0; r < Cell::shape.recurrent_rows; ++r)
      add_products<vectors>({b_.deltas + r * width, D, rows * width, columns * width}, hidden, steps,
                            sums_.recurrent + (r * N + head) * D * D, D);
  }

  void add_to_table(int64_t head, int64_t t, const float* delta) {
    find_step(t);
    for (int64_t column = 0; column < args_.head_columns; column += kLanes)
      for (int lane = 0; lane < width; lane += kLanes) {
        I32 block[kLanes];
        for (int i = 0; i < kLanes; ++i) block[i] = load<I32>(delta + (column + i) * width + lane);
        transpose(block);
        for (int i = 0; i < kLanes && first_ + lane + i < args_.batch_size; ++i) {
          float* to = sums_.table + (row_[lane + i] * args_.num_heads + head) * args_.head_columns + column;
          store(to, load<F32>(to) + reinterpret_cast<F32>(block[i]));
        }
      }
  }

  // The gradients of the output layer over the steps of a chunk: the errors, times the hidden state.
  void add_output(int64_t first_step, int64_t steps) {
    const int64_t H = plan_.hidden_size;
    float* ones = b_.row_of_lanes;
    for (int64_t first = 0; first < args_.vocab_size; first += plan_.error_rows) {
      for (int64_t t = first_step; t < first_step + steps && !plan_.keeps_errors; ++t) {
        find_step(t);
        make_errors(t, first, false);
      }
      const Rows errors = {b_.errors, error_rows(first), width, plan_.error_rows * width};
      add_products<vectors>(errors, {b_.clean + state_, H, width, state_}, steps, sums_.output_weight + first * H, H);
      for (int lane = 0; lane < width; ++lane) ones[lane] = 1.0f;
      add_products<vectors>(errors, {ones, 1, width, 0}, steps, sums_.output_bias + first, 1);
    }
  }

  const ActivityPlan& plan_;
  const ActivityArgs& args_;
  const ActivityBuffers& b_;
  const ActivitySums& sums_;
  int64_t first_;  // sequence of the first lane
  int64_t state_;  // floats of a member's hidden states
  int64_t row_[width];
  int32_t target_[width];
};

void run_tile_kernel(const ActivityPlan& plan, const ActivityBuffers& buffers, const ActivitySums& sums, int64_t tile) {
  const int64_t left = plan.args->batch_size - tile * plan.tile_lanes;
  const int64_t padded = (left + kLanes - 1) / kLanes * kLanes;
  const int width = padded < plan.tile_lanes ? static_cast<int>(padded) : plan.tile_lanes;
  with_cell(plan.args->cell, [&](auto cell) {
    with_vectors(width, [&](auto vectors) {
      TileRun<decltype(cell), decltype(vectors)::value>(plan, buffers, sums, tile).run();
    });
  });
}
