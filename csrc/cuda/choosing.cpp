#include "choosing.h"

#include "staging.h"

namespace selective::cuda {
namespace {

constexpr std::int64_t kOfAll = 2;      // numbers of a report besides those of rows and readings
constexpr std::int64_t kOfReading = 4;  // numbers of a report on its one reading
constexpr std::int64_t kParts = 8;      // that a room is divided into, each to a multiple of 16 bytes

}  // namespace

std::int64_t choosing_room(std::int64_t n_rows, std::int64_t n_slots, std::int64_t capacity, std::int64_t k) {
  const std::int64_t lists = 4 * static_cast<std::int64_t>(sizeof(std::uint32_t)) * k;
  const std::int64_t report = static_cast<std::int64_t>(sizeof(std::int64_t)) * (kOfAll + n_rows + kOfReading);
  return static_cast<std::int64_t>(sizeof(std::uint64_t)) * capacity +
         static_cast<std::int64_t>(sizeof(Segment)) * n_slots + lists + report + read_room(n_rows, n_slots) +
         select_room(n_rows, n_slots, 1) + 16 * kParts;
}

Chosen choose(const Place& place, const Row* rows, std::int64_t n, const Choosing& wanted) {
  const OnDevice current(place);
  Room room(place);
  const Division& division = wanted.division;
  Reading reading{};
  reading.n_rows = n;
  reading.division = division;
  reading.score = wanted.score;
  reading.selecting = true;
  reading.selected = wanted.selected;
  reading.selected_grads = wanted.selected_grads;
  reading.candidates = room.take<std::uint64_t>(wanted.capacity);
  reading.capacity = wanted.capacity;
  reading.segments = room.take<Segment>(division.n_slots);
  Winners winners{};
  winners.offsets = room.take<std::int32_t>(wanted.k);
  winners.bits = room.take<std::uint32_t>(wanted.k);
  winners.grads = room.take<float>(wanted.k);
  winners.values = wanted.values ? room.take<float>(wanted.k) : nullptr;
  std::vector<std::int64_t> report(static_cast<std::size_t>(kOfAll + n + kOfReading));
  winners.report = room.take<std::int64_t>(static_cast<std::int64_t>(report.size()));

  reading = read(room.part(read_room(n, division.n_slots)), rows, reading, wanted.sample);
  std::vector<const Segment*> segments;
  for (std::int64_t r = 0; r < n; ++r) segments.push_back(reading.segments + wanted.slots[r]);
  const Found found{rows, division.spots, segments.data(), n, division.n_slots, {reading.control}};
  select(room.part(select_room(n, division.n_slots, 1)), found, wanted.k, winners);

  std::int32_t flag = 0;
  const Fetching of_report{report.data(), winners.report, report.size() * sizeof(std::int64_t)};
  if (wanted.flag == nullptr) {
    receive(place, {of_report});
  } else {
    receive(place, {of_report, {&flag, wanted.flag, sizeof(flag)}});
  }
  Chosen chosen{Outcome::complete, static_cast<std::uint32_t>(report[0]), {}, winners.offsets, winners.bits,
                winners.values, winners.grads};
  const std::int64_t* const starts = report.data() + 1;
  for (std::int64_t r = 0; r < n; ++r) chosen.counts.push_back(starts[r + 1] - starts[r]);
  const std::int64_t* const of_reading = starts + n + 1;
  const std::int64_t lowest = starts[n] == wanted.k ? report[0] : 1;
  if (of_reading[1] != 0 || flag != 0) {
    chosen.outcome = Outcome::nonfinite;
  } else if (of_reading[0] > wanted.capacity || of_reading[2] > lowest) {
    chosen.outcome = Outcome::incomplete;
  }
  return chosen;
}

}  // namespace selective::cuda
