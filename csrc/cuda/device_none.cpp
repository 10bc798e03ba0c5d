#include <stdexcept>

#include "device.h"

namespace zo::cuda {

std::string build_description() { return ""; }

std::string device_description() {
  throw std::runtime_error("built without CUDA: no nvcc was found when zo_kernels was installed");
}

}  // namespace zo::cuda
