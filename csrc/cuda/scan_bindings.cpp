// pybind11 only: how Python reaches the scan. See bindings.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "bindings.h"
#include "scan.h"

namespace py = pybind11;

namespace selective::cuda {
namespace {

// selected, selected_grads, candidates, segments
using PyArrays = std::array<Address, 4>;

Division division_of(const PyDivision& py_division) {
  const auto& [spots, chunks, ranges, tiles, slots] = py_division;
  Division division{at<const Spot>(spots), at<const Chunk>(chunks), {}, tiles, slots};
  for (std::size_t i = 0; i < ranges.size(); ++i) division.ranges[i] = ranges[i];
  return division;
}

Score score_of(const PyScore& py_score) {
  const auto& [family, exponent, eps, seed] = py_score;
  return {static_cast<Family>(family), exponent, eps, seed};
}

Sample sample_of(const PySample& py_sample) {
  const auto& [lines, stride, rank, fixed] = py_sample;
  return {lines, stride, rank, fixed};
}

Reading read_buffer(const PyPlace& place, const py::buffer& row_buffer, const PyDivision& py_division, const PyScore& py_score,
                    const PySample& py_sample, bool selecting, const PyArrays& arrays, std::int64_t capacity) {
  const Table<Row> rows(row_buffer);
  Reading reading{};
  reading.n_rows = rows.size;
  reading.division = division_of(py_division);
  reading.score = score_of(py_score);
  reading.selecting = selecting;
  reading.selected = at<const std::int32_t>(arrays[0]);
  reading.selected_grads = at<float>(arrays[1]);
  reading.candidates = at<std::uint64_t>(arrays[2]);
  reading.segments = at<Segment>(arrays[3]);
  reading.capacity = capacity;
  return read(place_of(place), rows.data, reading, sample_of(py_sample));
}

// arrays: offsets, bits, values, grads, report
void select_buffer(const PyPlace& place, const py::buffer& row_buffer, const PyDivision& py_division,
                   const py::buffer& segment_buffer, const std::vector<Reading>& readings, std::int64_t k,
                   const std::array<Address, 5>& arrays) {
  const Table<Row> rows(row_buffer);
  const Table<const Segment*> segments(segment_buffer);
  const Division division = division_of(py_division);
  Found found{rows.data, division.spots, segments.data, rows.size, division.n_slots, {}};
  for (const Reading& reading : readings) found.controls.push_back(reading.control);
  const Winners winners{at<std::int32_t>(arrays[0]), at<std::uint32_t>(arrays[1]), at<float>(arrays[2]),
                        at<float>(arrays[3]), at<std::int64_t>(arrays[4])};
  select(place_of(place), found, k, winners);
}

}  // namespace

Choosing choosing_of(const PyChoosing& choosing, const std::int64_t* slots, const std::int32_t* selected,
                     float* selected_grads) {
  bool values = false;
  for (const auto& array : choosing.arrays) values |= std::get<1>(array) == static_cast<int>(Source::values);
  return {division_of(choosing.division), slots,    score_of(choosing.score), sample_of(choosing.sample),
          choosing.capacity,              choosing.k, selected,               selected_grads,
          values,                         at<const std::int32_t>(choosing.flag)};
}

void bind_scan(py::module_& m) {
  m.attr("LINE") = kLine;
  m.attr("TILE") = kTile;
  m.attr("SEGMENT_BYTES") = sizeof(Segment);
  m.attr("MAX_ENTRIES") = (std::int64_t{1} << kFlatBits) - 1;
  py::class_<Reading>(m, "Reading", py::module_local());
  py::class_<PyChoosing>(m, "Choosing", py::module_local())
      .def(py::init<PyDivision, py::buffer, PyScore, PySample, std::int64_t, std::int64_t, Address, py::buffer,
                    py::list, std::vector<std::tuple<Address, int, std::uint32_t>>>());
  m.def("choosing_room", &choosing_room);
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
