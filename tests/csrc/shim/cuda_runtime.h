// As much of CUDA as csrc/cuda uses, for the host compiler: kernels run on the CPU, one thread block after the other,
// each thread a fiber that runs until it meets a barrier. Under the sanitizers this finds stray accesses; running a
// block's threads forwards and backwards finds a missing barrier, and a barrier that not all threads reach aborts.
//
// It cannot show what only the device does: its compiler's rounding (those files are compiled without contraction), its
// memory model beyond barriers, speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

// As aligned as on the device: the sanitizer reports an access that is not.
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222
};
using cudaStream_t = void*;

using std::max;
using std::min;

namespace shim {

enum class State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(256 * 1024);
  State state = State::kReady;
};

struct AlignedDelete {
  void operator()(char* block) const { ::operator delete[](block, std::align_val_t{16}); }
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  ucontext_t scheduler;
  std::function<void()> body;
  int current = 0;
  bool backwards = false;  // the order of a block's threads
  int device = 0;
  int launches = 0;
  cudaError_t error = cudaSuccess;
  cudaError_t kernel_error = cudaSuccess;  // that any kernel meets when it is loaded
  int compute_capability = 75;
  int static_shared = 0;                   // bytes, of every kernel: the host compiler does not tell
  std::map<const void*, int> allowed;      // dynamic shared memory, where a kernel was given more than without asking
  std::unique_ptr<char[], AlignedDelete> dynamic_shared;  // of exactly the size asked for
  // What the lanes of a warp show each other: two slots in turn, so that one barrier is enough.
  uint32_t exchange[2][1024][8];
  int turn[1024] = {};
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

inline dim3 thread_index, block_index, grid_size;

inline void wait(State barrier) {
  Machine& m = machine();
  Fiber& self = *m.fibers[m.current];
  self.state = barrier;
  swapcontext(&self.context, &m.scheduler);
}

inline void trampoline() {
  Machine& m = machine();
  m.body();
  m.fibers[m.current]->state = State::kDone;
}

// Shows the other lanes of the warp `count` words and returns what each lane showed.
inline const uint32_t (*exchange(const uint32_t* words, int count))[8] {
  Machine& m = machine();
  const int self = m.current, slot = m.turn[self] ^= 1;
  std::memcpy(m.exchange[slot][self], words, sizeof(uint32_t) * static_cast<size_t>(count));
  wait(State::kAtWarpBarrier);
  return m.exchange[slot] + self / 32 * 32;
}

// Frees the threads [first, last) if all of them that still run wait at `barrier`.
inline bool release(int first, int last, State barrier) {
  Machine& m = machine();
  bool waiting = false;
  for (int i = first; i < last; ++i) {
    const State state = m.fibers[i]->state;
    if (state == State::kDone) continue;
    if (state != barrier) return false;
    waiting = true;
  }
  for (int i = first; waiting && i < last; ++i)
    if (m.fibers[i]->state == barrier) m.fibers[i]->state = State::kReady;
  return waiting;
}

inline void run_block(int threads) {
  Machine& m = machine();
  for (int i = 0; i < threads; ++i) {
    if (i == static_cast<int>(m.fibers.size())) m.fibers.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *m.fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &m.scheduler;
    fiber.state = State::kReady;
    m.turn[i] = 0;
    makecontext(&fiber.context, trampoline, 0);
  }
  for (;;) {
    bool ran = false;
    for (int k = 0; k < threads; ++k) {
      const int i = m.backwards ? threads - 1 - k : k;
      if (m.fibers[i]->state != State::kReady) continue;
      ran = true;
      m.current = i;
      thread_index = dim3(static_cast<unsigned>(i), 0, 0);
      swapcontext(&m.scheduler, &m.fibers[i]->context);
    }
    if (ran) continue;
    bool released = release(0, threads, State::kAtBlockBarrier);
    for (int warp = 0; warp < threads; warp += 32) released |= release(warp, warp + 32, State::kAtWarpBarrier);
    if (released) continue;
    for (int i = 0; i < threads; ++i)
      if (m.fibers[i]->state != State::kDone) {
        std::fprintf(stderr, "thread %d of block (%u, %u) waits at a barrier that others never reach\n", i,
                     block_index.x, block_index.y);
        std::abort();
      }
    return;
  }
}

}  // namespace shim

#define threadIdx shim::thread_index
#define blockIdx shim::block_index
#define gridDim shim::grid_size

template <class... Parameters, class... Args>
void run_kernel(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, const Args&... args) {
  shim::Machine& m = shim::machine();
  const auto allowed = m.allowed.find(reinterpret_cast<const void*>(kernel));
  const int most = allowed == m.allowed.end() ? 48 * 1024 - m.static_shared : allowed->second;
  if (shared_bytes > most) {
    m.error = cudaErrorInvalidValue;
    return;
  }
  ++m.launches;
  m.dynamic_shared.reset(new (std::align_val_t{16}) char[static_cast<size_t>(shared_bytes)]);
  m.body = [&] { kernel(args...); };
  shim::grid_size = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        shim::block_index = dim3(x, y, z);
        shim::run_block(threads);
      }
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = shim::machine().error;
  shim::machine().error = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the shim"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = shim::machine().device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device > 1) return cudaErrorInvalidDevice;
  shim::machine().device = device;
  return cudaSuccess;
}

inline void __syncwarp() { shim::wait(shim::State::kAtWarpBarrier); }
inline void __syncthreads() { shim::wait(shim::State::kAtBlockBarrier); }

inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline int __float_as_int(float value) {
  int bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline double __longlong_as_double(int64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline int64_t __double_as_longlong(double value) {
  int64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fsqrt_rn(float value) { return std::sqrt(value); }
inline float __double2float_rn(double value) { return static_cast<float>(value); }
inline float __int2float_rn(int value) { return static_cast<float>(value); }
inline double __int2double_rn(int value) { return value; }

// PRMT: each nibble of the selector picks a byte of (b, a); its top bit asks for copies of that byte's sign.
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 15u, byte = bytes >> (8 * (nibble & 7u)) & 255u;
    result |= (nibble & 8u ? (byte & 128u ? 255u : 0u) : byte) << (8 * i);
  }
  return result;
}

inline void __stwb(uint4* to, uint4 value) { *to = value; }
inline uint32_t __shfl_xor_sync(uint32_t, uint32_t value, int mask) {
  const int lane = shim::machine().current % 32;
  return shim::exchange(&value, 1)[lane ^ mask][0];
}
inline uint32_t __shfl_sync(uint32_t, uint32_t value, int lane) { return shim::exchange(&value, 1)[lane][0]; }
inline uint32_t __reduce_and_sync(uint32_t, uint32_t value) {
  const uint32_t(*shown)[8] = shim::exchange(&value, 1);
  for (int lane = 0; lane < 32; ++lane) value &= shown[lane][0];
  return value;
}
inline float __shfl_xor_sync(uint32_t all, float value, int mask) {
  return __int_as_float(static_cast<int>(__shfl_xor_sync(all, static_cast<uint32_t>(__float_as_int(value)), mask)));
}

inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

// The device is an H100 (sm_90): it has 227 KB for a thread block that asks. It has as many multiprocessors as a test
// wants.
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMultiProcessorCount
};
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  switch (which) {
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 * 1024; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 * 1024; break;
    case cudaDevAttrMultiProcessorCount: *value = 3;
  }
  return cudaSuccess;
}
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};
template <class... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(Parameters...)) {
  attributes->sharedSizeBytes = static_cast<size_t>(shim::machine().static_shared);
  return shim::machine().kernel_error;
}
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  shim::Machine& m = shim::machine();
  if (bytes + m.static_shared > 227 * 1024) return cudaErrorInvalidValue;
  m.allowed[reinterpret_cast<const void*>(kernel)] = bytes;
  return cudaSuccess;
}

#define CUDART_VERSION 13000
struct cudaDeviceProp {
  char name[256];
  int major, minor;
};
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device > 1) return cudaErrorInvalidDevice;
  *properties = {"a GPU of the shim", shim::machine().compute_capability / 10, shim::machine().compute_capability % 10};
  return cudaSuccess;
}
