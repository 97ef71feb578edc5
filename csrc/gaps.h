// Sorted index lists as Rice codes of their gaps. The form of a code stands in selective_kernels/gaps.py.
#pragma once

#include <cstdint>

namespace selective {

constexpr int kGapBlock = 64;            // gaps that share a parameter
constexpr int kMaxParameter = 30;        // a larger one never makes a block shorter, for gaps are below 2^31
constexpr std::int64_t kGapMargin = 16;  // bytes, see encode_gaps

// Why a code is no index list. Python has words for each, by number.
enum class GapProblem : int { none, truncated, parameter, quotients, padding, limit, left_over };

struct GapVerdict {
  GapProblem problem;
  std::int64_t block;  // where it was found, counted from 0
};

// offsets [count]: in. code: out, with room for 4 count + kGapMargin (count / kGapBlock + 1) bytes: a gap takes at most
// 31 bits, one of the list 32, and up to 8 bytes behind a block's end are written, too. Returns the code's bytes, or -1
// if the offsets are not strictly ascending from 0 on; `code` is then unspecified.
std::int64_t encode_gaps(const std::int32_t* offsets, std::int64_t count, std::uint8_t* code);

// code [length]: in, any bytes whatsoever. offsets [count]: out, strictly ascending and below `limit` (at most 2^31);
// unspecified if there is a problem.
GapVerdict decode_gaps(const std::uint8_t* code, std::int64_t length, std::int64_t count, std::int64_t limit,
                       std::int32_t* offsets);

}  // namespace selective
