#include "parallel.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <exception>

namespace zo::cpu {
namespace {

struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*max_threads)();
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
                     look_up(omp.in_parallel, "omp_in_parallel");
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
  int64_t chunk;
  std::atomic<int64_t> next;
  RangeBody body;
  void* context;
  std::atomic<bool> has_failed;
  std::exception_ptr error;  // of the thread that was first to set has_failed
};

// Runs on every thread and takes chunks until none is left, or one has failed. So a thread on a busy core delays one
// chunk, not its whole share. No exception may leave an OpenMP region: the other threads still use the job, which is on
// the caller's stack.
void run_chunks(void* argument) noexcept {
  Job& job = *static_cast<Job*>(argument);
  const DefaultFloatEnvironment environment;
  try {
    while (!job.has_failed.load(std::memory_order_relaxed)) {
      const int64_t first = job.next.fetch_add(job.chunk, std::memory_order_relaxed);
      if (first >= job.count) return;
      job.body(job.context, first, std::min(first + job.chunk, job.count));
    }
  } catch (...) {
    if (!job.has_failed.exchange(true)) job.error = std::current_exception();
  }
}

constexpr int64_t kChunksPerThread = 16;

}  // namespace

void parallel_for(int64_t count, int64_t grain, RangeBody body, void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t threads = std::min<int64_t>(max_threads(), count / grain);
  const bool alone = threads <= 1 || openmp()->in_parallel();
  const int64_t chunk = alone ? count : std::max(grain, count / (threads * kChunksPerThread));
  Job job = {count, chunk, {0}, body, context, {false}, nullptr};
  if (alone)
    run_chunks(&job);
  else
    openmp()->parallel(run_chunks, &job, static_cast<unsigned>(threads), 0);
  if (job.error) std::rethrow_exception(job.error);
}

int max_threads() { return openmp() ? openmp()->max_threads() : 1; }

bool has_openmp() { return openmp() != nullptr; }

}  // namespace zo::cpu
