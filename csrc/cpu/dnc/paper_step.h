// A step of DncModel::kPaper, after the controller: from the interface to the memory and the read vectors.

// to = a key as the scores take it: norm(key) times the memory norm's weight, and without its mean. The product of a
// slot without its mean and a key is that of the slot and the key without its mean.
ZO_INLINE void make_paper_key(const DncPlan& plan, const DncMember& m, const float* key, const float* weight,
                              const float* bias, float* to) {
  const int64_t width = plan.sizes.width;
  layer_norm(key, width, weight, bias, to);
  F32 total = {};
  for (int64_t i = 0; i < width; i += kLanes) {
    const F32 scaled = load<F32>(to + i) * load<F32>(m.memory_weight + i);
    store(to + i, scaled);
    total += scaled;
  }
  const F32 mean = splat<F32>(sum_of(total) / static_cast<float>(width));
  for (int64_t i = 0; i < width; i += kLanes) store(to + i, first_lanes(load<F32>(to + i) - mean, width - i));
}

void paper_step(const DncPlan& plan, const DncScratch& s, const DncMember& m, const DncColumn& column,
                float* interface) {
  const DncInterface& at = plan.interface;
  const int64_t width = plan.sizes.width, heads = plan.sizes.heads, slots = plan.sizes.slots;
  make_paper_key(plan, m, interface + at.write_key, m.write_key_weight, m.write_key_bias, s.keys);
  for (int64_t block = 0; block < plan.blocks; ++block)
    store(column.written + block * kLanes, key_products(column.memory + block * width * kLanes, width, s.keys) *
                                               load<F32>(column.scale + block * kLanes));
  softmax(column.written, slots, sigmoid(load<F32>(interface + at.scalars))[0]);
  for (int64_t i = 0; i < plan.width; i += kLanes) {
    store(interface + at.erase + i, sigmoid(load<F32>(interface + at.erase + i)));
    store(interface + at.write + i, tanh_of(load<F32>(interface + at.write + i)));
  }
  for (int64_t r = 0; r < heads; ++r)
    make_paper_key(plan, m, interface + at.read_keys + r * plan.width, m.read_key_weight, m.read_key_bias,
                   s.keys + r * plan.width);
  write_and_score(plan, column, column.written, interface + at.erase, interface + at.write, s.keys, s.scores);
  for (int64_t r = 0; r < heads; ++r) {
    float* scores = s.scores + r * plan.slots;
    for (int64_t i = 0; i < plan.slots; i += kLanes)
      store(scores + i, load<F32>(scores + i) * load<F32>(column.scale + i));
    softmax(scores, slots, 1.0f);
    read_memory(plan, column, scores, column.reads + r * width);
  }
}
