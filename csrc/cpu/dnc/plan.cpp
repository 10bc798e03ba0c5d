#include "plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace zo::cpu {
namespace {

// Some times kMostColumns. The gates of all positions wait in the second cache, which the weights need too.
constexpr int64_t kChunkPositions = 32;

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

void check_range(const DncArgs& args) {
  for (int64_t i = 0; i < args.batch_size * args.num_steps; ++i) {
    if (args.tokens[i] < 0 || args.tokens[i] >= args.sizes.vocab)
      throw std::invalid_argument("a token is not in [0, V)");
    if (args.targets[i] >= args.sizes.vocab) throw std::invalid_argument("a target is not in [0, V)");
  }
}

void carve(Carver& carver, const DncPlan& plan, DncMember& m) {
  const auto vector = [&](int64_t size) { return carver.take<float>(size); };
  m.gate_bias = vector(4 * plan.hidden);
  m.interface_bias = vector(plan.products[kInterfaceProduct].rows);
  m.output_bias = vector(plan.products[kOutputProduct].rows);
  if (!plan.paper) return;
  const int64_t reads = plan.padded(plan.reads), outputs = plan.padded(plan.sizes.hidden + plan.reads);
  m.token_slope = vector(4 * plan.hidden);
  m.token_weight = vector(plan.stride(kInputProduct)), m.token_bias = vector(plan.stride(kInputProduct));
  m.reads_weight = vector(reads), m.reads_bias = vector(reads);
  m.hidden_weight = vector(plan.hidden), m.hidden_bias = vector(plan.hidden);
  m.read_key_weight = vector(plan.width), m.read_key_bias = vector(plan.width);
  m.write_key_weight = vector(plan.width), m.write_key_bias = vector(plan.width);
  m.memory_weight = vector(plan.width);
  m.output_norm_weight = vector(outputs), m.output_norm_bias = vector(outputs);
}

void carve(Carver& carver, const DncPlan& plan, DncColumn& c) {
  const auto vector = [&](int64_t size) { return carver.take<float>(size); };
  c.h = vector(plan.hidden), c.c = vector(plan.hidden);
  c.memory = vector(plan.slots * plan.sizes.width);
  c.reads = vector(plan.padded(plan.reads) + plan.lanes);
  c.mean = vector(plan.slots), c.scale = vector(plan.slots), c.written = vector(plan.slots);
  if (plan.paper) return;
  c.usage = vector(plan.slots), c.precedence = vector(plan.slots);
  c.link = vector(plan.sizes.slots * plan.slots);
  c.read = vector(plan.sizes.heads * plan.slots);
  c.order = carver.take<int32_t>(plan.sizes.slots);
}

void carve(Carver& carver, const DncPlan& plan, const DncKernels& isa, DncScratch& s) {
  const DncSizes& z = plan.sizes;
  const auto floats = [&](int64_t size) { return carver.take<float>(size); };
  int64_t most_columns = 0, most_groups = 0, longest = plan.slots;
  for (int product = 0; product < kDncProducts; ++product) {
    const DncMatrix& m = plan.products[product];
    s.words[product] = carver.take<uint32_t>(m.rows * m.words);
    most_columns = std::max(most_columns, m.columns);
    most_groups = std::max(most_groups, m.groups);
    longest = std::max(longest, m.rows + plan.lanes);
  }
  s.signs = carver.take<uint8_t>(isa.sign_bytes(most_columns));
  for (int sign = 0; sign < plan.args->num_signs; ++sign) carve(carver, plan, s.members[sign]);
  for (int i = 0; i < plan.group_sequences * plan.args->num_signs; ++i) carve(carver, plan, s.columns[i]);
  s.embedded = floats(kMostColumns * plan.stride(kInputProduct));
  s.pre = floats(plan.chunk_positions * 4 * plan.hidden);
  s.token_mean = floats(plan.chunk_positions);
  s.token_squares = floats(plan.chunk_positions);
  s.outputs = floats(plan.chunk_positions * plan.stride(kOutputProduct));
  s.step_input = floats(kMostColumns * plan.stride(kRecurrentProduct));
  s.hidden_input = floats(kMostColumns * plan.stride(kInterfaceProduct));
  s.interface = floats(kMostColumns * plan.products[kInterfaceProduct].rows);
  s.logits = floats(kMostColumns * plan.products[kOutputProduct].rows);
  s.tables = floats(kMostColumns * most_groups << isa.group);
  s.keys = floats(z.heads * plan.width);
  s.scores = floats(z.heads * plan.slots);
  s.forward = floats(2 * z.heads * plan.slots);
  s.row = floats(longest);
}

}  // namespace

AlignedBytes::AlignedBytes(int64_t bytes) {
  const size_t size = static_cast<size_t>(round_up(std::max<int64_t>(bytes, 1), kAlignment));
  data.reset(static_cast<char*>(std::aligned_alloc(kAlignment, size)));
  if (!data) throw std::bad_alloc();
  std::memset(data.get(), 0, size);
}

OwnedDncPlan::OwnedDncPlan(const DncArgs& a, const DncKernels& isa) : DncPlan{} {
  check_range(a);
  args = &a;
  lanes = isa.lanes;
  paper = a.model == DncModel::kPaper;
  sizes = a.sizes;
  hidden = padded(sizes.hidden), width = padded(sizes.width), slots = padded(sizes.slots);
  embed = padded(sizes.embed);
  reads = sizes.heads * sizes.width;
  blocks = slots / lanes;
  chunk_positions = kChunkPositions;
  group_sequences = std::min<int64_t>(kMostColumns / a.num_signs, a.batch_size);

  const int64_t inputs = sizes.embed + reads + sizes.hidden;
  const std::vector<int64_t> gates(4, sizes.hidden);
  place_rows(kInputProduct, gates);
  place_rows(kRecurrentProduct, gates);
  place_interface();
  place_rows(kOutputProduct, {sizes.vocab});
  place_columns(kInputProduct, a.controller_weight, inputs, 0, sizes.embed, isa.group);
  place_columns(kRecurrentProduct, a.controller_weight, inputs, sizes.embed, reads + sizes.hidden, isa.group);
  place_columns(kInterfaceProduct, a.interface_weight, sizes.hidden, 0, sizes.hidden, isa.group);
  place_columns(kOutputProduct, a.output_weight, sizes.hidden + reads, 0, sizes.hidden + reads, isa.group);

  Carver count(nullptr);
  DncColumn none = {};
  carve(count, *this, none);
  column_bytes = count.bytes();
  lay_out(isa);
}

// Parts of a weight's rows, in order, each padded to whole vectors.
void OwnedDncPlan::place_rows(DncProduct product, const std::vector<int64_t>& parts) {
  std::vector<int32_t>& source = source_[product];
  int32_t row = 0;
  for (const int64_t part : parts) {
    for (int64_t i = 0; i < padded(part); ++i) source.push_back(i < part ? row++ : -1);
  }
}

void OwnedDncPlan::place_interface() {
  const int64_t W = sizes.width, R = sizes.heads;
  std::vector<int32_t>& source = source_[kInterfaceProduct];
  const auto place = [&](int64_t first, int64_t count) {
    const int64_t at = static_cast<int64_t>(source.size());
    for (int64_t i = 0; i < padded(count); ++i) source.push_back(i < count ? static_cast<int32_t>(first + i) : -1);
    return at;
  };
  interface.read_keys = 0;
  for (int64_t r = 0; r < R; ++r) place(r * W, W);
  if (paper) {  // read keys, write key, write strength, erase, write
    interface.write_key = place(R * W, W);
    interface.erase = place(R * W + W + 1, W);
    interface.write = place(R * W + 2 * W + 1, W);
    interface.scalars = place(R * W + W, 1);
    return;
  }
  // Read keys, read strengths, write key, write strength, erase, write, free gates, two gates, read modes.
  const int64_t key = R * W + R, erase = key + W + 1, gates = erase + 2 * W;
  interface.write_key = place(key, W);
  interface.erase = place(erase, W);
  interface.write = place(erase + W, W);
  interface.scalars = static_cast<int64_t>(source.size());
  for (int64_t i = 0; i < R; ++i) source.push_back(static_cast<int32_t>(R * W + i));
  source.push_back(static_cast<int32_t>(key + W));
  for (int64_t i = 0; i < 4 * R + 2; ++i) source.push_back(static_cast<int32_t>(gates + i));
  source.resize(static_cast<size_t>(padded(static_cast<int64_t>(source.size()))), -1);
}

void OwnedDncPlan::place_columns(DncProduct product, const Parameter& parameter, int64_t row_stride, int64_t first,
                                 int64_t count, int group) {
  DncMatrix& m = products[product];
  for (const int32_t row : source_[product]) kept_[product].push_back(row < 0 ? 0u : ~0u);
  m.parameter = &parameter;
  m.row_stride = row_stride, m.first_column = first, m.columns = count;
  m.source = source_[product].data();
  m.kept = kept_[product].data();
  m.rows = static_cast<int64_t>(source_[product].size());
  m.groups = (count + group - 1) / group;
  m.depth = m.groups * group;
  m.words = (m.groups + 7) / 8;
}

void OwnedDncPlan::lay_out(const DncKernels& isa) {
  const auto take = [&](int64_t floats) {
    memory_.push_back(std::make_unique<AlignedBytes>(floats * static_cast<int64_t>(sizeof(float))));
    return reinterpret_cast<float*>(memory_.back()->data.get());
  };
  for (DncMatrix& m : products) {
    m.theta = take(m.rows * m.depth);
    isa.lay_out(*this, m, take(padded(m.columns)));
  }
  if (!args->initial_memory) return;
  float* memory = take(slots * sizes.width);
  for (int64_t n = 0; n < sizes.slots; ++n)
    for (int64_t k = 0; k < sizes.width; ++k)
      memory[(n / lanes * sizes.width + k) * lanes + n % lanes] = args->initial_memory[n * sizes.width + k];
  initial_memory = memory;
}

OwnedDncScratch::OwnedDncScratch(const OwnedDncPlan& plan, const DncKernels& isa) {
  Carver count(nullptr);
  carve(count, plan, isa, buffers);
  memory_ = std::make_unique<AlignedBytes>(count.bytes());
  Carver real(memory_->data.get());
  carve(real, plan, isa, buffers);
  buffers.probe = -1;
}

}  // namespace zo::cpu
