// What both models compute of vectors and of the memory. Vectors are padded with zeros to whole vector registers, and
// stay so.

// v in the first `left` lanes, zeros in the others.
ZO_INLINE F32 first_lanes(F32 v, int64_t left) {
  if (left >= kLanes) return v;
  U32 kept;
  for (int lane = 0; lane < kLanes; ++lane) kept[lane] = lane < left ? ~0u : 0u;
  return reinterpret_cast<F32>(reinterpret_cast<U32>(v) & kept);
}

ZO_INLINE float sum_of(F32 v) {
  float sum = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) sum += v[lane];
  return sum;
}

// Lane i: the sum of rows[i].
ZO_INLINE F32 sums_of(F32 (&rows)[kLanes]) {
  I32 turned[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) turned[i] = reinterpret_cast<I32>(rows[i]);
  transpose(turned);
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i)
      turned[i] = reinterpret_cast<I32>(reinterpret_cast<F32>(turned[i]) + reinterpret_cast<F32>(turned[i + half]));
  return reinterpret_cast<F32>(turned[0]);
}

ZO_INLINE float sum(const float* x, int64_t count) {
  F32 total = {};
  for (int64_t i = 0; i < count; i += kLanes) total += load<F32>(x + i);
  return sum_of(total);
}

// The sum of (x - mean)^2.
ZO_INLINE float squares(const float* x, int64_t count, float mean) {
  F32 total = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32 centred = first_lanes(load<F32>(x + i) - splat<F32>(mean), count - i);
    total = fma(centred, centred, total);
  }
  return sum_of(total);
}

// to = (x - mean) * scale * weight + bias. The padding of weight and bias makes that of `to`.
ZO_INLINE void scale_and_shift(const float* x, int64_t count, float mean, float scale, const float* weight,
                               const float* bias, float* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32 normal = (load<F32>(x + i) - splat<F32>(mean)) * splat<F32>(scale);
    store(to + i, fma(normal, load<F32>(weight + i), load<F32>(bias + i)));
  }
}

constexpr float kNormEpsilon = 1e-5f;  // added to a variance, as torch's LayerNorm does

ZO_INLINE float scale_for(float sum_of_squares, int64_t count) {
  return 1.0f / __builtin_sqrtf(sum_of_squares / static_cast<float>(count) + kNormEpsilon);
}

void layer_norm(const float* x, int64_t count, const float* weight, const float* bias, float* to) {
  const float mean = sum(x, count) / static_cast<float>(count);
  scale_and_shift(x, count, mean, scale_for(squares(x, count, mean), count), weight, bias, to);
}

ZO_INLINE F32 sigmoid(F32 x) {
  const F32 one = splat<F32>(1.0f);
  return one / (one + gate_exp(x, -1.0f));
}

ZO_INLINE F32 tanh_of(F32 x) {
  const F32 one = splat<F32>(1.0f), e = gate_exp(x, -2.0f);
  return (one - e) / (one + e);
}

ZO_INLINE void copy_vector(const float* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kLanes) store(to + i, load<F32>(from + i));
}

// x = factor * softmax(x)
void softmax(float* x, int64_t count, float factor) {
  F32 top = splat<F32>(-__builtin_inff());
  for (int64_t i = 0; i + kLanes <= count; i += kLanes) top = larger(load<F32>(x + i), top);
  float most = top[0];
  for (int lane = 1; lane < kLanes; ++lane) most = top[lane] > most ? top[lane] : most;
  for (int64_t i = count / kLanes * kLanes; i < count; ++i) most = x[i] > most ? x[i] : most;
  F32 total = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32 power = first_lanes(exp_of_negative(load<F32>(x + i) - splat<F32>(most)), count - i);
    store(x + i, power);
    total += power;
  }
  const F32 scale = splat<F32>(factor / sum_of(total));
  for (int64_t i = 0; i < count; i += kLanes) store(x + i, load<F32>(x + i) * scale);
}

// h and c from the pre-activations [gate][padded H] of an LSTM.
void update_controller(const DncPlan& plan, const float* gates, const DncColumn& column) {
  for (int64_t i = 0; i < plan.hidden; i += kLanes) {
    Vectors<1> rows[4], c = {{load<F32>(column.c + i)}};
    for (int gate = 0; gate < 4; ++gate) rows[gate] = {{load<F32>(gates + gate * plan.hidden + i)}};
    LstmCell::begin(rows, c);
    store(column.h + i, LstmCell::finish(rows, Vectors<1>{}, c).v[0]);
    store(column.c + i, c.v[0]);
  }
}

// sum_k f(row k), with four sums that do not wait for each other.
template <class F>
ZO_INLINE F32 sum_over(int64_t count, F f) {
  F32 part[4] = {};
  int64_t k = 0;
  for (; k + 4 <= count; k += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) part[i] = f(k + i, part[i]);
  for (; k < count; ++k) part[0] = f(k, part[0]);
  return (part[0] + part[1]) + (part[2] + part[3]);
}

// Lane n: sum_k M[n][k] key[k], of a block of slots [W][lane].
ZO_INLINE F32 key_products(const float* block, int64_t width, const float* key) {
  return sum_over(width, [&](int64_t k, F32 sum) {
    return fma(load<F32>(block + k * kLanes), splat<F32>(key[k]), sum);
  });
}

// M = M (1 - w e^T) + w v^T of a block, which takes the slots' sums on the way.
ZO_INLINE F32 write_block(float* block, int64_t width, F32 w, const float* erase, const float* write) {
  return sum_over(width, [&](int64_t k, F32 sum) {
    F32 m = load<F32>(block + k * kLanes);
    m = fma(w, splat<F32>(write[k]), fma(-(w * splat<F32>(erase[k])), m, m));
    store(block + k * kLanes, m);
    return sum + m;
  });
}

// The sum of the squares of M[n] - mean[n].
ZO_INLINE F32 block_squares(const float* block, int64_t width, F32 mean) {
  return sum_over(width, [&](int64_t k, F32 sum) {
    const F32 centred = load<F32>(block + k * kLanes) - mean;
    return fma(centred, centred, sum);
  });
}

// What the scores of a block need, from its sums: its means and scales, or its norms.
ZO_INLINE void describe_block(const DncPlan& plan, const DncColumn& column, int64_t block, F32 sums) {
  const int64_t width = plan.sizes.width;
  const float* memory = column.memory + block * width * kLanes;
  if (!plan.paper) {
    store(column.scale + block * kLanes, square_root(block_squares(memory, width, F32{})));
    return;
  }
  const F32 size = splat<F32>(static_cast<float>(width)), mean = sums / size;
  const F32 variance = block_squares(memory, width, mean) / size;
  store(column.mean + block * kLanes, mean);
  store(column.scale + block * kLanes, splat<F32>(1.0f) / square_root(variance + splat<F32>(kNormEpsilon)));
}

void describe_memory(const DncPlan& plan, const DncColumn& column) {
  const int64_t width = plan.sizes.width;
  for (int64_t block = 0; block < plan.blocks; ++block) {
    const float* memory = column.memory + block * width * kLanes;
    describe_block(plan, column, block,
                   sum_over(width, [&](int64_t k, F32 sum) { return sum + load<F32>(memory + k * kLanes); }));
  }
}

// Writes to all slots with the weights `written`, and takes the products of each slot with the R read keys.
void write_and_score(const DncPlan& plan, const DncColumn& column, const float* written, const float* erase,
                     const float* write, const float* keys, float* scores) {
  const int64_t width = plan.sizes.width;
  for (int64_t block = 0; block < plan.blocks; ++block) {
    float* memory = column.memory + block * width * kLanes;
    describe_block(plan, column, block,
                   write_block(memory, width, load<F32>(written + block * kLanes), erase, write));
    for (int64_t r = 0; r < plan.sizes.heads; ++r)
      store(scores + r * plan.slots + block * kLanes, key_products(memory, width, keys + r * plan.width));
  }
}

// to[k] = sum_n weights[n] M[n][k]
void read_memory(const DncPlan& plan, const DncColumn& column, const float* weights, float* to) {
  const int64_t width = plan.sizes.width;
  for (int64_t first = 0; first < width; first += kLanes) {
    const int rows = width - first < kLanes ? static_cast<int>(width - first) : kLanes;
    F32 sums[kLanes] = {};
    for (int64_t block = 0; block < plan.blocks; ++block) {
      const F32 weight = load<F32>(weights + block * kLanes);
      const float* memory = column.memory + (block * width + first) * kLanes;
      if (rows == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) sums[i] = fma(weight, load<F32>(memory + i * kLanes), sums[i]);
      } else {
        for (int i = 0; i < rows; ++i) sums[i] = fma(weight, load<F32>(memory + i * kLanes), sums[i]);
      }
    }
    store(to + first, sums_of(sums));
  }
}
