// Which row a line or a slot belongs to.
#pragma once

#include "scan.h"

namespace selective::cuda {
namespace {

// The last row r with spots[r].*member <= value; the totals behind the last row are above it.
__device__ inline std::int64_t find_spot(const Spot* spots, std::int64_t n, std::int64_t Spot::*member,
                                         std::int64_t value) {
  std::int64_t low = 0;
  std::int64_t high = n;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    if (spots[middle].*member <= value) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace
}  // namespace selective::cuda
