// One warp's look at a tile: mark what may be a candidate, by gradients alone where they suffice, drop what is selected
// already, and append what is left.
//
// A full tile at addresses that are multiples of 16 is read by 128-bit loads without a condition in between; so are
// gradients at other addresses, but for the entries before the first such address and after the last.
#pragma once

#include "marks.cuh"
#include "scan.h"
#include "scoring.cuh"

namespace selective::cuda {
namespace {

constexpr int kAhead = 4;    // 128-bit loads of a lane in flight
constexpr int kLoud = 256;   // marks of a tile; where gradients alone leave more, parameters are read as well

// 128 bits of a tensor of T.
template <class T>
constexpr int kPerVector = 16 / static_cast<int>(sizeof(T));
template <class T>
constexpr std::uint32_t kMagnitude = sizeof(T) == 4 ? 0x7fffffffu : 0x7fffu;  // all bits but the sign's

template <class T>
__device__ inline std::uint32_t bits_in(const uint4& vector, int i) {
  const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
  if constexpr (sizeof(T) == 4) {
    return words[i];
  } else {
    return i % 2 == 0 ? words[i / 2] & 0xffffu : words[i / 2] >> 16;
  }
}

// The smallest magnitude's bits in T whose value is at least `least`; those of infinity if there is none.
template <class T>
__device__ inline std::uint32_t least_bits(float least) {
  const std::uint32_t rounded = raw_bits(narrow<T>(least));
  return widen(from_raw_bits<T>(rounded)) < least ? rounded + 1 : rounded;
}
template <class T>
__device__ inline std::uint32_t infinity_bits() {
  return raw_bits(narrow<T>(float_of(kLargestBits + 1)));
}

// A tile and what is needed to score it.
template <class T>
struct Tile {
  const T* grad;   // of its first entry
  const T* param;
  std::int32_t first;  // offset of its first entry in its tensor
  std::int32_t size;
  std::uint64_t salt;
};

template <class T, Kind K>
__device__ inline std::uint32_t score_bits_of(const Tile<T>& tile, int i, const Filter& f) {
  const float grad = reads_grad(K) ? widen(tile.grad[i]) : 0.0f;
  const float theta = reads_param(K) ? widen(tile.param[i]) : 0.0f;
  return score_bits<K>(grad, theta, static_cast<std::uint32_t>(tile.first + i), tile.salt, f.eps, f.exponent);
}

// Marks the entries whose gradients' magnitudes have at least the bits `least`. Returns the bits of the largest one.
template <class T>
__device__ inline std::uint32_t mark_gradients(const Tile<T>& tile, std::uint32_t least, Marks& marks) {
  constexpr int per = kPerVector<T>;
  const int lane = lane_of();
  const auto address = reinterpret_cast<std::uint64_t>(tile.grad);
  const int head = min(tile.size, static_cast<int>((16 - address % 16) % 16 / sizeof(T)));
  const int vectors = (tile.size - head) / per;
  const auto* source = reinterpret_cast<const uint4*>(tile.grad + head);
  std::uint32_t top = 0;
  const auto largest = [](const uint4& vector) {
    std::uint32_t most = 0;
    for (int e = 0; e < per; ++e) most = max(most, bits_in<T>(vector, e) & kMagnitude<T>);
    return most;
  };
  const auto mark_those = [&](const uint4& vector, int at) {
    std::uint32_t found = 0;
    for (int e = 0; e < per; ++e) {
      found |= static_cast<std::uint32_t>((bits_in<T>(vector, e) & kMagnitude<T>) >= least) << e;
    }
    if (found != 0) mark(marks, head + at * per, found);
  };
  if (vectors == kTile / per) {
    for (int at = lane; at < kTile / per; at += kAhead * kWarp) {
      uint4 loaded[kAhead];
      std::uint32_t most = 0;
#pragma unroll
      for (int u = 0; u < kAhead; ++u) loaded[u] = __ldg(source + at + u * kWarp);
#pragma unroll
      for (int u = 0; u < kAhead; ++u) most = max(most, largest(loaded[u]));
      top = max(top, most);
      if (most >= least) {
#pragma unroll
        for (int u = 0; u < kAhead; ++u) mark_those(loaded[u], at + u * kWarp);
      }
    }
    return top;
  }
#pragma unroll 4
  for (int at = lane; at < vectors; at += kWarp) {
    const uint4 loaded = __ldg(source + at);
    const std::uint32_t most = largest(loaded);
    top = max(top, most);
    if (most >= least) mark_those(loaded, at);
  }
  const int edge = lane < head ? lane : head + vectors * per + lane - head;  // fewer than a warp's lanes
  if (edge < tile.size) {
    const std::uint32_t bits = raw_bits(tile.grad[edge]) & kMagnitude<T>;
    top = max(top, bits);
    if (bits >= least) mark(marks, edge, 1);
  }
  return top;
}

// Whether an entry is to be marked: exactly by its score, or by the filter without a division.
template <Kind K, bool exact>
__device__ inline bool is_wanted(float grad, float theta, std::uint32_t offset, std::uint64_t salt, const Filter& f) {
  if constexpr (exact) {
    const std::uint32_t bits = score_bits<K>(grad, theta, offset, salt, f.eps, f.exponent);
    return is_selectable(bits) && bits >= bits_of(f.threshold);
  } else {
    return may_reach<K>(std::fabs(grad), std::fabs(theta), f);
  }
}

// Marks entries by gradients and parameters, as the score needs them. Returns the bits of the largest magnitude of a
// gradient, or 0 where the score does not look at gradients.
template <class T, Kind K, bool exact>
__device__ inline std::uint32_t mark_scores(const Tile<T>& tile, const Filter& f, Marks& marks) {
  constexpr int per = kPerVector<T>;
  const int lane = lane_of();
  std::uint32_t top = 0;
  const auto look = [&](std::uint32_t grad, std::uint32_t param, int at) {
    if constexpr (grads_are_gradients(K)) top = max(top, grad & kMagnitude<T>);
    return static_cast<std::uint32_t>(is_wanted<K, exact>(widen(from_raw_bits<T>(grad)), widen(from_raw_bits<T>(param)),
                                                          static_cast<std::uint32_t>(tile.first + at), tile.salt, f));
  };
  const std::uint64_t addresses = (reads_grad(K) ? reinterpret_cast<std::uint64_t>(tile.grad) : 0) |
                                  (reads_param(K) ? reinterpret_cast<std::uint64_t>(tile.param) : 0);
  if (tile.size == kTile && addresses % 16 == 0) {
#pragma unroll 2
    for (int at = lane; at < kTile / per; at += kWarp) {
      uint4 grads{}, params{};
      if constexpr (reads_grad(K)) grads = __ldg(reinterpret_cast<const uint4*>(tile.grad) + at);
      if constexpr (reads_param(K)) params = __ldg(reinterpret_cast<const uint4*>(tile.param) + at);
      std::uint32_t found = 0;
      for (int e = 0; e < per; ++e) found |= look(bits_in<T>(grads, e), bits_in<T>(params, e), at * per + e) << e;
      if (found != 0) mark(marks, at * per, found);
    }
    return top;
  }
  for (int at = lane; at < tile.size; at += kWarp) {
    const std::uint32_t grad = reads_grad(K) ? raw_bits(tile.grad[at]) : 0;
    const std::uint32_t param = reads_param(K) ? raw_bits(tile.param[at]) : 0;
    if (look(grad, param, at) != 0) mark(marks, at, 1);
  }
  return top;
}

// Where a tile's slice of the index list is: selected[begin:end).
struct Slice {
  std::int64_t begin;
  std::int64_t end;
};
__device__ inline Slice slice_of(const Reading& reading, const Row& row, const Spot& spot, std::int64_t tile) {
  if (reading.selected == nullptr) return {0, 0};
  const std::int32_t* starts = reading.tile_starts + spot.slots + tile;
  return {row.begin + starts[0], row.begin + starts[1]};
}

// Takes the marks of the selected entries away, and gathers their gradients if they are wanted.
template <class T>
__device__ inline void drop_selected(const Tile<T>& tile, const Slice& slice, const std::int32_t* selected,
                                     float* selected_grads, Marks& marks) {
  for (std::int64_t i = slice.begin + lane_of(); i < slice.end; i += kWarp) {
    const int position = selected[i] - tile.first;
    if (selected_grads != nullptr) selected_grads[i] = widen(tile.grad[position]);
    unmark(marks, position);
  }
  __syncwarp();
}

// Appends the marked entries to the candidates, with the bits of their scores: score(position). What has no room is
// counted all the same.
template <class F>
__device__ inline void append(const Reading& reading, Segment* segment, Marks& marks, F&& score) {
  const int found = count(marks);
  unsigned long long first = 0;
  if (found > 0 && lane_of() == 0) first = atomicAdd(&reading.control->count, static_cast<unsigned long long>(found));
  first = __shfl_sync(kAll, first, 0);
  const bool fits = first + static_cast<unsigned long long>(found) <= static_cast<unsigned long long>(reading.capacity);
  std::uint64_t* candidates = reading.candidates + first;
  if (lane_of() == 0) *segment = {candidates, fits ? found : 0};
  if (!fits) return;
  for_each(marks, [&](int rank, int position) {
    candidates[rank] = static_cast<std::uint64_t>(score(position)) << 32 | static_cast<std::uint32_t>(position);
  });
}

}  // namespace
}  // namespace selective::cuda
