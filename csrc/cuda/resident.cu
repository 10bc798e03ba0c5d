// The resident forward: its sizes and launches. Header and model in resident.h, kernels in token_table.h, recurrence.h
// and output.h.
#include "resident.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "output.h"
#include "recurrence.h"
#include "runtime.h"
#include "token_table.h"

namespace zo::cuda {
namespace {

constexpr int64_t kOtherShared = 16 * 1024;  // more than the token table kernel has besides its signs

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "no CUDA device");
  return value;
}

int64_t table_bytes(const ResidentArgs& args) { return 2 * 4 * table_floats(args); }
int64_t output_words(const ResidentArgs& args) { return 2 * OutputShape(args).weight_words(); }

int64_t parts_of(const ResidentArgs& args, int64_t steps) {
  return (steps * args.batch_size + kPositions - 1) / kPositions;
}

unsigned blocks(int64_t items, int64_t of_a_block) {
  return static_cast<unsigned>((items + of_a_block - 1) / of_a_block);
}

void launch_recurrence(const ResidentArgs& args, const ResidentPlan& plan, Steps steps, const float* table,
                       uint32_t* hidden, Queue queue) {
  const bool small = plan.unit_tiles <= 4;
  const auto kernel = plan.table_in_shared ? (small ? &recurrence_kernel<2, true> : &recurrence_kernel<4, true>)
                                           : (small ? &recurrence_kernel<2, false> : &recurrence_kernel<4, false>);
  // Tiles of sequences share a thread block's weights and table, as long as that leaves several blocks for each place.
  const int64_t members = 2 * args.num_seeds * args.num_heads;
  const int64_t tiles = (args.batch_size + plan.sequences() - 1) / plan.sequences();
  const int64_t wanted = 16 * int64_t{attribute(cudaDevAttrMultiProcessorCount, queue.device)};
  const int64_t splits = std::min({tiles, (wanted + members - 1) / members, int64_t{65535}});
  launch("recurrence", kernel,
         dim3(static_cast<unsigned>(members), static_cast<unsigned>(splits)), plan.threads(),
         static_cast<int>(plan.shared_bytes), queue, args, plan, steps, table, hidden);
}

}  // namespace

ResidentPlan plan_resident(int64_t head_dim, int64_t num_rows, DeviceLimits limits) {
  ResidentPlan plan = {};
  if (head_dim < 1 || head_dim > 64) return plan;
  plan.unit_tiles = static_cast<int>((head_dim + 7) / 8);
  plan.groups = kMostThreads / 32 / plan.unit_tiles;
  const int64_t with_table = plan.hidden_bytes() + num_rows * plan.unit_tiles * 128;
  constexpr int64_t kOfABlock = 1024;  // of what a multiprocessor has, the system's
  plan.table_in_shared = with_table <= std::min(limits.per_block, limits.per_multiprocessor / 2 - kOfABlock);
  plan.shared_bytes = plan.table_in_shared ? with_table : plan.hidden_bytes();
  return plan;
}

int64_t most_embed_dim(DeviceLimits limits) {
  int64_t most = 0;
  for (int64_t step = int64_t{1} << 20; step > 0; step /= 2)
    if (table_shared_bytes(most + step) <= limits.per_block - kOtherShared) most += step;
  return most;
}

DeviceLimits device_limits(int device) {
  return {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device)};
}

ResidentBytes resident_bytes(const ResidentArgs& args) {
  const OutputShape shape(args);
  return {table_bytes(args) + 4 * output_words(args) + 2 * 4 * shape.tokens, 2 * 16 * shape.chunks * args.batch_size};
}

int64_t scratch_bytes(const ResidentArgs& args) {
  const ResidentBytes bytes = resident_bytes(args);
  return bytes.weights + bytes.step * args.steps_at_once;
}

int64_t num_parts(const ResidentArgs& args) {
  const int64_t whole = args.num_steps / args.steps_at_once, rest = args.num_steps % args.steps_at_once;
  return whole * parts_of(args, args.steps_at_once) + parts_of(args, rest);
}

void evaluate_resident(const ResidentArgs& args, Queue queue) {
  const DeviceLimits limits = device_limits(queue.device);
  const ResidentPlan plan = plan_resident(args.head_dim, args.num_rows, limits);
  int exponent;
  if (plan.unit_tiles == 0 || args.embed_dim > most_embed_dim(limits)) throw std::invalid_argument(kResidentLimits);
  if (args.eps != 0.0f && std::fabs(std::frexp(args.eps, &exponent)) != 0.5f)
    throw std::invalid_argument("the resident forward needs an eps that is a power of two");
  if (args.steps_at_once < args.num_steps && args.h == nullptr)
    throw std::invalid_argument("steps that are not all taken at once need states");
  if (args.num_seeds == 0) return;

  const OutputShape shape(args);
  const int64_t hidden_bytes = args.num_seeds * resident_bytes(args).step * args.steps_at_once;
  uint32_t* const hidden = reinterpret_cast<uint32_t*>(args.scratch);
  float* const table = reinterpret_cast<float*>(args.scratch + hidden_bytes);
  uint32_t* const weights = reinterpret_cast<uint32_t*>(table) + args.num_seeds * table_bytes(args) / 4;
  float* const biases = reinterpret_cast<float*>(weights + args.num_seeds * output_words(args));
  const unsigned probes = static_cast<unsigned>(args.num_seeds);
  launch("token table", &token_table_kernel,
         dim3(blocks(args.num_heads * 8 * plan.unit_tiles, kTableColumns / 4), blocks(args.num_rows, kTableRows),
              probes),
         kTableThreads, static_cast<int>(table_shared_bytes(args.embed_dim)), queue, args, table);
  launch("output weights", &output_weights_kernel, dim3(blocks(shape.padded_chunks * shape.tokens, 256), probes), 256,
         0, queue, args, weights, biases);

  const int64_t parts = num_parts(args);
  double* nats = args.nats;
  for (int64_t first = 0; first < args.num_steps; first += args.steps_at_once) {
    const Steps steps = {first, std::min(args.steps_at_once, args.num_steps - first)};
    launch_recurrence(args, plan, steps, table, hidden, queue);
    const int64_t tiles = parts_of(args, steps.count);
    const Positions positions = {hidden, args.targets + first * args.batch_size, nats, steps.count * args.batch_size,
                                 tiles, parts};
    launch("output", &output_kernel, dim3(static_cast<unsigned>(2 * args.num_seeds * tiles)), kOutputThreads,
           kOutputSharedBytes, queue, args, positions, weights, biases);
    nats += tiles;
  }
}

}  // namespace zo::cuda
