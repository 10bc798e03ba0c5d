#include <cuda_runtime.h>

#include <stdexcept>

#include "device.h"
#include "runtime.h"

namespace zo::cuda {
namespace {

// Compiled for the architectures of all the others.
__global__ void trial_kernel() {}

std::string toolkit() {
  return "CUDA " + std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

}  // namespace

std::string build_description() { return toolkit() + ", architectures " ZO_CUDA_ARCHITECTURES; }

std::string device_description() {
  int device = 0;
  cudaDeviceProp properties;
  check(cudaGetDevice(&device), "no CUDA device");
  check(cudaGetDeviceProperties(&properties, device), "no CUDA device");
  return properties.name;
}

std::string device_problem(int device) {
  int before = 0;
  cudaFuncAttributes attributes;
  cudaError_t status = cudaGetDevice(&before);
  if (status == cudaSuccess) status = cudaSetDevice(device);
  if (status == cudaSuccess) {
    status = cudaFuncGetAttributes(&attributes, trial_kernel);
    cudaSetDevice(before);
  }
  cudaGetLastError();  // clear the error, or the next launch would report it
  cudaDeviceProp gpu;
  switch (status) {
    case cudaSuccess: return "";
    case cudaErrorInsufficientDriver:
    case cudaErrorUnsupportedPtxVersion:
      return "the NVIDIA driver is older than " + toolkit() +
             ", which zo_kernels was built with: update the driver, or build zo_kernels with an older nvcc";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:  // the same, by some versions
      if (cudaGetDeviceProperties(&gpu, device) != cudaSuccess) break;
      return std::string(gpu.name) + " has compute capability " + std::to_string(gpu.major) + "." +
             std::to_string(gpu.minor) +
             (gpu.major < 8 ? std::string(", and the kernels need 8.0 or newer")
                            : ", and zo_kernels was built for " ZO_CUDA_ARCHITECTURES ": build it with CUDAARCHS=" +
                                  std::to_string(10 * gpu.major + gpu.minor));
    default: break;
  }
  return std::string("its kernels can't be loaded (") + cudaGetErrorString(status) + ")";
}

}  // namespace zo::cuda
