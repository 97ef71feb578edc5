// pybind11 only: how Python reaches the scan. See bindings.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "scan.h"

namespace py = pybind11;

namespace selective::cuda {
namespace {

// family, exponent, eps, seed
using PyScore = std::tuple<std::int64_t, double, float, std::uint64_t>;
// spots, chunks, ranges, tiles, slots
using PyPlan = std::tuple<Address, Address, std::array<std::int64_t, 4>, std::int32_t, std::int64_t>;
// lines, stride, rank, fixed
using PySample = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::uint32_t>;
// selected, selected_grads, candidates, segments
using PyArrays = std::array<Address, 4>;

Reading read_buffer(const PyPlace& place, const py::buffer& row_buffer, const PyPlan& py_plan, const PyScore& py_score,
                    const PySample& py_sample, bool selecting, const PyArrays& arrays, std::int64_t capacity) {
  const Table<Row> rows(row_buffer);
  const auto& [spots, chunks, ranges, tiles, slots] = py_plan;
  const auto& [family, exponent, eps, seed] = py_score;
  const auto& [sampled, stride, rank, fixed] = py_sample;
  Reading reading{};
  reading.n_rows = rows.size;
  reading.plan = {at<const Spot>(spots), at<const Chunk>(chunks), {}, tiles, slots};
  for (std::size_t i = 0; i < ranges.size(); ++i) reading.plan.ranges[i] = ranges[i];
  reading.score = {static_cast<Family>(family), exponent, eps, seed};
  reading.selecting = selecting;
  reading.selected = at<const std::int32_t>(arrays[0]);
  reading.selected_grads = at<float>(arrays[1]);
  reading.candidates = at<std::uint64_t>(arrays[2]);
  reading.segments = at<Segment>(arrays[3]);
  reading.capacity = capacity;
  return read(place_of(place), rows.data, reading, {sampled, stride, rank, fixed});
}

// arrays: offsets, bits, values, grads, report
void select_buffer(const PyPlace& place, const py::buffer& row_buffer, const PyPlan& py_plan,
                   const py::buffer& segment_buffer, const std::vector<Reading>& readings, std::int64_t k,
                   const std::array<Address, 5>& arrays) {
  const Table<Row> rows(row_buffer);
  const Table<const Segment*> segments(segment_buffer);
  const auto& [spots, chunks, ranges, tiles, slots] = py_plan;
  Found found{rows.data, at<const Spot>(spots), segments.data, rows.size, slots, {}};
  for (const Reading& reading : readings) found.controls.push_back(reading.control);
  const Winners winners{at<std::int32_t>(arrays[0]), at<std::uint32_t>(arrays[1]), at<float>(arrays[2]),
                        at<float>(arrays[3]), at<std::int64_t>(arrays[4])};
  select(place_of(place), found, k, winners);
}

}  // namespace

void bind_scan(py::module_& m) {
  m.attr("LINE") = kLine;
  m.attr("TILE") = kTile;
  m.attr("SEGMENT_BYTES") = sizeof(Segment);
  m.attr("MAX_ENTRIES") = (std::int64_t{1} << kFlatBits) - 1;
  py::class_<Reading>(m, "Reading", py::module_local());
  m.def("read_room", &read_room);
  m.def("repair_room", &repair_room);
  m.def("select_room", &select_room);
  m.def("read", &read_buffer);
  m.def("repair", [](const PyPlace& place, const std::vector<Reading>& readings, std::int64_t k, Address candidates) {
    repair(place_of(place), readings, k, at<std::uint64_t>(candidates));
  });
  m.def("select", &select_buffer);
}

}  // namespace selective::cuda
