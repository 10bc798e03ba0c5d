#include "parallel.h"

#include <dlfcn.h>

#include <algorithm>
#include <cfenv>

namespace zo::cpu {
namespace {

struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*max_threads)();
  int (*thread_num)();
  int (*num_threads)();
  int (*in_parallel)();
};

template <class F>
bool look_up(F& function, const char* name) {
  function = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
  return function != nullptr;
}

const OpenMp* find_openmp() {
  static OpenMp omp;
  const bool found = look_up(omp.parallel, "GOMP_parallel") && look_up(omp.max_threads, "omp_get_max_threads") &&
                     look_up(omp.thread_num, "omp_get_thread_num") &&
                     look_up(omp.num_threads, "omp_get_num_threads") && look_up(omp.in_parallel, "omp_in_parallel");
  return found ? &omp : nullptr;
}

const OpenMp* openmp() {
  static const OpenMp* const omp = find_openmp();
  return omp;
}

// torch.set_flush_denormal and the like change the calling thread only; results must not depend on which thread made
// an element, so every thread computes in the default environment.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatEnvironment() { std::fesetenv(&saved_); }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
  std::fenv_t saved_;
};

struct Job {
  int64_t count;
  RangeBody body;
  void* context;
};

void run_range(const Job& job, int64_t first, int64_t last) {
  if (first >= last) return;
  const DefaultFloatEnvironment environment;
  job.body(job.context, first, last);
}

void run_share(void* argument) {
  const Job& job = *static_cast<const Job*>(argument);
  const int64_t threads = openmp()->num_threads(), thread = openmp()->thread_num();
  const int64_t share = job.count / threads, rest = job.count % threads;
  const int64_t first = thread * share + std::min(thread, rest);
  run_range(job, first, first + share + (thread < rest ? 1 : 0));
}

}  // namespace

void parallel_for(int64_t count, int64_t grain, RangeBody body, void* context) {
  Job job = {count, body, context};
  const int64_t wanted = std::min<int64_t>(max_threads(), count / std::max<int64_t>(grain, 1));
  if (wanted <= 1 || openmp()->in_parallel()) return run_range(job, 0, count);
  openmp()->parallel(run_share, &job, static_cast<unsigned>(wanted), 0);
}

int max_threads() { return openmp() ? openmp()->max_threads() : 1; }

bool has_openmp() { return openmp() != nullptr; }

}  // namespace zo::cpu
