// pybind11 only: addresses and streams as integers, tables as buffers. Arguments were checked in Python
// (selective_kernels/checks.py). Nothing here waits for the device; calls keep the GIL, as they only enqueue.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../buffers.h"
#include "bindings.h"
#include "lists.h"

namespace py = pybind11;

#if !defined(SELECTIVE_CUDA_ARCHITECTURES)
#define SELECTIVE_CUDA_ARCHITECTURES ""  // the emulation has none
#endif

namespace selective::cuda {
namespace {

struct PyAges {
  Address chosen;
  py::buffer missed_starts;
  py::buffer missed_steps;
  std::int32_t now;
  Address corrections1;
  Address corrections2;
  py::buffer places;
};

template <class Group, class Step>
void step(const PyPlace& place, const py::buffer& row_buffer, const py::buffer& group_of_buffer,
          const py::buffer& step_buffer, const py::buffer& group_buffer, const std::vector<Address>& arrays, float clip,
          const PyAges* ages, Step&& run) {
  const Table<Row> rows(row_buffer);
  const Table<std::int64_t> group_of(group_of_buffer);
  const Table<std::int64_t> steps(step_buffer);
  const Table<Group> groups(group_buffer);
  const UpdateArrays update{at<const std::int32_t>(arrays.at(0)), at<const float>(arrays.at(1)),
                            at<float>(arrays.at(2)), at<float>(arrays.at(3)), at<float>(arrays.at(4)), clip,
                            at<const float>(arrays.at(5)), at<const std::int32_t>(arrays.at(6))};
  if (ages == nullptr) {
    run(place_of(place), rows.data, rows.size, group_of.data, steps.data, groups.data, update, nullptr);
    return;
  }
  const Table<std::int64_t> missed_starts(ages->missed_starts);
  const Table<std::int32_t> missed_steps(ages->missed_steps);
  const Table<std::int64_t> places(ages->places);
  const Ages view{at<const std::int32_t>(ages->chosen), missed_starts.data, missed_steps.data, ages->now,
                  at<const float>(ages->corrections1), at<const float>(ages->corrections2), places.data};
  run(place_of(place), rows.data, rows.size, group_of.data, steps.data, groups.data, update, &view);
}

int version(cudaError_t (*query)(int*), const char* name) {
  int found = 0;
  check(query(&found), name);
  return found;
}

void bind_lists(py::module_& m) {
  m.attr("ROOM_PER_ROW") = kRoomPerRow;
  m.attr("LEAST_ROOM") = kLeastRoom;
  m.def("gather", [](const PyPlace& place, const py::buffer& row_buffer, Address offsets, Address out) {
    const Table<Row> rows(row_buffer);
    gather(place_of(place), rows.data, rows.size, at<const std::int32_t>(offsets), at<float>(out));
  });
  m.def("gather_bits", [](const PyPlace& place, const py::buffer& row_buffer, Address offsets, Address out) {
    const Table<Row> rows(row_buffer);
    gather_bits(place_of(place), rows.data, rows.size, at<const std::int32_t>(offsets), at<std::uint32_t>(out));
  });
  m.def("gather_grads",
        [](const PyPlace& place, const py::buffer& row_buffer, Address offsets, Address out, Address flag) {
          const Table<Row> rows(row_buffer);
          gather_grads(place_of(place), rows.data, rows.size, at<const std::int32_t>(offsets), at<float>(out),
                       at<std::int32_t>(flag));
        });
  m.def("scatter", [](const PyPlace& place, const py::buffer& row_buffer, Address offsets, Address values) {
    const Table<Row> rows(row_buffer);
    scatter(place_of(place), rows.data, rows.size, at<const std::int32_t>(offsets), at<const float>(values));
  });
  m.def("swap", [](const PyPlace& place, const py::buffer& row_buffer, Address offsets, Address bits) {
    const Table<Row> rows(row_buffer);
    swap(place_of(place), rows.data, rows.size, at<const std::int32_t>(offsets), at<std::uint32_t>(bits));
  });
  m.def("merge", [](const PyPlace& place, Address offsets, const py::buffer& start_buffer, Address new_offsets,
                    const py::buffer& new_start_buffer, const std::vector<std::pair<Address, Address>>& arrays) {
    const Table<std::int64_t> starts(start_buffer);
    const Table<std::int64_t> new_starts(new_start_buffer);
    std::vector<MergeArray> views;
    for (const auto& [data, fresh] : arrays) views.push_back({at<std::uint32_t>(data), at<const std::uint32_t>(fresh)});
    merge(place_of(place), at<const std::int32_t>(offsets), starts.data, at<const std::int32_t>(new_offsets),
          new_starts.data, starts.size - 1, views);
  });
  m.def("square_sum", [](const PyPlace& place, const py::buffer& row_buffer, Address grads, Address total) {
    const Table<Row> rows(row_buffer);
    square_sum(place_of(place), rows.data, rows.size, at<const float>(grads), at<double>(total));
  });
}

void bind_updates(py::module_& m) {
  py::class_<PyAges>(m, "Ages")
      .def(py::init<Address, py::buffer, py::buffer, std::int32_t, Address, Address, py::buffer>());
  m.def("adam", [](const PyPlace& place, const py::buffer& rows, const py::buffer& group_of, const py::buffer& steps,
                   const py::buffer& groups, const std::vector<Address>& arrays, float clip, const PyAges* ages) {
    step<AdamGroup>(place, rows, group_of, steps, groups, arrays, clip, ages,
                    [](const auto&... arguments) { adam(arguments...); });
  });
  m.def("sgd", [](const PyPlace& place, const py::buffer& rows, const py::buffer& group_of, const py::buffer& steps,
                  const py::buffer& groups, const std::vector<Address>& arrays, float clip, const PyAges* ages) {
    step<SgdGroup>(place, rows, group_of, steps, groups, arrays, clip, ages,
                   [](const auto&... arguments) { sgd(arguments...); });
  });
}

}  // namespace
}  // namespace selective::cuda

PYBIND11_MODULE(_native_cuda, m) {
  using namespace selective::cuda;
  m.doc() = "CUDA kernels; see csrc/cuda/lists.h for the contract";
  m.def("driver_version", [] { return version(cudaDriverGetVersion, "cudaDriverGetVersion"); });
  m.def("runtime_version", [] { return version(cudaRuntimeGetVersion, "cudaRuntimeGetVersion"); });
  m.attr("ARCHITECTURES") = std::string(SELECTIVE_CUDA_ARCHITECTURES);
  bind_lists(m);
  bind_updates(m);
}
