// Shares out the probes, and groups of sequences of each, among the threads.
#include <algorithm>
#include <mutex>
#include <vector>

#include "../parallel.h"
#include "plan.h"

namespace zo::cpu {

void evaluate_dnc(const DncArgs& args) {
  const DncKernels& isa = *kernels().dnc;
  const OwnedDncPlan plan(args, isa);
  const int64_t B = args.batch_size, signs = args.num_signs;
  const int64_t groups = (B + plan.group_sequences - 1) / plan.group_sequences;
  const int64_t items = args.num_seeds * groups;
  // Sums of each sequence of each member: their order must not depend on the threads.
  std::vector<double> nats(static_cast<size_t>(args.num_seeds * signs * B), 0.0);
  std::vector<int64_t> correct(args.correct ? nats.size() : 0, 0);

  // One for each thread that may run: nothing is allocated by the threads, where a failure would leave some states
  // written and others not.
  std::vector<std::unique_ptr<OwnedDncScratch>> idle;
  for (int64_t i = 0; i < std::min<int64_t>(items, max_threads()); ++i)
    idle.push_back(std::make_unique<OwnedDncScratch>(plan, isa));
  std::mutex mutex;
  parallel_for(items, 1, [&](int64_t first, int64_t last) {
    std::unique_lock<std::mutex> lock(mutex);
    std::unique_ptr<OwnedDncScratch> scratch = std::move(idle.back());
    idle.pop_back();
    lock.unlock();
    for (int64_t item = first; item < last; ++item) {
      const int64_t probe = item / groups, sequence = item % groups * plan.group_sequences;
      const size_t at = static_cast<size_t>(probe * signs * B);
      isa.run(plan, scratch->buffers, probe, sequence, std::min(plan.group_sequences, B - sequence), nats.data() + at,
              args.correct ? correct.data() + at : nullptr);
    }
    lock.lock();
    idle.push_back(std::move(scratch));
  });
  for (int64_t member = 0; member < args.num_seeds * signs; ++member) {
    const auto begin = static_cast<std::ptrdiff_t>(member * B), end = begin + static_cast<std::ptrdiff_t>(B);
    double sum = 0.0;
    for (auto i = begin; i < end; ++i) sum += nats[static_cast<size_t>(i)];
    args.nats[member] = sum;
    if (!args.correct) continue;
    args.correct[member] = 0;
    for (auto i = begin; i < end; ++i) args.correct[member] += correct[static_cast<size_t>(i)];
  }
}

}  // namespace zo::cpu
