// How a read is enqueued.
#include "scan.h"

#include "sample.cuh"
#include "scan_kernels.h"
#include "staging.h"

namespace selective::cuda {

std::int64_t read_room(std::int64_t n_rows, std::int64_t n_slots) {
  return static_cast<std::int64_t>(sizeof(Control)) + n_rows * static_cast<std::int64_t>(sizeof(Row)) + 4 * n_slots + 64;
}

Reading read(const Place& place, const Row* rows, Reading reading, const Sample& sample) {
  const OnDevice current(place);
  Room room(place);
  reading.control = room.take<Control>(1);
  Row* const there = room.take<Row>(reading.n_rows);
  reading.rows = there;
  if (reading.selected != nullptr) reading.tile_starts = room.take<std::int32_t>(reading.division.n_slots);
  check(cudaMemsetAsync(reading.control, 0, sizeof(Control), place.stream), "cudaMemsetAsync");
  send(place, there, rows, static_cast<std::size_t>(reading.n_rows) * sizeof(Row));
  const Division& division = reading.division;
  const std::int64_t lines = reading.selecting ? blocks_for(sample.lines, kLinesPerBlock) : 0;
  const std::int64_t sampling = reading.selecting && lines == 0 ? 1 : lines;
  const std::int64_t filling = reading.selected == nullptr ? 0 : blocks_for(division.n_slots, kSlotsPerBlock);
  if (sampling + filling > 0) {
    launch(prepare_kernel, grid_of(sampling + filling), dim3(kBlock), 0, place.stream, reading, sample, sampling);
  }
  for (int dtype = 0; dtype < 3; ++dtype) {
    const std::int64_t first = division.ranges[dtype];
    const std::int64_t chunks = division.ranges[dtype + 1] - first;
    if (chunks > 0) launch_scan(place, static_cast<DType>(dtype), reading, division.chunks + first, chunks);
  }
  return reading;
}

}  // namespace selective::cuda
