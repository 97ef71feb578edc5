// What threads of a warp and of a block do together.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace selective::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kWarps = 8;  // of a block of the scan's kernels
constexpr int kBlock = kWarps * kWarp;

__device__ inline int lane_of() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ inline int warp_of() { return static_cast<int>(threadIdx.x / kWarp); }

// The sum over the lanes up to this one.
template <class T>
__device__ inline T running_sum(T value) {
  for (int delta = 1; delta < kWarp; delta *= 2) {
    const T before = __shfl_up_sync(kAll, value, delta);
    if (lane_of() >= delta) value += before;
  }
  return value;
}

template <class T>
__device__ inline T warp_sum(T value) {
  for (int delta = kWarp / 2; delta > 0; delta /= 2) value += __shfl_xor_sync(kAll, value, delta);
  return value;
}

// The sum over the threads of a block up to this one; `total` receives that over all of them. room [kWarps] is shared
// and free again after the block's next barrier.
template <class T>
__device__ inline T block_running_sum(T value, T* room, T& total) {
  const T within = running_sum(value);
  if (lane_of() == kWarp - 1) room[warp_of()] = within;
  __syncthreads();
  T before = 0;
  total = 0;
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp_of()) before += room[i];
    total += room[i];
  }
  return before + within;
}

// For the whole block: whether it is the last of `blocks` that get here, and so sees what all of them have written.
__device__ inline bool is_last_block(std::uint32_t* finished, std::uint32_t blocks) {
  __threadfence();
  __syncthreads();
  int last = 0;
  if (threadIdx.x == 0) last = atomicAdd(finished, 1u) + 1 == blocks;
  last = __syncthreads_or(last);
  __threadfence();
  return last != 0;
}

}  // namespace
}  // namespace selective::cuda
