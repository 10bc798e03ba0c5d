// Runs the CPU kernels on the threads of torch's own OpenMP runtime.
//
// Two OpenMP runtimes in one process compete for the cores (a torch op goes from microseconds to milliseconds), so this
// library links none: it looks up GOMP_parallel and omp_get_* in the process. So loops follow torch.set_num_threads for
// the calling thread, as torch's own loops do. Without a runtime they run on the calling thread.
#pragma once

#include <cstdint>

namespace zo::cpu {

using RangeBody = void (*)(void* context, int64_t first, int64_t last);

// Calls body on disjoint ranges that cover [0, count), on as many threads as get `grain` items each. Inside, the
// floating-point environment is the default one (round to nearest, subnormals kept). If body throws, the loop ends early
// on all threads, and the first exception is thrown here.
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
