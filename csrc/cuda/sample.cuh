// Before a read: a threshold from a sample of all scores, and where each tile's selected entries are.
#pragma once

#include "rows.cuh"
#include "scan.h"
#include "scoring.cuh"
#include "spots.cuh"
#include "warps.cuh"

namespace selective::cuda {
namespace {

constexpr int kLinesPerBlock = 512;
constexpr int kSlotsPerBlock = 1024;

// Counts the scores of one line at a random place in each `stride` of them, by bin; selected entries do not count, or
// the threshold would lie too high. Half a warp for each line.
__device__ inline void sample_lines(const Reading& reading, const Sample& sample, std::int64_t block,
                                    std::uint32_t* bins) {
  const Kind kind = kind_of(reading.score);
  const int lane = static_cast<int>(threadIdx.x) % kLine;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) / kLine; i < kLinesPerBlock; i += kBlock / kLine) {
    const std::int64_t number = block * kLinesPerBlock + i;
    const bool there = number < sample.lines;
    std::uint32_t selected = 0;  // bits of the line's entries
    std::int64_t entry = 0;
    const Row* row = reading.rows;
    if (there) {
      const std::int64_t line = number * sample.stride + mix32(static_cast<std::uint32_t>(number) + 1) % sample.stride;
      const std::int64_t r = find_spot(reading.division.spots, reading.n_rows, &Spot::lines, line);
      row = reading.rows + r;
      const std::int64_t first = (line - reading.division.spots[r].lines) * kLine;
      entry = first + lane;
      if (row->begin < row->end) {
        const std::int64_t place =
            lower_bound(reading.selected, row->begin, row->end, static_cast<std::int32_t>(first)) + lane;
        const std::int64_t position = place < row->end ? reading.selected[place] - first : kLine;
        if (position < kLine) selected = 1u << position;
      }
    }
    if (reading.selected != nullptr) {
      for (int delta = kLine / 2; delta > 0; delta /= 2) selected |= __shfl_xor_sync(kAll, selected, delta);
    }
    if (!there || entry >= row->numel || (selected >> lane & 1) != 0) continue;
    const std::uint32_t bits = score_bits_at(kind, *row, entry, salt_of(reading.score, *row), reading.score);
    if (is_selectable(bits)) atomicAdd(&bins[bits >> kBinShift], 1u);
  }
}

// For the whole block: the bits of the lower edge of the bin that holds the sample's rank-th best score.
__device__ inline std::uint32_t threshold_of(const std::uint32_t* bins, std::int64_t rank, std::uint32_t* room) {
  constexpr int per_thread = kBins / kBlock;
  const int last = kBins - 1 - static_cast<int>(threadIdx.x) * per_thread;  // the best ones first
  std::uint32_t sum = 0;
  for (int i = 0; i < per_thread; ++i) sum += __ldcg(&bins[last - i]);
  std::uint32_t total = 0;
  std::uint32_t at_least = block_running_sum(sum, room, total) - sum;
  std::uint32_t found = 0;
  for (int i = 0; i < per_thread; ++i) {
    const std::uint32_t before = at_least;
    at_least += __ldcg(&bins[last - i]);
    if (before < rank && rank <= at_least) found = static_cast<std::uint32_t>(last - i) << kBinShift;
  }
  __syncthreads();
  block_running_sum(found, room, total);  // one thread at most has found it
  return total == 0 ? 1 : total;
}

__device__ inline void fill_tile_starts(const Reading& reading, std::int64_t block) {
  const std::int64_t end = (block + 1) * kSlotsPerBlock;
  for (std::int64_t slot = block * kSlotsPerBlock + threadIdx.x; slot < end && slot < reading.division.n_slots;
       slot += kBlock) {
    const std::int64_t r = find_spot(reading.division.spots, reading.n_rows, &Spot::slots, slot);
    const Row& row = reading.rows[r];
    const std::int64_t first = (slot - reading.division.spots[r].slots) * kTile;
    const std::int32_t entry = first < 0x7fffffff ? static_cast<std::int32_t>(first) : 0x7fffffff;
    reading.tile_starts[slot] =
        static_cast<std::int32_t>(lower_bound(reading.selected, row.begin, row.end, entry) - row.begin);
  }
}

// The first `sampling` blocks sample, and the last of them makes the filter; the other blocks fill the tile starts.
// Without a sample one block makes the filter.
__global__ void __launch_bounds__(kBlock) prepare_kernel(Reading reading, Sample sample, std::uint32_t sampling) {
  SELECTIVE_SHARED(std::uint32_t, bins, kBins);
  SELECTIVE_SHARED(std::uint32_t, room, kWarps);
  if (blockIdx.x >= sampling) {
    fill_tile_starts(reading, blockIdx.x - sampling);
    return;
  }
  Control* const control = reading.control;
  std::uint32_t limit = sample.fixed;
  if (sample.lines != 0) {
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kBlock) bins[i] = 0;
    __syncthreads();
    sample_lines(reading, sample, blockIdx.x, bins);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kBlock) {
      if (bins[i] != 0) atomicAdd(&control->bins[i], bins[i]);
    }
    if (!is_last_block(&control->finished, sampling)) return;
    limit = threshold_of(control->bins, sample.rank, room);
  }
  if (threadIdx.x == 0) control->filter = make_filter(reading.score, float_of(limit), float_of(kLargestBits + 1));
}

}  // namespace
}  // namespace selective::cuda
