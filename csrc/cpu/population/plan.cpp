#include "plan.h"

#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

namespace zo::cpu {
namespace {

// Sizes that were measured to work well (bench/NOTES.md). Only kOutputPanelFloats and the choice of the layout affect
// the results, by the rounding of sums.
constexpr int64_t kWidePositions = 1024;          // of a chunk
constexpr int64_t kNarrowPositions = 256;
constexpr int64_t kResidentPanelFloats = 1 << 20;  // recurrent weights of a head that are held for a whole chunk
constexpr int64_t kRecurrentPanelFloats = 1 << 16;
constexpr int64_t kInputPanelFloats = 1 << 14;
constexpr int64_t kOutputPanelFloats = 1 << 15;
constexpr int64_t kTableFloats = 1 << 22;
constexpr int64_t kLiftedFloats = 1 << 24;

// Recurrent weights of the heads that take a step in turn: two thirds of the first cache.
int64_t first_cache_floats() {
  long bytes = 0;
#ifdef _SC_LEVEL1_DCACHE_SIZE
  bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#endif
  return (bytes > 0 ? bytes : 32 << 10) / 6;
}

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// One past the last step of which a target is scored.
int64_t scored_steps(const PopulationArgs& args) {
  int64_t steps = 0;
  for (int64_t b = 0; args.targets && b < args.batch_size; ++b) {
    const int64_t* targets = args.targets + b * args.num_steps;
    for (int64_t t = args.num_steps - 1; t >= steps; --t)
      if (targets[t] >= 0) {
        steps = t + 1;
        break;
      }
  }
  return steps;
}

}  // namespace

OwnedPlan::OwnedPlan(const PopulationArgs& a, const PopulationKernels& isa) : Plan{}, max_table_rows(0) {
  args = &a;
  cell = cell_shape(a.cell);
  hidden_size = a.num_heads * a.head_dim;
  num_steps = a.h || a.logits ? a.num_steps : scored_steps(a);
  place_layers();
  choose_layout(isa);
  choose_panels(isa);
  number_tokens();
  place_targets();
}

void OwnedPlan::place_layers() {
  layers_.push_back({0, args->input_weight, args->recurrent_weight, args->bias, 0, 0, 0});
  for (int64_t above = 0; above + 1 < args->num_layers; ++above)
    layers_.push_back({above + 1, args->upper_input_weight, args->upper_recurrent_weight, args->upper_bias,
                       above * cell.input_rows * hidden_size * hidden_size,
                       above * cell.recurrent_rows * hidden_size * args->head_dim, above * cell.rows * hidden_size});
  layers = layers_.data();
}

void OwnedPlan::choose_layout(const PopulationKernels& isa) {
  lanes = isa.lanes;
  tile_lanes = isa.tile_lanes;
  depth = isa.depth;
  head_words = (args->head_dim + depth - 1) / depth;
  has_cell = cell.has_cell_state || (depth > 1 && args->cell == Cell::kGru);
  wide = args->batch_size > lanes * 3 / 4;  // from where a tile of sequences, not all of them real, is faster
  padded_dim = padded(args->head_dim);
  if (wide) {
    const int64_t full = args->batch_size / tile_lanes * tile_lanes;
    batch_lanes = full + (full < args->batch_size ? width(args->batch_size - full) : 0);
    head_columns = padded(args->head_dim * cell.rows);
  } else {
    batch_lanes = args->batch_size;
    head_columns = padded_dim * cell.rows;
  }
  delivers = args->layer_norm || args->residual || (!wide && args->num_layers > 1);
  int64_t positions = wide ? kWidePositions : kNarrowPositions;
  if (args->num_layers > 1) positions = std::clamp<int64_t>(kLiftedFloats / table_stride(), 1, positions);
  // At least two, so that a step does not overwrite the one before.
  chunk_steps = std::min(std::max<int64_t>(positions / batch_lanes, 2), std::max<int64_t>(num_steps, 1));
  num_chunks = (num_steps + chunk_steps - 1) / chunk_steps;
  chunk_blocks = wide ? chunk_steps * tiles() : (chunk_steps * batch_lanes + tile_lanes - 1) / tile_lanes;
  own_row_.resize(static_cast<size_t>(chunk_steps * batch_lanes));
  std::iota(own_row_.begin(), own_row_.end(), 0);
  own_row = own_row_.data();
  // In the narrow layout whole blocks of positions are read, which may reach beyond the last.
  const int64_t beyond = wide ? 0 : (tile_lanes + 1) * args->num_heads * padded_words() + lanes;
  hidden_stride = round_up((chunk_steps + 1) * slot_size() + beyond, kAlignedFloats);
  cell_stride = has_cell ? round_up(cell_size(), kAlignedFloats) : 0;
}

void OwnedPlan::choose_panels(const PopulationKernels& isa) {
  const int64_t unit_floats = cell.recurrent_rows * args->head_dim;
  panel_units = args->head_dim;
  if (unit_floats * padded_dim > kResidentPanelFloats)
    panel_units = std::max<int64_t>(kRecurrentPanelFloats / unit_floats / lanes, 1) * lanes;
  const int64_t most = std::max<int64_t>(isa.row_tile, kOutputPanelFloats / hidden_size);
  const int64_t panels = (args->vocab_size + most - 1) / most;
  panel_rows = round_up((args->vocab_size + panels - 1) / panels, isa.row_tile);
  table_units = std::max<int64_t>(kInputPanelFloats / (cell.input_rows * args->embed_dim) / lanes, 1) * lanes;
  table_units = std::min(table_units, padded_dim);
  lift_units = std::max<int64_t>(kInputPanelFloats / (cell.input_rows * hidden_words()) / lanes, 1) * lanes;
  lift_units = std::min(lift_units, padded_dim);
  panel_heads = 1;
  if (!wide && panel_units == args->head_dim)
    panel_heads = std::clamp<int64_t>(first_cache_floats() / (unit_floats * padded_dim), 1, args->num_heads);
}

// Spans as long as their distinct tokens fit the table, and each position's row in the table of its span.
void OwnedPlan::number_tokens() {
  const int64_t most = std::max<int64_t>(kTableFloats / table_stride(), lanes);
  std::vector<size_t> seen_in(static_cast<size_t>(args->vocab_size), 0);  // the number of the span, from 1
  table_row_.assign(static_cast<size_t>(num_steps * batch_lanes), 0);
  const auto token_at = [&](int64_t b, int64_t t) { return args->tokens[b * args->num_steps + t]; };
  const auto tokens_new_to_span = [&](int64_t chunk) {
    std::vector<int64_t> found;
    for (int64_t t = first_step(chunk); t < last_step(chunk); ++t)
      for (int64_t b = 0; b < args->batch_size; ++b) {
        const int64_t token = token_at(b, t);
        if (token < 0 || token >= args->vocab_size) throw std::invalid_argument("a token is not in [0, V)");
        size_t& seen = seen_in[static_cast<size_t>(token)];
        if (seen == spans.size()) continue;
        seen = spans.size();
        found.push_back(token);
      }
    return found;
  };
  const auto open_span = [&](int64_t chunk) {
    spans.push_back({chunk, chunk, nullptr, 0});
    span_tokens_.emplace_back();
  };
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    if (chunk == 0) open_span(chunk);
    std::vector<int64_t> found = tokens_new_to_span(chunk);
    if (chunk > 0 && !found.empty() && static_cast<int64_t>(span_tokens_.back().size() + found.size()) > most) {
      open_span(chunk);
      found = tokens_new_to_span(chunk);
    }
    span_tokens_.back().insert(span_tokens_.back().end(), found.begin(), found.end());
    spans.back().last_chunk = chunk + 1;
  }
  std::vector<int32_t> row_of(static_cast<size_t>(args->vocab_size));
  for (size_t s = 0; s < spans.size(); ++s) {
    std::vector<int64_t>& tokens = span_tokens_[s];
    std::sort(tokens.begin(), tokens.end());
    for (size_t row = 0; row < tokens.size(); ++row)
      row_of[static_cast<size_t>(tokens[row])] = static_cast<int32_t>(row);
    for (int64_t t = first_step(spans[s].first_chunk); t < last_step(spans[s].last_chunk - 1); ++t)
      for (int64_t b = 0; b < args->batch_size; ++b)
        table_row_[static_cast<size_t>(t * batch_lanes + b)] = row_of[static_cast<size_t>(token_at(b, t))];
    spans[s].tokens = tokens.data();
    spans[s].num_rows = static_cast<int64_t>(tokens.size());
    max_table_rows = std::max(max_table_rows, spans[s].num_rows);
  }
  table_row = table_row_.data();
}

void OwnedPlan::place_targets() {
  target_.assign(static_cast<size_t>(num_steps * batch_lanes), -1);
  for (int64_t b = 0; args->targets && b < args->batch_size; ++b)
    for (int64_t t = 0; t < num_steps; ++t) {
      const int64_t target = args->targets[b * args->num_steps + t];
      if (target >= args->vocab_size) throw std::invalid_argument("a target is not in [0, V)");
      if (target >= 0) target_[static_cast<size_t>(t * batch_lanes + b)] = static_cast<int32_t>(target);
    }
  target = target_.data();
}

}  // namespace zo::cpu
