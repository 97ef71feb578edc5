// A tile's entries that may be candidates, marked by a warp: a bit for each, then their positions in ascending order.
#pragma once

#include "../convert.h"
#include "../row.h"
#include "warps.cuh"

namespace selective::cuda {
namespace {

constexpr int kWords = kTile / 32;
constexpr int kListed = 128;  // positions that are listed at once

// Of one warp, shared by its lanes.
struct Marks {
  std::uint32_t words[kWords];
  std::uint16_t list[kListed];
};

__device__ inline void clear(Marks& marks) {
  for (int i = lane_of(); i < kWords; i += kWarp) marks.words[i] = 0;
  __syncwarp();
}

// Marks those of the entries from `position` on whose bits are set in `found`, up to eight.
__device__ inline void mark(Marks& marks, int position, std::uint32_t found) {
  const int word = position / 32;
  const int shift = position % 32;
  atomicOr(&marks.words[word], found << shift);
  const std::uint32_t beyond = shift == 0 ? 0 : found >> (32 - shift);
  if (beyond != 0) atomicOr(&marks.words[word + 1], beyond);
}

__device__ inline bool is_marked(const Marks& marks, int position) {
  return (marks.words[position / 32] >> (position % 32) & 1) != 0;
}

__device__ inline void unmark(Marks& marks, int position) {
  atomicAnd(&marks.words[position / 32], ~(1u << (position % 32)));
}

__device__ inline int count(const Marks& marks) {
  int found = 0;
  for (int i = lane_of(); i < kWords; i += kWarp) found += __popc(marks.words[i]);
  return __reduce_add_sync(kAll, found);
}

// f(rank, position) for each marked entry, with neighbouring ranks at a time, in ascending order; marks that it has come
// past may be taken away meanwhile.
template <class F>
__device__ inline void for_each(Marks& marks, F&& f) {
  constexpr int mine = kWords / kWarp;  // words of a lane
  const int lane = lane_of();
  int found = 0;
  for (int i = 0; i < mine; ++i) found += __popc(marks.words[lane * mine + i]);
  const int until = running_sum(found);
  const int total = __shfl_sync(kAll, until, kWarp - 1);
  int rank = until - found;  // of this lane's next one
  int at = lane * mine;
  std::uint32_t word = marks.words[at];
  for (int base = 0; base < total; base += kListed) {
    while (rank < until && rank < base + kListed) {
      while (word == 0) word = marks.words[++at];
      marks.list[rank - base] = static_cast<std::uint16_t>(at * 32 + __ffs(static_cast<int>(word)) - 1);
      word &= word - 1;
      ++rank;
    }
    __syncwarp();
    for (int i = base + lane; i < total && i < base + kListed; i += kWarp) f(i, int{marks.list[i - base]});
    __syncwarp();
  }
}

}  // namespace
}  // namespace selective::cuda
