// Runs the tiles of activity perturbation on the threads.
//
// Tiles are dealt to a fixed number of groups, and each group adds up its gradients in the order of its tiles, in memory
// of its own. The groups are then added up in their order, so that the number of threads does not show.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
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

struct Sizes {
  int64_t table, recurrent, output_weight, output_bias;
  int64_t all() const { return table + recurrent + output_weight + output_bias; }
};

void carve(Carver& carver, const ActivityPlan& plan, const Sizes& sizes, ActivityBuffers& b, ActivitySums& sums) {
  const ActivityArgs& args = *plan.args;
  const int64_t width = plan.tile_lanes, state = plan.hidden_size * width;
  b.clean = carver.take<float>((plan.chunk_steps + 1) * state);
  b.hidden = carver.take<float>((plan.members - 1) * 2 * state);
  b.cell = carver.take<float>(plan.members * state);
  b.signs = carver.take<uint32_t>(plan.chunk_steps * args.num_seeds * 4 * plan.blocks * width);
  b.differences = carver.take<float>(args.num_seeds * args.num_steps * width);
  b.logsumexp = carver.take<float>(args.num_steps * width);
  b.pre = carver.take<float>(width * 16);
  b.products = carver.take<float>(plan.panel_rows * width);
  b.errors = carver.take<float>(plan.chunk_steps * plan.panel_rows * width);
  b.deltas = carver.take<float>(plan.chunk_steps * args.head_columns * width);
  b.losses = carver.take<float>(plan.members * width);
  b.row_of_lanes = carver.take<float>(5 * width);
  sums.nats = carver.take<double>(plan.members);
  sums.table = carver.take<float>(sizes.table);
  sums.recurrent = carver.take<float>(sizes.recurrent);
  sums.output_weight = carver.take<float>(sizes.output_weight);
  sums.output_bias = carver.take<float>(sizes.output_bias);
}

class Group {
 public:
  Group(const ActivityPlan& plan, const Sizes& sizes) {
    Carver count(nullptr);
    carve(count, plan, sizes, buffers, sums);
    memory_.reset(static_cast<char*>(std::aligned_alloc(kAlignment, static_cast<size_t>(count.bytes()))));
    if (!memory_) throw std::bad_alloc();
    Carver real(memory_.get());
    carve(real, plan, sizes, buffers, sums);
    std::fill_n(sums.nats, plan.members, 0.0);
    std::fill_n(sums.table, sizes.table, 0.0f);
    std::fill_n(sums.recurrent, sizes.recurrent, 0.0f);
    std::fill_n(sums.output_weight, sizes.output_weight, 0.0f);
    std::fill_n(sums.output_bias, sizes.output_bias, 0.0f);
  }

  ActivityBuffers buffers;
  ActivitySums sums;

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> memory_;
};

// to[i] = the sum over the groups of their element i.
template <class Pick>
void add_up(const std::vector<std::unique_ptr<Group>>& groups, int64_t count, float* to, Pick pick) {
  for (int64_t i = 0; i < count; ++i) {
    double sum = 0.0;
    for (const auto& group : groups) sum += static_cast<double>(pick(group->sums)[i]);
    to[i] = static_cast<float>(sum);
  }
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
  const int64_t H = plan.hidden_size;
  const Sizes sizes = {args.table_rows * args.num_heads * args.head_columns,
                       plan.cell.recurrent_rows * H * args.head_dim, args.vocab_size * H, args.vocab_size};
  const int64_t tiles = (args.batch_size + isa.tile_lanes - 1) / isa.tile_lanes;
  const int64_t count = std::min({tiles, kMostGroups, std::max<int64_t>(kGradientFloats / sizes.all(), 2)});
  std::vector<std::unique_ptr<Group>> groups;
  for (int64_t i = 0; i < count; ++i) groups.push_back(std::make_unique<Group>(plan, sizes));
  parallel_for(count, 1, [&](int64_t first, int64_t last) {
    for (int64_t g = first; g < last; ++g)
      for (int64_t tile = g; tile < tiles; tile += count)
        isa.run_tile(plan, groups[static_cast<size_t>(g)]->buffers, groups[static_cast<size_t>(g)]->sums, tile);
  });
  for (int64_t m = 0; m < plan.members; ++m) {
    args.nats[m] = 0.0;
    for (const auto& group : groups) args.nats[m] += group->sums.nats[m];
  }
  add_up(groups, sizes.table, args.table_gradient, [](const ActivitySums& s) { return s.table; });
  add_up(groups, sizes.recurrent, args.recurrent_gradient, [](const ActivitySums& s) { return s.recurrent; });
  add_up(groups, sizes.output_weight, args.output_weight_gradient, [](const ActivitySums& s) { return s.output_weight; });
  add_up(groups, sizes.output_bias, args.output_bias_gradient, [](const ActivitySums& s) { return s.output_bias; });
}

void multiply(const MatrixProduct& product) {
  const ActivityKernels& isa = *kernels().activity;
  parallel_for(product.rows, 8, [&](int64_t first, int64_t last) { isa.multiply_rows(product, first, last); });
}

}  // namespace zo::cpu
