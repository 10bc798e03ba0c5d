// Says what the CUDA part of this build can do on this machine. Without nvcc, none.cpp replaces device.cu.
#pragma once

#include <string>

namespace zo::cuda {

// "" where the build had no CUDA compiler, otherwise the toolkit and the architectures compiled for.
std::string build_description();

// The name of the current device; throws std::runtime_error that says what is missing.
std::string device_description();

// Why this build's kernels can't run on a device, and what to do; "" if they can. Loads a kernel, and so makes a context
// on the device.
std::string device_problem(int device);

}  // namespace zo::cuda
