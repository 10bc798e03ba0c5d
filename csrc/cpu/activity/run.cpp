// Runs the tiles of activity perturbation on the threads.
//
// Tiles are dealt to a fixed number of groups, and each group adds up its gradients in the order of its tiles, in memory
// of its own. The groups are then added up in their order, so that the number of threads does not show.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "../parallel.h"
#include "../population/buffers.h"
#include "kernels.h"

namespace zo::cpu {
namespace {

constexpr int64_t kMostGroups = 16;
constexpr int64_t kGradientFloats = 1 << 26;  // of all groups, unless two need more
constexpr int64_t kMostChunkSteps = 16;
constexpr int64_t kChunkFloats = 1 << 18;  // of the clean member's hidden states in a chunk
constexpr int64_t kPanelFloats = 1 << 15;  // of the output projection
constexpr int64_t kErrorFloats = 1 << 20;  // of a chunk, so that logits are computed once

struct Sizes {
  int64_t table, recurrent, output_weight, output_bias;

  explicit Sizes(const ActivityPlan& plan) {
    const ActivityArgs& args = *plan.args;
    table = args.table_rows * args.num_heads * args.head_columns;
    recurrent = plan.cell.recurrent_rows * plan.hidden_size * args.head_dim;
    output_weight = args.vocab_size * plan.hidden_size;
    output_bias = args.vocab_size;
  }

  int64_t all() const { return table + recurrent + output_weight + output_bias; }
};

}  // namespace

// For `Owned` to find.
void carve(Carver& carver, const ActivityPlan& plan, ActivityBuffers& b) {
  const ActivityArgs& args = *plan.args;
  const int64_t width = plan.tile_lanes, state = plan.hidden_size * width;
  b.clean = carver.take<float>((plan.chunk_steps + 1) * state);
  b.hidden = carver.take<float>((plan.members - 1) * 2 * state);
  b.cell = carver.take<float>(plan.members * state);
  b.signs = carver.take<uint32_t>(plan.chunk_steps * args.num_seeds * 4 * plan.blocks * width);
  b.differences = carver.take<float>(args.num_seeds * args.num_steps * width);
  b.logsumexp = carver.take<float>((plan.reads_twice ? args.num_steps : plan.chunk_steps) * width);
  b.pre = carver.take<float>(width * 16);
  b.products = carver.take<float>(plan.panel_rows * width);
  b.errors = carver.take<float>(plan.chunk_steps * plan.error_rows * width);
  b.local = carver.take<float>(args.local_gradient ? plan.chunk_steps * plan.units * width : 0);
  b.outer = carver.take<float>(args.local_gradient ? state : 0);
  b.deltas = carver.take<float>(plan.chunk_steps * args.head_columns * width);
  b.losses = carver.take<float>(plan.members * width);
  b.row_of_lanes = carver.take<float>(3 * width);
}

void carve(Carver& carver, const ActivityPlan& plan, ActivitySums& sums) {
  const Sizes sizes(plan);
  sums.nats = carver.take<double>(plan.members);
  sums.table = carver.take<float>(sizes.table);
  sums.recurrent = carver.take<float>(sizes.recurrent);
  sums.output_weight = carver.take<float>(sizes.output_weight);
  sums.output_bias = carver.take<float>(sizes.output_bias);
}

namespace {

using Group = Owned<ActivitySums, ActivityPlan>;

std::unique_ptr<Group> make_group(const ActivityPlan& plan) {
  const Sizes sizes(plan);
  auto group = std::make_unique<Group>(plan);
  const ActivitySums& sums = group->buffers;
  std::fill_n(sums.nats, plan.members, 0.0);
  std::fill_n(sums.table, sizes.table, 0.0f);
  std::fill_n(sums.recurrent, sizes.recurrent, 0.0f);
  std::fill_n(sums.output_weight, sizes.output_weight, 0.0f);
  std::fill_n(sums.output_bias, sizes.output_bias, 0.0f);
  return group;
}

std::vector<float> columns_of_output(const ActivityArgs& args, int64_t hidden_size) {
  std::vector<float> columns(static_cast<size_t>(hidden_size * args.vocab_size));
  for (int64_t u = 0; u < hidden_size; ++u)
    for (int64_t v = 0; v < args.vocab_size; ++v)
      columns[static_cast<size_t>(u * args.vocab_size + v)] = args.output_weight[v * hidden_size + u];
  return columns;
}

// to[i] = the sum over the groups, in their order, of element i of a member of their sums.
void add_up(const std::vector<std::unique_ptr<Group>>& groups, float* ActivitySums::*member, int64_t count, float* to) {
  constexpr int64_t block = 1 << 10;
  parallel_for((count + block - 1) / block, 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first * block; i < std::min(last * block, count); i += block) {
      const int64_t length = std::min(block, count - i);
      double sum[block] = {};
      for (const auto& group : groups) {
        const float* from = group->buffers.*member + i;
        for (int64_t k = 0; k < length; ++k) sum[k] += static_cast<double>(from[k]);
      }
      for (int64_t k = 0; k < length; ++k) to[i + k] = static_cast<float>(sum[k]);
    }
  });
}

}  // namespace

void perturb_activities(const ActivityArgs& args) {
  const ActivityKernels& isa = *kernels().activity;
  ActivityPlan plan = {};
  plan.args = &args;
  plan.cell = cell_shape(args.cell);
  plan.tile_lanes = isa.tile_lanes;
  plan.hidden_size = args.num_heads * args.head_dim;
  plan.members = 1 + 2 * args.num_seeds;
  plan.units = plan.hidden_size * plan.cell.rows;
  plan.blocks = (plan.units + kBlockSigns - 1) / kBlockSigns;
  plan.chunk_steps = std::clamp<int64_t>(kChunkFloats / (plan.hidden_size * isa.tile_lanes), 2, kMostChunkSteps);
  plan.panel_rows = std::min(args.vocab_size, std::max<int64_t>(kPanelFloats / plan.hidden_size, 16));
  plan.reads_twice = args.num_seeds > 0 && args.num_steps > plan.chunk_steps;
  const bool fits = plan.chunk_steps * args.vocab_size * isa.tile_lanes <= kErrorFloats;
  plan.keeps_errors = fits && (args.local_gradient || !plan.reads_twice);
  plan.error_rows = plan.keeps_errors ? args.vocab_size : plan.panel_rows;
  const int64_t H = plan.hidden_size;
  const std::vector<float> output_columns = args.local_gradient ? columns_of_output(args, H) : std::vector<float>();
  plan.output_columns = output_columns.data();
  const int64_t tiles = (args.batch_size + isa.tile_lanes - 1) / isa.tile_lanes;
  const Sizes sizes(plan);
  const int64_t count = std::min({tiles, kMostGroups, std::max<int64_t>(kGradientFloats / sizes.all(), 2)});
  std::vector<std::unique_ptr<Group>> groups;
  for (int64_t i = 0; i < count; ++i) groups.push_back(make_group(plan));
  Pool<ActivityBuffers, ActivityPlan> pool(plan);
  pool.reserve(std::min<int64_t>(count, max_threads()));
  parallel_for(count, 1, [&](int64_t first, int64_t last) {
    auto owned = pool.take();
    for (int64_t g = first; g < last; ++g)
      for (int64_t tile = g; tile < tiles; tile += count)
        isa.run_tile(plan, owned->buffers, groups[static_cast<size_t>(g)]->buffers, tile);
    pool.give_back(std::move(owned));
  });
  for (int64_t m = 0; m < plan.members; ++m) {
    args.nats[m] = 0.0;
    for (const auto& group : groups) args.nats[m] += group->buffers.nats[m];
  }
  add_up(groups, &ActivitySums::table, sizes.table, args.table_gradient);
  add_up(groups, &ActivitySums::recurrent, sizes.recurrent, args.recurrent_gradient);
  add_up(groups, &ActivitySums::output_weight, sizes.output_weight, args.output_weight_gradient);
  add_up(groups, &ActivitySums::output_bias, sizes.output_bias, args.output_bias_gradient);
}

void multiply(const MatrixProduct& product) {
  const ActivityKernels& isa = *kernels().activity;
  parallel_for(product.rows, 8, [&](int64_t first, int64_t last) { isa.multiply_rows(product, first, last); });
}

}  // namespace zo::cpu
