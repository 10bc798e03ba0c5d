// A step of DncModel::kDnc, after the controller: zo_kernels/models/addressing.py has the equations.

constexpr float kLengthEpsilon = 1e-6f;  // added to the product of norms in the cosine

// 1 + log(1 + e^x)
ZO_INLINE float oneplus(float x) {
  const double e = __builtin_exp(x > 0.0f ? -static_cast<double>(x) : static_cast<double>(x));
  return static_cast<float>(1.0 + (x > 0.0f ? static_cast<double>(x) : 0.0) + __builtin_log1p(e));
}

// scores = softmax(strength * cosine of key and slot), from their products.
ZO_INLINE void content_weights(const DncPlan& plan, const DncColumn& column, const float* key, float strength,
                               float* scores) {
  const F32 length = splat<F32>(__builtin_sqrtf(squares(key, plan.sizes.width, 0.0f)));
  for (int64_t i = 0; i < plan.slots; i += kLanes) {
    const F32 lengths = fma(length, load<F32>(column.scale + i), splat<F32>(kLengthEpsilon));
    store(scores + i, splat<F32>(strength) * (load<F32>(scores + i) / lengths));
  }
  softmax(scores, plan.sizes.slots, 1.0f);
}

// u = (u + w - u w) prod_i (1 - f_i r_i)
ZO_INLINE void update_usage(const DncPlan& plan, const DncColumn& column, const float* free_gates) {
  for (int64_t i = 0; i < plan.slots; i += kLanes) {
    const F32 u = load<F32>(column.usage + i), w = load<F32>(column.written + i), one = splat<F32>(1.0f);
    F32 retention = one;
    for (int64_t r = 0; r < plan.sizes.heads; ++r)
      retention *= one - splat<F32>(free_gates[r]) * load<F32>(column.read + r * plan.slots + i);
    store(column.usage + i, (u + w - u * w) * retention);
  }
}

// The order of the last step is nearly that of this one, and ties go by number: an insertion sort.
ZO_INLINE void sort_slots(const DncPlan& plan, const DncColumn& column) {
  const float* usage = column.usage;
  int32_t* order = column.order;
  for (int64_t i = 1; i < plan.sizes.slots; ++i) {
    const int32_t slot = order[i];
    const float u = usage[slot];
    int64_t to = i;
    for (; to > 0; --to) {
      const int32_t before = order[to - 1];
      if (!(usage[before] > u || (usage[before] == u && before > slot))) break;  // or one is NaN
      order[to] = before;
    }
    order[to] = slot;
  }
}

// Write weights g_w (g_a a + (1 - g_a) c), from the content weights c.
ZO_INLINE void write_weights(const DncPlan& plan, const DncColumn& column, float* content, float* allocation,
                             float allocation_gate, float write_gate) {
  sort_slots(plan, column);
  const float* usage = column.usage;
  float product = 1.0f;
  for (int64_t i = 0; i < plan.sizes.slots; ++i) {
    const int32_t slot = column.order[i];
    const float u = usage[slot];
    allocation[slot] = (1.0f - u) * product;
    product *= u;
    if (product < 0x1p-126f) product = 0.0f;  // a product of subnormals takes a hundred times as long
  }
  for (int64_t i = 0; i < plan.slots; i += kLanes) {
    const F32 c = load<F32>(content + i);
    const F32 mixed = fma(splat<F32>(allocation_gate), load<F32>(allocation + i) - c, c);
    store(column.written + i, first_lanes(splat<F32>(write_gate) * mixed, plan.sizes.slots - i));
  }
}

// L = (1 - w_i - w_j) L + w_i p_j of row i, without its diagonal.
ZO_INLINE void update_link_row(float* link, int64_t i, int64_t stride, const float* written, const float* precedence) {
  const F32 w = splat<F32>(written[i]), left = splat<F32>(1.0f) - w;
  for (int64_t j = 0; j < stride; j += kLanes)
    store(link + j, fma(w, load<F32>(precedence + j), (left - load<F32>(written + j)) * load<F32>(link + j)));
  link[i] = 0.0f;
}

// forward = L r and backward += L^T r, of some rows of links. constant_rows: their number, or 0.
template <int constant_rows>
ZO_INLINE void follow_links(const float* links, int some_rows, int64_t stride, const float* read,
                            const float* read_of_rows, float* forward, float* backward) {
  const int rows = constant_rows ? constant_rows : some_rows;
  F32 sums[kLanes] = {};
  for (int64_t j = 0; j < stride; j += kLanes) {
    const F32 from = load<F32>(read + j);
    F32 back[2] = {load<F32>(backward + j), F32{}};
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const F32 l = load<F32>(links + i * stride + j);
      sums[i] = fma(l, from, sums[i]);
      back[i % 2] = fma(splat<F32>(read_of_rows[i]), l, back[i % 2]);
    }
    store(backward + j, back[0] + back[1]);
  }
  store(forward, sums_of(sums));
}

// Updates the links. Then read = pi_1 L^T r + pi_3 L r for each head, where r is that of the last step.
ZO_INLINE void update_links(const DncPlan& plan, const DncScratch& s, const DncColumn& column, const float* modes) {
  const int64_t slots = plan.sizes.slots, stride = plan.slots, heads = plan.sizes.heads;
  float *forward = s.forward, *backward = s.forward + heads * stride, *read = column.read;
  const float *written = column.written, *precedence = column.precedence;
  for (int64_t i = 0; i < heads * stride; i += kLanes) store(backward + i, F32{});
  for (int64_t first = 0; first < slots; first += kLanes) {
    const int rows = slots - first < kLanes ? static_cast<int>(slots - first) : kLanes;
    float* links = column.link + first * stride;
    for (int i = 0; i < rows; ++i) update_link_row(links + i * stride, first + i, stride, written, precedence);
    for (int64_t at = 0; at < heads * stride; at += stride) {
      const float* r = read + at;
      if (rows == kLanes)
        follow_links<kLanes>(links, rows, stride, r, r + first, forward + at + first, backward + at);
      else
        follow_links<0>(links, rows, stride, r, r + first, forward + at + first, backward + at);
    }
  }
  for (int64_t r = 0; r < heads; ++r)
    for (int64_t i = r * stride; i < (r + 1) * stride; i += kLanes) {
      const F32 ahead = splat<F32>(modes[3 * r + 2]) * load<F32>(forward + i);
      store(read + i, fma(splat<F32>(modes[3 * r]), load<F32>(backward + i), ahead));
    }
}

// p = (1 - sum_i w_i) p + w
ZO_INLINE void update_precedence(const DncPlan& plan, const DncColumn& column) {
  const F32 left = splat<F32>(1.0f - sum(column.written, plan.slots));
  for (int64_t i = 0; i < plan.slots; i += kLanes)
    store(column.precedence + i, fma(left, load<F32>(column.precedence + i), load<F32>(column.written + i)));
}

// modes [R][3] become their softmax.
ZO_INLINE void softmax_modes(float* modes, int64_t heads) {
  for (int64_t r = 0; r < heads; ++r, modes += 3) {
    float most = modes[0] > modes[1] ? modes[0] : modes[1], total = 0.0f;
    most = most > modes[2] ? most : modes[2];
    for (int i = 0; i < 3; ++i) total += modes[i] = static_cast<float>(__builtin_exp(modes[i] - most));
    for (int i = 0; i < 3; ++i) modes[i] /= total;
  }
}

void dnc_step(const DncPlan& plan, const DncScratch& s, const DncMember& /*m*/, const DncColumn& column,
              float* interface) {
  const DncInterface& at = plan.interface;
  const int64_t width = plan.sizes.width, heads = plan.sizes.heads;
  float *strengths = interface + at.scalars, *gates = strengths + heads + 1, *modes = gates + heads + 2;
  for (int64_t i = 0; i <= heads; ++i) strengths[i] = oneplus(strengths[i]);
  for (int64_t i = 0; i < heads + 2; ++i) gates[i] = sigmoid(splat<F32>(gates[i]))[0];
  softmax_modes(modes, heads);
  for (int64_t i = 0; i < plan.width; i += kLanes)
    store(interface + at.erase + i, sigmoid(load<F32>(interface + at.erase + i)));

  update_usage(plan, column, gates);
  float *content = s.scores, *allocation = s.row;
  const float* key = interface + at.write_key;
  for (int64_t block = 0; block < plan.blocks; ++block)
    store(content + block * kLanes, key_products(column.memory + block * width * kLanes, width, key));
  content_weights(plan, column, key, strengths[heads], content);
  write_weights(plan, column, content, allocation, gates[heads], gates[heads + 1]);

  const float* keys = interface + at.read_keys;
  write_and_score(plan, column, column.written, interface + at.erase, interface + at.write, keys, s.scores);
  update_links(plan, s, column, modes);
  update_precedence(plan, column);
  for (int64_t r = 0; r < heads; ++r) {
    float *scores = s.scores + r * plan.slots, *read = column.read + r * plan.slots;
    content_weights(plan, column, keys + r * plan.width, strengths[r], scores);
    for (int64_t i = 0; i < plan.slots; i += kLanes)
      store(read + i, fma(splat<F32>(modes[3 * r + 1]), load<F32>(scores + i), load<F32>(read + i)));
    read_memory(plan, column, read, column.reads + r * width);
  }
}
