// Helpers of all launchers: make the queue's device current, launch, and check for errors.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "launch.h"

namespace zo::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clear the error, or the next launch would report it
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Makes a device current for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "no CUDA device");
    if (device == before_) return;
    check(cudaSetDevice(device), "cudaSetDevice");
    moved_ = true;
  }
  ~DeviceGuard() {
    if (moved_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool moved_ = false;
};

// Lets a kernel have so much dynamic shared memory: beyond 48 KB, together with what it declares, only on request.
template <class Kernel>
void allow_shared(const char* what, Kernel* kernel, int shared_bytes) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (shared_bytes == 0) return;
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), what);
  if (attributes.sharedSizeBytes + static_cast<size_t>(shared_bytes) > kWithoutAsking)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), what);
}

// The tests build these files with the host compiler, whose cuda_runtime.h has run_kernel instead of <<<>>>.
template <class... Parameters, class... Args>
void launch(const char* what, void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, Queue queue,
            Args&&... args) {
  const DeviceGuard guard(queue.device);
  allow_shared(what, kernel, shared_bytes);
#if defined(__CUDACC__)
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(queue.stream)>>>(args...);
#else
  run_kernel(kernel, grid, threads, shared_bytes, args...);
#endif
  check(cudaGetLastError(), what);
}

}  // namespace zo::cuda
