// Runs a probe on a few sequences: prepares its members, and takes the chunks of the context one after the other.

// Makes the signs and the perturbed vectors of a probe.
void prepare_vectors(const DncPlan& plan, DncScratch& s, uint64_t seed, DncMember& m) {
  const DncArgs& args = *plan.args;
  const DncSizes& z = plan.sizes;
  const auto whole = [&](const Parameter& p, float* to) { perturb_vector(plan, p, seed, m.eps, 0, p.numel, to); };
  const auto by_rows = [&](const Parameter& p, DncProduct product, float* to, bool add) {
    const DncMatrix& matrix = plan.products[product];
    whole(p, s.row);
    for (int64_t i = 0; i < matrix.rows; ++i)
      if (matrix.source[i] >= 0) to[i] = (add ? to[i] : 0.0f) + s.row[matrix.source[i]];
  };
  by_rows(args.controller_bias, kRecurrentProduct, m.gate_bias, false);
  by_rows(args.interface_bias, kInterfaceProduct, m.interface_bias, false);
  by_rows(args.output_bias, kOutputProduct, m.output_bias, false);
  if (!plan.paper) return;
  by_rows(args.recurrent_bias, kRecurrentProduct, m.gate_bias, true);
  perturb_vector(plan, args.input_norm.weight, seed, m.eps, 0, z.embed, m.token_weight);
  perturb_vector(plan, args.input_norm.bias, seed, m.eps, 0, z.embed, m.token_bias);
  perturb_vector(plan, args.input_norm.weight, seed, m.eps, z.embed, plan.reads, m.reads_weight);
  perturb_vector(plan, args.input_norm.bias, seed, m.eps, z.embed, plan.reads, m.reads_bias);
  whole(args.hidden_norm.weight, m.hidden_weight);
  whole(args.hidden_norm.bias, m.hidden_bias);
  whole(args.read_key_norm.weight, m.read_key_weight);
  whole(args.read_key_norm.bias, m.read_key_bias);
  whole(args.write_key_norm.weight, m.write_key_weight);
  whole(args.write_key_norm.bias, m.write_key_bias);
  whole(args.memory_norm.weight, m.memory_weight);
  whole(args.output_norm.weight, m.output_norm_weight);
  whole(args.output_norm.bias, m.output_norm_bias);
}

void prepare(const DncPlan& plan, DncScratch& s, int64_t probe) {
  const DncArgs& args = *plan.args;
  const uint64_t seed = args.seeds[probe];
  const float eps = static_cast<float>(args.eps);
  for (int sign = 0; sign < args.num_signs; ++sign) {
    s.members[sign].eps = sign == 0 ? eps : -eps;
    prepare_vectors(plan, s, seed, s.members[sign]);
  }
  for (int product = 0; product < kDncProducts && eps != 0.0f; ++product)
    if (plan.products[product].parameter->offset >= 0)
      make_words(plan.products[product], seed, s.signs, s.words[product]);
  s.probe = probe;
  if (!plan.paper) return;
  const float* x[4];
  float* y[4];
  for (int sign = 0; sign < args.num_signs; ++sign) {
    const DncMember& m = s.members[sign];
    for (int64_t i = 0; i < 4 * plan.hidden; i += kLanes) store(m.token_slope + i, F32{});
    x[sign] = m.token_weight, y[sign] = m.token_slope;
    x[args.num_signs + sign] = m.token_bias, y[args.num_signs + sign] = m.gate_bias;
  }
  multiply(plan, s, kInputProduct, x, y, 2 * args.num_signs);
}

// Sequences [first, first + count) of the members of a probe.
struct DncGroup {
  int64_t probe, first, count;
  int columns;  // number sequence * num_signs + sign
};

// Calls f(state number, rows, size of a row, its stride, floats of the column) for the states that are kept as rows.
template <class F>
void for_each_state(const DncPlan& plan, const DncColumn& c, F f) {
  const DncSizes& z = plan.sizes;
  f(0, 1, z.hidden, plan.hidden, c.h);
  f(1, 1, z.hidden, plan.hidden, c.c);
  f(plan.paper ? 3 : 8, 1, plan.reads, plan.reads, c.reads);
  if (plan.paper) return;
  f(3, 1, z.slots, plan.slots, c.usage);
  f(4, 1, z.slots, plan.slots, c.precedence);
  f(5, z.slots, z.slots, plan.slots, c.link);
  f(6, 1, z.slots, plan.slots, c.written);
  f(7, z.heads, z.slots, plan.slots, c.read);
}

// The states of a column's sequence in the arguments.
ZO_INLINE int64_t state_row(const DncPlan& plan, const DncGroup& group, int column) {
  const DncArgs& args = *plan.args;
  const int64_t member = group.probe * args.num_signs + column % args.num_signs;
  return member * args.batch_size + group.first + column / args.num_signs;
}

void begin(const DncPlan& plan, const DncScratch& s, const DncGroup& group) {
  const DncArgs& args = *plan.args;
  const int64_t width = plan.sizes.width, slots = plan.sizes.slots;
  const uint64_t memory_bytes = static_cast<uint64_t>(plan.blocks * width * kLanes) * sizeof(float);
  for (int column = 0; column < group.columns; ++column) {
    const DncColumn& c = s.columns[column];
    const int64_t at = state_row(plan, group, column);
    __builtin_memset(c.h, 0, static_cast<uint64_t>(plan.column_bytes));
    for (int64_t n = 0; n < slots && !plan.paper; ++n) c.order[n] = static_cast<int32_t>(n);
    for_each_state(plan, c, [&](int state, int64_t rows, int64_t size, int64_t stride, float* to) {
      for (int64_t row = 0; row < rows && args.states[0]; ++row)
        __builtin_memcpy(to + row * stride, args.states[state] + (at * rows + row) * size,
                         static_cast<uint64_t>(size) * sizeof(float));
    });
    if (args.states[0]) {
      const float* from = args.states[2] + at * slots * width;
      for (int64_t n = 0; n < slots; ++n)
        for (int64_t k = 0; k < width; ++k)
          c.memory[(n / kLanes * width + k) * kLanes + n % kLanes] = from[n * width + k];
    } else if (plan.initial_memory) {
      __builtin_memcpy(c.memory, plan.initial_memory, memory_bytes);
    }
    describe_memory(plan, c);
  }
}

void end(const DncPlan& plan, const DncScratch& s, const DncGroup& group) {
  const DncArgs& args = *plan.args;
  const int64_t width = plan.sizes.width, slots = plan.sizes.slots;
  if (!args.states[0]) return;
  for (int column = 0; column < group.columns; ++column) {
    const DncColumn& c = s.columns[column];
    const int64_t at = state_row(plan, group, column);
    for_each_state(plan, c, [&](int state, int64_t rows, int64_t size, int64_t stride, const float* from) {
      for (int64_t row = 0; row < rows; ++row)
        __builtin_memcpy(args.states[state] + (at * rows + row) * size, from + row * stride,
                         static_cast<uint64_t>(size) * sizeof(float));
    });
    float* to = args.states[2] + at * slots * width;
    for (int64_t n = 0; n < slots; ++n)
      for (int64_t k = 0; k < width; ++k)
        to[n * width + k] = c.memory[(n / kLanes * width + k) * kLanes + n % kLanes];
  }
}

// pre[step][column] of steps [first, last): what the token adds to the gates. For kPaper the input norm's mean and
// scale are not known before the read vectors are, so the token counts without its own mean, and unscaled.
void embed(const DncPlan& plan, const DncScratch& s, const DncGroup& group, int64_t first, int64_t last) {
  const DncArgs& args = *plan.args;
  const int64_t embed = plan.sizes.embed, gates = 4 * plan.hidden, stride = plan.stride(kInputProduct);
  const float* x[kMostColumns];
  float* y[kMostColumns];
  int waiting = 0;
  for (int64_t position = 0; position < (last - first) * group.columns; ++position) {
    const int column = static_cast<int>(position % group.columns);
    const DncMember& m = s.members[column % args.num_signs];
    const int64_t sequence = group.first + column / args.num_signs;
    const int64_t token = args.tokens[sequence * args.num_steps + first + position / group.columns];
    float *to = s.embedded + waiting * stride, *pre = s.pre + position * gates;
    perturb_vector(plan, args.embedding, args.seeds[group.probe], m.eps, token * embed, embed, to);
    if (plan.paper) {
      const float mean = sum(to, embed) / static_cast<float>(embed);
      s.token_mean[position] = mean;
      s.token_squares[position] = squares(to, embed, mean);
      for (int64_t i = 0; i < plan.embed; i += kLanes)
        store(to + i, (load<F32>(to + i) - splat<F32>(mean)) * load<F32>(m.token_weight + i));
      for (int64_t i = 0; i < gates; i += kLanes) store(pre + i, F32{});
    } else {
      copy_vector(m.gate_bias, gates, pre);
    }
    x[waiting] = to, y[waiting] = pre;
    if (++waiting == kMostColumns) {
      multiply(plan, s, kInputProduct, x, y, waiting);
      waiting = 0;
    }
  }
  multiply(plan, s, kInputProduct, x, y, waiting);
}

// The input norm of [token; read vectors]: finishes the token's part of the gates and writes the read vectors' part.
ZO_INLINE void normalise_input(const DncPlan& plan, const DncScratch& s, const DncMember& m, const DncColumn& column,
                               int64_t position, float* pre, float* reads) {
  const float token_mean = s.token_mean[position], tokens = static_cast<float>(plan.sizes.embed);
  const int64_t inputs = plan.sizes.embed + plan.reads;
  const float mean = (tokens * token_mean + sum(column.reads, plan.reads)) / static_cast<float>(inputs);
  const float apart = token_mean - mean;
  const float all = s.token_squares[position] + tokens * apart * apart + squares(column.reads, plan.reads, mean);
  const float scale = scale_for(all, inputs);
  for (int64_t i = 0; i < 4 * plan.hidden; i += kLanes) {
    const F32 token = fma(splat<F32>(apart), load<F32>(m.token_slope + i), load<F32>(pre + i));
    store(pre + i, fma(splat<F32>(scale), token, load<F32>(m.gate_bias + i)));
  }
  scale_and_shift(column.reads, plan.reads, mean, scale, m.reads_weight, m.reads_bias, reads);
}

// One step of all columns, whose first position of the chunk is `position`.
void step(const DncPlan& plan, const DncScratch& s, const DncGroup& group, int64_t position) {
  const DncSizes& z = plan.sizes;
  const float* x[kMostColumns];
  float* y[kMostColumns];
  const auto member = [&](int column) -> const DncMember& { return s.members[column % plan.args->num_signs]; };
  for (int i = 0; i < group.columns; ++i) {
    const DncColumn& column = s.columns[i];
    float* input = s.step_input + i * plan.stride(kRecurrentProduct);
    x[i] = input, y[i] = s.pre + (position + i) * 4 * plan.hidden;
    if (plan.paper)
      normalise_input(plan, s, member(i), column, position + i, y[i], input);
    else
      copy_vector(column.reads, plan.reads, input);
    copy_vector(column.h, z.hidden, input + plan.reads);
  }
  multiply(plan, s, kRecurrentProduct, x, y, group.columns);
  for (int i = 0; i < group.columns; ++i) {
    const DncColumn& column = s.columns[i];
    const DncMember& m = member(i);
    float* hidden = s.hidden_input + i * plan.stride(kInterfaceProduct);
    update_controller(plan, y[i], column);
    if (plan.paper)
      layer_norm(column.h, z.hidden, m.hidden_weight, m.hidden_bias, hidden);
    else
      copy_vector(column.h, z.hidden, hidden);
    x[i] = hidden, y[i] = s.interface + i * plan.products[kInterfaceProduct].rows;
    copy_vector(m.interface_bias, plan.products[kInterfaceProduct].rows, y[i]);
  }
  multiply(plan, s, kInterfaceProduct, x, y, group.columns);
  for (int i = 0; i < group.columns; ++i) {
    const DncColumn& column = s.columns[i];
    const DncMember& m = member(i);
    float* output = s.outputs + (position + i) * plan.stride(kOutputProduct);
    if (plan.paper)
      paper_step(plan, s, m, column, y[i]);
    else
      dnc_step(plan, s, m, column, y[i]);
    copy_vector(x[i], z.hidden, output);
    copy_vector(column.reads, plan.reads, output + z.hidden);
    if (plan.paper) layer_norm(output, z.hidden + plan.reads, m.output_norm_weight, m.output_norm_bias, output);
  }
}

// -log p(target), from logits that are padded with zeros.
ZO_INLINE double nats_of(const float* logits, int64_t vocab, int64_t target) {
  float top = logits[0];
  for (int64_t i = 1; i < vocab; ++i) top = logits[i] > top ? logits[i] : top;
  F32 total = {};
  for (int64_t i = 0; i < vocab; i += kLanes)
    total += first_lanes(exp_of_negative(load<F32>(logits + i) - splat<F32>(top)), vocab - i);
  return static_cast<double>(top) - static_cast<double>(logits[target]) +
         __builtin_log(static_cast<double>(sum_of(total)));
}

// Whether the target has the largest logit, the first of equal ones.
ZO_INLINE bool is_correct(const float* logits, int64_t vocab, int64_t target) {
  for (int64_t i = 0; i < vocab; ++i)
    if (i < target ? !(logits[i] < logits[target]) : !(logits[i] <= logits[target])) return false;
  return true;
}

// Adds the scored positions of steps [first, last).
void score(const DncPlan& plan, const DncScratch& s, const DncGroup& group, int64_t first, int64_t last, double* nats,
           int64_t* correct) {
  const DncArgs& args = *plan.args;
  const int64_t rows = plan.products[kOutputProduct].rows, vocab = plan.sizes.vocab;
  const float* x[kMostColumns];
  float* y[kMostColumns];
  int64_t target[kMostColumns], at[kMostColumns];
  int waiting = 0;
  const auto finish = [&] {
    multiply(plan, s, kOutputProduct, x, y, waiting);
    for (int i = 0; i < waiting; ++i) {
      nats[at[i]] += nats_of(y[i], vocab, target[i]);
      if (correct) correct[at[i]] += is_correct(y[i], vocab, target[i]);
    }
    waiting = 0;
  };
  for (int64_t position = 0; position < (last - first) * group.columns; ++position) {
    const int column = static_cast<int>(position % group.columns);
    const int64_t sequence = group.first + column / args.num_signs, sign = column % args.num_signs;
    target[waiting] = args.targets[sequence * args.num_steps + first + position / group.columns];
    if (target[waiting] < 0) continue;
    at[waiting] = sign * args.batch_size + sequence;
    x[waiting] = s.outputs + position * plan.stride(kOutputProduct);
    y[waiting] = s.logits + waiting * rows;
    copy_vector(s.members[sign].output_bias, rows, y[waiting]);
    if (++waiting == kMostColumns) finish();
  }
  finish();
}

void run_kernel(const DncPlan& plan, DncScratch& s, int64_t probe, int64_t first, int64_t count, double* nats,
                int64_t* correct) {
  const DncArgs& args = *plan.args;
  const DncGroup group = {probe, first, count, static_cast<int>(count) * args.num_signs};
  int64_t steps = args.states[0] ? args.num_steps : 0;
  for (int64_t b = first; b < first + count; ++b)
    for (int64_t t = args.num_steps; t > steps; --t)
      if (args.targets[b * args.num_steps + t - 1] >= 0) steps = t;
  if (s.probe != probe) prepare(plan, s, probe);
  begin(plan, s, group);
  const int64_t chunk = plan.chunk_positions / group.columns;
  for (int64_t start = 0; start < steps; start += chunk) {
    const int64_t stop = start + chunk < steps ? start + chunk : steps;
    embed(plan, s, group, start, stop);
    for (int64_t t = start; t < stop; ++t) step(plan, s, group, (t - start) * group.columns);
    score(plan, s, group, start, stop, nats, correct);
  }
  end(plan, s, group);
}
