// Plans an evaluation: the layout of the weights, of which it makes a copy, and the sizes of the buffers.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "../population/buffers.h"
#include "kernels.h"

namespace zo::cpu {

// A block of zeros, aligned to whole vectors. Throws std::bad_alloc.
struct AlignedBytes {
  explicit AlignedBytes(int64_t bytes);
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> data;
};

struct OwnedDncPlan : DncPlan {
  // Throws std::invalid_argument for a token or target out of range.
  OwnedDncPlan(const DncArgs& args, const DncKernels& isa);
  OwnedDncPlan(const OwnedDncPlan&) = delete;
  OwnedDncPlan& operator=(const OwnedDncPlan&) = delete;

 private:
  void place_rows(DncProduct product, const std::vector<int64_t>& sizes);
  void place_interface();
  void place_columns(DncProduct product, const Parameter& parameter, int64_t row_stride, int64_t first, int64_t count,
                     int group);
  void lay_out(const DncKernels& isa);

  std::vector<int32_t> source_[kDncProducts];
  std::vector<uint32_t> kept_[kDncProducts];
  std::vector<std::unique_ptr<AlignedBytes>> memory_;
};

// The buffers of one thread.
class OwnedDncScratch {
 public:
  OwnedDncScratch(const OwnedDncPlan& plan, const DncKernels& isa);
  DncScratch buffers = {};

 private:
  std::unique_ptr<AlignedBytes> memory_;
};

}  // namespace zo::cpu
