// Threads for the CPU kernels: those of torch's own OpenMP runtime.
//
// Two OpenMP runtimes in one process fight over the cores (a torch op goes from microseconds to milliseconds), so this
// library links none: GOMP_parallel and omp_get_* are looked up in the process. Loops therefore follow
// torch.set_num_threads as that runtime does, in the thread that called it; without a runtime they run on the calling
// thread.
#pragma once

#include <cstdint>

namespace zo::cpu {

using RangeBody = void (*)(void* context, int64_t first, int64_t last);

// Calls body, on as many threads as have `grain` items each, on disjoint ranges that cover [0, count). The floating-point environment is the default one (round to nearest, subnormals kept) inside.
void parallel_for(int64_t count, int64_t grain, RangeBody body, void* context);

// The same for a callable.
template <class F>
void parallel_for(int64_t count, int64_t grain, F body) {
  parallel_for(
      count, grain, [](void* f, int64_t first, int64_t last) { (*static_cast<F*>(f))(first, last); }, &body);
}

int max_threads();
bool has_openmp();

}  // namespace zo::cpu
