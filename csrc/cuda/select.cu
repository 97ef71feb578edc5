// The best k of all candidates (C4): their score by three digits, then the entries that reach it, tile by tile.
//
// Tiles' candidates are in ascending position and tiles are in the order of the table, so that counting gives each of
// the best its place among the others, and among those of one score the first ones win.
#include "rows.cuh"
#include "scan.h"
#include "scoring.cuh"
#include "search.cuh"
#include "spots.cuh"
#include "staging.h"

namespace selective::cuda {
namespace {

constexpr std::int64_t kSlots = kBlock;  // of a block; a lane brings one

// What a selection works on, on the device; see Found.
struct Selection {
  const Row* rows;
  const Spot* spots;
  const Segment* const* segments;
  const Control* const* controls;
  std::int64_t n_rows;
  std::int64_t n_slots;
  std::int64_t n_readings;
  Search* search;
};

// How many candidates of a set are surely among the best, and how many have the last score that is.
struct Tally {
  unsigned long long sure;
  unsigned long long ties;
};

// The candidates of a warp's 32 slots as one list in ascending order; shared by its lanes.
struct Listed {
  const std::uint64_t* first[kWarp];
  std::int32_t until[kWarp];  // candidates up to this slot's last one
};

// A lane's slot: of a row, or -1 behind the last one.
struct Slot {
  std::int64_t number;
  std::int64_t row;
  std::int64_t tile;  // of the row; a row's last slot has none
};

__device__ inline Slot slot_of(const Selection& selection) {
  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * kSlots + threadIdx.x;
  if (number >= selection.n_slots) return {number, -1, 0};
  const std::int64_t row = find_spot(selection.spots, selection.n_rows, &Spot::slots, number);
  return {number, row, number - selection.spots[row].slots};
}

// Returns the list's length.
__device__ inline int list_slots(const Selection& selection, const Slot& slot, Listed& listed) {
  Segment segment{nullptr, 0};
  if (slot.row >= 0 && slot.tile * kTile < selection.rows[slot.row].numel) {
    const Segment* const segments = selection.segments[slot.row];
    if (segments != nullptr) segment = segments[slot.tile];
  }
  const int until = running_sum(static_cast<int>(segment.count));
  listed.first[lane_of()] = segment.first;
  listed.until[lane_of()] = until;
  __syncwarp();
  return __shfl_sync(kAll, until, kWarp - 1);
}

struct Candidate {
  int slot;  // of the warp's
  std::uint32_t score_bits;
  std::uint32_t position;  // in its tile
};
__device__ inline Candidate candidate_at(const Listed& listed, int i) {
  int slot = 0;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    if (listed.until[slot + step - 1] <= i) slot += step;
  }
  const std::uint64_t found = listed.first[slot][i - (slot == 0 ? 0 : listed.until[slot - 1])];
  return {slot, static_cast<std::uint32_t>(found >> 32), static_cast<std::uint32_t>(found)};
}

__global__ void __launch_bounds__(kBlock)
    round_kernel(Selection selection, int round, unsigned long long k) {
  SELECTIVE_SHARED(Listed, all_listed, kWarps);
  SELECTIVE_SHARED(std::uint32_t, counts, kLargestDigits);
  SELECTIVE_SHARED(unsigned long long, room, kWarps);
  Search* const search = selection.search;
  if (search->settled != 0) return;
  const std::uint64_t prefix = search->prefix;
  Listed& listed = all_listed[warp_of()];
  clear_counts(counts);
  const int total = list_slots(selection, slot_of(selection), listed);
  for (int i = lane_of(); i < total; i += kWarp) {
    const std::uint64_t number = number_of(candidate_at(listed, i).score_bits, 0);
    if (agrees(number, prefix, round)) atomicAdd(&counts[value_of(number, round)], 1u);
  }
  end_round(search, counts, round, k, gridDim.x, room);
}

// What the rounds have found, as scores: better ones than `least` are surely among the best, and of those that are equal
// to it the first `ties`.
struct Bound {
  std::uint64_t least;  // a score's number without position
  unsigned long long ties;
};
__device__ inline Bound bound_of(const Search& search) {
  if (search.settled != 0) return {(search.prefix >> kFlatBits) + 1, 0};
  return {search.prefix >> kFlatBits, search.missing};
}
__device__ inline std::uint64_t rank_of(std::uint32_t score_bits) { return kLargestBits - score_bits; }

__device__ inline Tally tally_of_lane(const Listed& listed, int total, const Bound& bound) {
  Tally found{0, 0};
  for (int i = lane_of(); i < total; i += kWarp) {
    const std::uint64_t rank = rank_of(candidate_at(listed, i).score_bits);
    found.sure += rank < bound.least;
    found.ties += rank == bound.least;
  }
  return found;
}

__global__ void __launch_bounds__(kBlock) tally_kernel(Selection selection, Tally* tallies) {
  SELECTIVE_SHARED(Listed, all_listed, kWarps);
  SELECTIVE_SHARED(unsigned long long, room, kWarps);
  Listed& listed = all_listed[warp_of()];
  const int total = list_slots(selection, slot_of(selection), listed);
  const Tally mine = tally_of_lane(listed, total, bound_of(*selection.search));
  Tally all{0, 0};
  block_running_sum(mine.sure, room, all.sure);
  __syncthreads();
  block_running_sum(mine.ties, room, all.ties);
  if (threadIdx.x == 0) tallies[blockIdx.x] = all;
}

__device__ inline void write_winner(const Row& row, std::int64_t offset, std::int64_t place, const Winners& winners) {
  winners.offsets[place] = static_cast<std::int32_t>(offset);
  winners.bits[place] = load_bits(row.param, row.dtype, offset);
  if (winners.values != nullptr) winners.values[place] = load_float(row.param, row.dtype, offset);
  if (winners.grads != nullptr) winners.grads[place] = load_float(row.grad, row.dtype, offset);
}

__device__ inline void report_readings(const Selection& selection, std::int64_t* report) {
  std::int64_t* const readings = report + 2 + selection.n_rows;
  for (std::int64_t i = threadIdx.x; i < selection.n_readings; i += kBlock) {
    const Control& control = *selection.controls[i];
    readings[4 * i] = static_cast<std::int64_t>(control.count);
    readings[4 * i + 1] = control.nonfinite;
    readings[4 * i + 2] = bits_of(control.filter.threshold);
    readings[4 * i + 3] = control.repairs;
  }
}

// What lies before this warp's slots, in other blocks and in this one.
__device__ inline Tally tally_before(const Tally* tallies, const Tally& of_lane, unsigned long long* room) {
  Tally before{0, 0}, all{0, 0}, unused{0, 0};
  for (std::int64_t i = threadIdx.x; i < blockIdx.x; i += kBlock) {
    before.sure += tallies[i].sure;
    before.ties += tallies[i].ties;
  }
  block_running_sum(before.sure, room, all.sure);
  __syncthreads();
  block_running_sum(before.ties, room, all.ties);
  __syncthreads();
  const unsigned long long sure = block_running_sum(of_lane.sure, room, unused.sure);
  __syncthreads();
  const unsigned long long ties = block_running_sum(of_lane.ties, room, unused.ties);
  return {all.sure + __shfl_sync(kAll, sure - of_lane.sure, 0), all.ties + __shfl_sync(kAll, ties - of_lane.ties, 0)};
}

__global__ void __launch_bounds__(kBlock)
    write_kernel(Selection selection, const Tally* tallies, Winners winners) {
  SELECTIVE_SHARED(Listed, all_listed, kWarps);
  SELECTIVE_SHARED(std::int32_t, all_won, kBlock);  // by slot
  SELECTIVE_SHARED(unsigned long long, room, kWarps);
  const Bound bound = bound_of(*selection.search);
  Listed& listed = all_listed[warp_of()];
  std::int32_t* const won = all_won + warp_of() * kWarp;
  won[lane_of()] = 0;
  const Slot slot = slot_of(selection);
  const int total = list_slots(selection, slot, listed);
  Tally before = tally_before(tallies, tally_of_lane(listed, total, bound), room);
  const auto place_of = [&](const Tally& at) { return at.sure + min(at.ties, bound.ties); };
  const unsigned long long first = place_of(before);
  std::uint32_t worst = 0;  // the largest rank among the best, from 1
  for (int start = 0; start < total; start += kWarp) {
    const int i = start + lane_of();
    const Candidate candidate = candidate_at(listed, i < total ? i : total - 1);
    const std::uint64_t rank = rank_of(candidate.score_bits);
    const unsigned sure = __ballot_sync(kAll, i < total && rank < bound.least);
    const unsigned ties = __ballot_sync(kAll, i < total && rank == bound.least);
    const unsigned lanes_before = (1u << lane_of()) - 1;
    const Tally here{before.sure + __popc(sure & lanes_before), before.ties + __popc(ties & lanes_before)};
    const std::int64_t row = __shfl_sync(kAll, slot.row, candidate.slot);
    const std::int64_t tile = __shfl_sync(kAll, slot.tile, candidate.slot);
    if ((sure >> lane_of() & 1) != 0 || ((ties >> lane_of() & 1) != 0 && here.ties < bound.ties)) {
      const std::int64_t offset = tile * kTile + candidate.position;
      write_winner(selection.rows[row], offset, static_cast<std::int64_t>(place_of(here)), winners);
      atomicAdd(&won[candidate.slot], 1);
      worst = max(worst, static_cast<std::uint32_t>(rank) + 1);
    }
    before.sure += __popc(sure);
    before.ties += __popc(ties);
  }
  __syncwarp();
  const std::int64_t until = static_cast<std::int64_t>(first) + running_sum(won[lane_of()]);
  if (slot.row >= 0 && slot.tile == 0) winners.report[1 + slot.row] = until - won[lane_of()];
  if (slot.number == selection.n_slots - 1) winners.report[1 + selection.n_rows] = until;
  worst = __reduce_max_sync(kAll, worst);
  if (lane_of() == 0 && worst > 0) atomicMax(&selection.search->worst, worst);
  if (!is_last_block(&selection.search->finished, gridDim.x)) return;
  if (threadIdx.x == 0) {
    const std::uint32_t last = __ldcg(&selection.search->worst);
    winners.report[0] = last == 0 ? 0 : kLargestBits + 1 - last;
  }
  report_readings(selection, winners.report);
}

}  // namespace

std::int64_t select_room(std::int64_t n_rows, std::int64_t n_slots, std::int64_t n_readings) {
  return static_cast<std::int64_t>(sizeof(Search)) + n_rows * static_cast<std::int64_t>(sizeof(Row) + 8) +
         blocks_for(n_slots, kSlots) * static_cast<std::int64_t>(sizeof(Tally)) + 8 * n_readings + 128;
}

void select(const Place& place, const Found& found, std::int64_t k, const Winners& winners) {
  const OnDevice current(place);
  Room room(place);
  Packet packet;
  const std::int64_t n_readings = static_cast<std::int64_t>(found.controls.size());
  const std::size_t rows_at = packet.add(found.rows, found.n_rows);
  const std::size_t segments_at = packet.add(found.segments, found.n_rows);
  const std::size_t controls_at = packet.add(found.controls.data(), n_readings);
  const std::int64_t blocks = blocks_for(found.n_slots, kSlots);
  Search* const search = room.take<Search>(1);
  Tally* const tallies = room.take<Tally>(blocks);
  const char* there = packet.send_to(place, room);
  const Selection selection{within<Row>(there, rows_at),
                            found.spots,
                            within<const Segment*>(there, segments_at),
                            within<const Control*>(there, controls_at),
                            found.n_rows,
                            found.n_slots,
                            n_readings,
                            search};
  check(cudaMemsetAsync(search, 0, sizeof(Search), place.stream), "cudaMemsetAsync");
  const dim3 grid = grid_of(blocks);
  for (int round = 0; k > 0 && round < kScoreRounds; ++round) {
    launch(round_kernel, grid, dim3(kBlock), 0, place.stream, selection, round, static_cast<unsigned long long>(k));
  }
  launch(tally_kernel, grid, dim3(kBlock), 0, place.stream, selection, tallies);
  launch(write_kernel, grid, dim3(kBlock), 0, place.stream, selection, tallies, winners);
}

}  // namespace selective::cuda
