#include <cuda_runtime.h>

#include <stdexcept>

#include "device.h"

namespace zo::cuda {

std::string build_description() {
  return "CUDA " + std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10) +
         ", architectures " ZO_CUDA_ARCHITECTURES;
}

std::string device_description() {
  int device = 0;
  cudaDeviceProp properties;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaGetDeviceProperties(&properties, device);
  if (status != cudaSuccess) {
    cudaGetLastError();  // clear the error, or the next launch would report it
    throw std::runtime_error(std::string("no CUDA device: ") + cudaGetErrorString(status));
  }
  return properties.name;
}

}  // namespace zo::cuda
