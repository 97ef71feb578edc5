// When the counts show that a threshold was misleading: the best k are searched for among all entries, digit by digit,
// and collected with a bound that is right. That takes up to seven reads, whatever the scores are, and no more memory
// than for k candidates.
#include "search.cuh"
#include "staging.h"
#include "tile.cuh"

namespace selective::cuda {
namespace {

// Calls visit(tile's row, spot, number, entries, marks of the selected entries) for each tile of this warp's chunk.
template <class F>
__device__ inline void for_each_tile(const Reading& reading, Marks& marks, F&& visit) {
  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_of();
  if (number >= reading.division.ranges[3]) return;
  const Chunk chunk = reading.division.chunks[number];
  const Row& row = reading.rows[chunk.row];
  const Spot& spot = reading.division.spots[chunk.row];
  const std::int64_t tiles = (row.numel + kTile - 1) / kTile;
  const std::int64_t last = chunk.tile + reading.division.tiles < tiles ? chunk.tile + reading.division.tiles : tiles;
  for (std::int64_t t = chunk.tile; t < last; ++t) {
    const std::int64_t first = t * kTile;
    const int size = static_cast<int>(row.numel - first < kTile ? row.numel - first : kTile);
    clear(marks);
    visit(row, spot, t, size);
  }
}

__global__ void __launch_bounds__(kBlock)
    recount_kernel(Reading reading, Search* search, int round, unsigned long long k, std::uint32_t blocks) {
  SELECTIVE_SHARED(Marks, all_marks, kWarps);
  SELECTIVE_SHARED(std::uint32_t, counts, kLargestDigits);
  SELECTIVE_SHARED(unsigned long long, room, kWarps);
  if (search->settled != 0) return;
  const std::uint64_t prefix = search->prefix;
  const Kind kind = kind_of(reading.score);
  Marks& marks = all_marks[warp_of()];
  clear_counts(counts);
  for_each_tile(reading, marks, [&](const Row& row, const Spot& spot, std::int64_t t, int size) {
    const Slice slice = slice_of(reading, row, spot, t);
    const std::int64_t first = t * kTile;
    for (std::int64_t i = slice.begin + lane_of(); i < slice.end; i += kWarp) {
      mark(marks, static_cast<int>(reading.selected[i] - first), 1);
    }
    __syncwarp();
    const std::uint64_t salt = salt_of(reading.score, row);
    for (int i = lane_of(); i < size; i += kWarp) {
      const std::uint32_t bits = score_bits_at(kind, row, first + i, salt, reading.score);
      if (!is_selectable(bits) || is_marked(marks, i)) continue;
      const std::uint64_t number = number_of(bits, spot.flat + first + i);
      if (agrees(number, prefix, round)) atomicAdd(&counts[value_of(number, round)], 1u);
    }
    __syncwarp();
  });
  end_round(search, counts, round, k, blocks, room);
}

__global__ void __launch_bounds__(kBlock) collect_kernel(Reading reading, const Search* search, Control* control) {
  SELECTIVE_SHARED(Marks, all_marks, kWarps);
  if (blockIdx.x == 0 && threadIdx.x == 0) control->repairs += search->rounds + 1;
  const std::uint64_t bound = search->prefix;
  const Kind kind = kind_of(reading.score);
  Marks& marks = all_marks[warp_of()];
  for_each_tile(reading, marks, [&](const Row& row, const Spot& spot, std::int64_t t, int size) {
    const std::uint64_t salt = salt_of(reading.score, row);
    const std::int64_t first = t * kTile;
    const auto score = [&](int i) { return score_bits_at(kind, row, first + i, salt, reading.score); };
    for (int i = lane_of(); i < size; i += kWarp) {
      const std::uint32_t bits = score(i);
      if (is_selectable(bits) && number_of(bits, spot.flat + first + i) <= bound) mark(marks, i, 1);
    }
    __syncwarp();
    const Slice slice = slice_of(reading, row, spot, t);
    for (std::int64_t i = slice.begin + lane_of(); i < slice.end; i += kWarp) {
      unmark(marks, static_cast<int>(reading.selected[i] - first));
    }
    __syncwarp();
    append(reading, reading.segments + spot.slots + t, marks, score);
  });
}

std::int64_t blocks_of(const Reading& reading) { return blocks_for(reading.division.ranges[3], kWarps); }

}  // namespace

std::int64_t repair_room() { return static_cast<std::int64_t>(sizeof(Search) + sizeof(Control)) + 32; }

void repair(const Place& place, const std::vector<Reading>& readings, std::int64_t k, std::uint64_t* candidates) {
  const OnDevice current(place);
  Room room(place);
  Search* const search = room.take<Search>(1);
  Control* const control = room.take<Control>(1);
  check(cudaMemsetAsync(search, 0, sizeof(Search), place.stream), "cudaMemsetAsync");
  check(cudaMemsetAsync(control, 0, sizeof(Control), place.stream), "cudaMemsetAsync");
  std::int64_t blocks = 0;
  for (const Reading& reading : readings) blocks += blocks_of(reading);
  if (blocks > 0xffffffffll) throw std::invalid_argument("repair: expected fewer than 2^32 blocks");
  for (int round = 0; round < kRounds; ++round) {
    for (const Reading& reading : readings) {
      if (blocks_of(reading) == 0) continue;
      launch(recount_kernel, grid_of(blocks_of(reading)), dim3(kBlock), 0, place.stream, reading, search, round,
             static_cast<unsigned long long>(k), blocks);
    }
  }
  for (Reading reading : readings) {
    if (blocks_of(reading) == 0) continue;
    Control* const its_own = reading.control;
    reading.control = control;
    reading.candidates = candidates;
    reading.capacity = k;
    launch(collect_kernel, grid_of(blocks_of(reading)), dim3(kBlock), 0, place.stream, reading, search, its_own);
  }
}

}  // namespace selective::cuda
