// One tensor of a table, as both modules get it from Python, and the sizes that their contracts share.
#pragma once

#include <cstdint>

namespace selective {

constexpr std::int32_t kTile = 4096;      // entries that a visit of the scan handles at once; tiles never straddle tensors
constexpr std::int64_t kNormBlock = 4096;  // entries per float64 partial sum of the gradient norm

// Python fills it as 7 x int64. Rows come in ascending `id`; offsets[begin:end) are the sorted flat positions in this
// tensor of the index list that travels with the table.
struct Row {
  std::uint64_t param;   // address of numel entries of dtype; aligned to the entry size
  std::uint64_t grad;    // address of numel entries of dtype, or 0 where nothing reads gradients
  std::int64_t numel;    // 0 <= numel < 2^31
  std::int64_t dtype;    // DType
  std::int64_t id;       // position of the tensor in the global order (C1)
  std::int64_t begin;    // first entry of this tensor in the index list
  std::int64_t end;      // one past its last entry
};

}  // namespace selective
