// Plans an evaluation: layout, chunks of steps, panels, and the rows of the token table.
#pragma once

#include <vector>

#include "kernels.h"

namespace zo::cpu {

struct OwnedPlan : Plan {
  OwnedPlan(const PopulationArgs& args, const PopulationKernels& isa);
  OwnedPlan(const OwnedPlan&) = delete;
  OwnedPlan& operator=(const OwnedPlan&) = delete;

  std::vector<Span> spans;
  int64_t max_table_rows;
  int64_t hidden_stride, cell_stride;  // from one layer's states to the next layer's

 private:
  void place_layers();
  void choose_layout(const PopulationKernels& isa);
  void choose_panels(const PopulationKernels& isa);
  void number_tokens();
  void place_targets();

  std::vector<std::vector<int64_t>> span_tokens_;
  std::vector<Layer> layers_;
  std::vector<int32_t> table_row_, own_row_, target_;
};

}  // namespace zo::cpu
