// Lists of pieces for the tests of the CUDA kernels.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <vector>

#include "cuda/launch.h"
#include "scalar.h"

namespace zo_tests {

inline std::vector<Range> place(const std::vector<int64_t>& sizes, int64_t offset) {
  std::vector<Range> ranges;
  for (const int64_t numel : sizes) {
    ranges.push_back({numel, offset});
    offset += (numel + 127) / 128 * 128;
  }
  return ranges;
}

// Values in pieces that begin `lead` elements, for every third 16 - lead, behind an aligned address.
struct List {
  std::vector<Range> ranges;
  std::vector<Buffer> pieces;
  std::vector<zo::cuda::ListedPiece> rows;
  zo::cuda::PieceList list;

  List(const std::vector<Range>& where, DType type, int lead) : ranges(where) {
    int64_t tiles = 0;
    pieces.reserve(where.size());
    for (const Range& range : where) {
      pieces.emplace_back(make_values(type, range.numel), pieces.size() % 3 == 2 ? 16 - lead : lead);
      rows.push_back({pieces.back().data(), range.numel, static_cast<uint64_t>(range.offset / 128), tiles});
      tiles += (range.numel + 4095) / 4096;
    }
    list = {rows.data(), static_cast<int64_t>(rows.size()), tiles, type};
  }

  // Calls `expect(expected, range)` for each piece as it is, then `call`, and compares.
  template <class Expect, class Call>
  void compare(const std::string& what, Expect expect, Call call) {
    std::vector<Buffer> expected(pieces);
    for (size_t k = 0; k < pieces.size(); ++k) expect(k, expected[k], ranges[k]);
    const int launches = shim::machine().launches;
    call();
    CHECK(shim::machine().launches == launches + (list.num_tiles > 0));
    for (size_t k = 0; k < pieces.size(); ++k)
      CHECK_SAME(pieces[k], expected[k], what + " " + name_of(list.type) + ", piece " + std::to_string(k));
  }
};

}  // namespace zo_tests
