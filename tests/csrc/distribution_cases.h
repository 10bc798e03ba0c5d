// What the tests of the CPU's and the CUDA kernels for probes of any distribution go through.
#pragma once

#include "types.h"

namespace zo_tests {

inline const zo::Distribution kDistributions[] = {{zo::kStreamNormal, 0},
                                                  {zo::kStreamUniform, 0},
                                                  {zo::kStreamRademacher, 0},
                                                  {zo::kStreamRademacher, 1},
                                                  {zo::kStreamRademacher, 16}};

// None of its options, then each, then all, with 16-bit types rounded at random in every other turn.
inline zo::Update update_of_turn(int turn) {
  zo::Update update;
  update.has_undo = turn % 4 == 1 || turn % 4 == 3;
  update.undo = {-0.3, 17};
  update.decay = turn % 4 >= 2 ? 0.99 : 1.0;
  update.grid = turn % 3 == 2 ? 0x1p-20 : 0.0;
  update.rounds_at_random = turn % 2 == 1;
  update.rounding_seed = 0xfedcba9876543210u + static_cast<uint64_t>(turn);
  return update;
}

}  // namespace zo_tests
