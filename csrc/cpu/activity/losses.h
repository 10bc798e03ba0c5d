// The signs of a step, the losses of a member at a step, the errors at its logits, and sums of products over lanes.

// words[word][lane] of a step: bit j % 32 of word j / 32 is the sign of unit j of the lane's sequence.
template <int vectors>
void make_signs(const ActivityPlan& plan, uint64_t seed, int64_t step, uint32_t first_sequence, uint32_t* words) {
  constexpr int width = vectors * kLanes;
  for (int64_t block = 0; block < plan.blocks; ++block) {
    const CallKey key(seed, static_cast<uint64_t>(step * plan.blocks + block), kStreamActivity);
    for (int v = 0; v < vectors; ++v) {
      Words part[kParts][4];
      generate_call_parts<1>(key, first_sequence + static_cast<uint32_t>(v * kLanes), word_order, part);
      for (int k = 0; k < 4; ++k) store(words + (block * 4 + k) * width + v * kLanes, join_parts(part, k));
    }
  }
}

// x with the sign of unit j: words are those of a step, from the lane on.
ZO_INLINE F32 with_sign(F32 x, const uint32_t* words, int64_t width, int64_t j) {
  const U32 word = load<U32>(words + j / 32 * width);
  const U32 flip = ~(word << static_cast<uint32_t>(31 - j % 32)) & 0x80000000u;
  return reinterpret_cast<F32>(reinterpret_cast<U32>(x) ^ flip);
}

// The sum over all units of local[unit][row] with the signs of a step, both from the lane on.
template <int rows>
ZO_INLINE F32 along_signs(const ActivityPlan& plan, const float* local, const uint32_t* words, int64_t width) {
  F32 sum[rows] = {}, all = {};
  for (int64_t unit = 0; unit < plan.hidden_size; ++unit)
    for (int r = 0; r < rows; ++r)
      sum[r] += with_sign(load<F32>(local + (unit * rows + r) * width), words, width, r * plan.hidden_size + unit);
  for (int r = 0; r < rows; ++r) all += sum[r];
  return all;
}

// loss[lane] = logsumexp - logit of the target, 0 where it is not scored; the logsumexp too, if it is asked for.
// `logits` has room for a panel, or for all of them if they are to be kept.
template <int vectors>
void member_losses(const ActivityPlan& plan, const ActivityBuffers& buffers, const float* hidden,
                   const int32_t* target, float* logits, bool keeps_logits, float* loss, float* logsumexp) {
  constexpr int width = vectors * kLanes;
  const ActivityArgs& args = *plan.args;
  const int64_t V = args.vocab_size, H = plan.hidden_size;
  float *maximum = buffers.row_of_lanes, *sum = maximum + width, *at_target = sum + width;
  for (int lane = 0; lane < width; ++lane) {
    maximum[lane] = -1.0e38f;
    sum[lane] = at_target[lane] = 0.0f;
  }
  for (int64_t first = 0; first < V; first += plan.panel_rows) {
    const int64_t rows = V - first < plan.panel_rows ? V - first : plan.panel_rows;
    const float *weights = args.output_weight + first * H, *bias = args.output_bias + first;
    float* panel = keeps_logits ? logits + first * width : logits;
    multiply_panel<kDepth, vectors>(weights, H, bias, hidden, H, rows, panel);
    for (int lane = 0; lane < width; lane += kLanes) {
      const F32 before = load<F32>(maximum + lane);
      F32 top = before;
      for (int64_t r = 0; r < rows; ++r) top = larger(top, load<F32>(panel + r * width + lane));
      F32 total = load<F32>(sum + lane) * exp_of_negative(before - top);
      for (int64_t r = 0; r < rows; ++r) total += exp_of_negative(load<F32>(panel + r * width + lane) - top);
      store(maximum + lane, top);
      store(sum + lane, total);
    }
    for (int lane = 0; lane < width; ++lane) {
      const int64_t row = target[lane] - first;
      if (row >= 0 && row < rows) at_target[lane] = panel[row * width + lane];
    }
  }
  for (int lane = 0; lane < width; ++lane) {
    const float log_of_sum = maximum[lane] + __builtin_logf(sum[lane]);
    loss[lane] = target[lane] < 0 ? 0.0f : log_of_sum - at_target[lane];
    if (logsumexp) logsumexp[lane] = log_of_sum;
  }
}

// Turns the logits of `count` rows of the vocabulary into errors: softmax minus one-hot, 0 where nothing is scored.
template <int vectors>
void logits_to_errors(float* logits, int64_t first, int64_t count, const int32_t* target, const float* logsumexp,
                      float* scored) {
  constexpr int width = vectors * kLanes;
  for (int lane = 0; lane < width; ++lane) scored[lane] = target[lane] < 0 ? 0.0f : 1.0f;
  for (int64_t r = 0; r < count; ++r)
    for (int lane = 0; lane < width; lane += kLanes) {
      float* p = logits + r * width + lane;
      store(p, exp_of_negative(load<F32>(p) - load<F32>(logsumexp + lane)) * load<F32>(scored + lane));
    }
  for (int lane = 0; lane < width; ++lane) {
    const int64_t row = target[lane] - first;
    if (row >= 0 && row < count) logits[row * width + lane] -= 1.0f;
  }
}

// Rows of lanes at several steps.
struct Rows {
  const float* data;
  int64_t count, stride, step_stride;
};

// to[i][k] += sum over steps and lanes of a[i] * b[k]. `to_stride` is that of its rows.
template <int vectors>
__attribute__((noinline)) void add_products(const Rows& a, const Rows& b, int64_t steps, float* to, int64_t to_stride) {
  constexpr int n = 4;  // rows of each that meet at once; beyond the last they repeat it
  for (int64_t i = 0; i < a.count; i += n)
    for (int64_t k = 0; k < b.count; k += n) {
      const float *left[n], *right[n];
      for (int x = 0; x < n; ++x) {
        left[x] = a.data + (i + x < a.count ? i + x : a.count - 1) * a.stride;
        right[x] = b.data + (k + x < b.count ? k + x : b.count - 1) * b.stride;
      }
      F32 sum[n * n] = {};
      for (int64_t s = 0; s < steps; ++s)
        for (int v = 0; v < vectors; ++v) {
          F32 l[n], r[n];
#pragma GCC unroll 4
          for (int x = 0; x < n; ++x) l[x] = load<F32>(left[x] + s * a.step_stride + v * kLanes);
#pragma GCC unroll 4
          for (int x = 0; x < n; ++x) r[x] = load<F32>(right[x] + s * b.step_stride + v * kLanes);
#pragma GCC unroll 16
          for (int x = 0; x < n * n; ++x) sum[x] = fma(l[x / n], r[x % n], sum[x]);
        }
      float total[n * n];
      for (int x = 0; x < n * n; x += kLanes) {
        I32 rows[kLanes];
        for (int y = 0; y < kLanes; ++y) rows[y] = reinterpret_cast<I32>(sum[x + y]);
        transpose(rows);
        F32 all = {};
        for (int y = 0; y < kLanes; ++y) all += reinterpret_cast<F32>(rows[y]);
        store(total + x, all);
      }
      for (int x = 0; x < n && i + x < a.count; ++x)
        for (int y = 0; y < n && k + y < b.count; ++y) to[(i + x) * to_stride + k + y] += total[x * n + y];
    }
}
