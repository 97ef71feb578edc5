// pybind11 only: addresses as integers and tables as buffers of int64 or float64 in, plain values out. Arguments were
// checked in Python (selective_kernels/checks.py). Long calls release the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "buffers.h"
#include "cpu/lists.h"
#include "cpu/parallel.h"
#include "cpu/scan.h"
#include "gaps.h"

namespace py = pybind11;

namespace selective {
namespace {

struct PyAges {
  Address chosen;
  Address missed_starts;
  Address missed_steps;
  std::int32_t now;
  Ages view() const {
    return {at<const std::int32_t>(chosen), at<const std::int64_t>(missed_starts), at<const std::int32_t>(missed_steps),
            now};
  }
};

template <class Group, class Run>
void step(const py::buffer& row_buffer, const py::buffer& group_of_buffer, const py::buffer& step_buffer,
          const py::buffer& group_buffer, const std::vector<Address>& arrays, const PyAges* ages, Run&& run) {
  const Table<Row> rows(row_buffer);
  const Table<std::int64_t> group_of(group_of_buffer);
  const Table<std::int64_t> steps(step_buffer);
  const Table<Group> groups(group_buffer);
  const EntryArrays entries{at<const std::int32_t>(arrays.at(0)), at<const float>(arrays.at(1)),
                            at<float>(arrays.at(2)), at<float>(arrays.at(3)), at<float>(arrays.at(4))};
  Ages view{};
  if (ages != nullptr) view = ages->view();
  const py::gil_scoped_release release;
  run(rows, group_of.data, steps.data, groups, entries, ages == nullptr ? nullptr : &view);
}

}  // namespace
}  // namespace selective

PYBIND11_MODULE(_native_cpu, m) {
  using namespace selective;
  m.doc() = "CPU kernels; see csrc/selective.h for the contract";
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const char* const* name = available_isas(); *name != nullptr; ++name) names.emplace_back(*name);
    return names;
  });
  m.def("isa", [] { return std::string(kernels().isa); });
  m.def("use_isa", [](const std::string& name) { return use_isa(name.c_str()); });
  m.def("has_openmp", &has_openmp);
#if defined(SELECTIVE_SANITIZED)
  m.def("sanitized", [] { return true; });
#else
  m.def("sanitized", [] { return false; });
#endif

  py::class_<Scan>(m, "Scan")
      .def(py::init([](std::int64_t family, double exponent, float eps, std::uint64_t seed, std::int64_t k, float hint,
                       Address offsets, int threads) {
        const Score score{static_cast<Family>(family), exponent, eps, seed};
        return new Scan(score, k, hint, at<const std::int32_t>(offsets), threads);
      }))
      .def("add",
           [](Scan& scan, const py::buffer& row_buffer, Address selected_grads) {
             const Table<Row> rows(row_buffer);
             const py::gil_scoped_release release;
             scan.add(rows.data, rows.size, at<float>(selected_grads));
           })
      .def("finalize", &Scan::finalize, py::call_guard<py::gil_scoped_release>())
      .def("result",
           [](Scan& scan, Address tensors, Address offsets) {
             scan.result(at<std::int32_t>(tensors), at<std::int32_t>(offsets));
           })
      .def_property_readonly("nonfinite", &Scan::nonfinite)
      .def_property_readonly("threshold", &Scan::threshold)
      .def_property_readonly("passes", &Scan::passes);

  m.def("gather", [](const py::buffer& row_buffer, Address offsets, Address out, int threads) {
    const Table<Row> rows(row_buffer);
    const py::gil_scoped_release release;
    return gather_list(rows.data, rows.size, at<const std::int32_t>(offsets), at<float>(out), threads);
  });
  m.def("gather_bits", [](const py::buffer& row_buffer, Address offsets, Address out, int threads) {
    const Table<Row> rows(row_buffer);
    const py::gil_scoped_release release;
    gather_bits_list(rows.data, rows.size, at<const std::int32_t>(offsets), at<std::uint32_t>(out), threads);
  });
  m.def("scatter", [](const py::buffer& row_buffer, Address offsets, Address values, int threads) {
    const Table<Row> rows(row_buffer);
    const py::gil_scoped_release release;
    scatter_list(rows.data, rows.size, at<const std::int32_t>(offsets), at<const float>(values), threads);
  });
  m.def("swap", [](const py::buffer& row_buffer, Address offsets, Address bits, int threads) {
    const Table<Row> rows(row_buffer);
    const py::gil_scoped_release release;
    swap_list(rows.data, rows.size, at<const std::int32_t>(offsets), at<std::uint32_t>(bits), threads);
  });
  m.def("merge", [](Address offsets, const py::buffer& start_buffer, Address new_offsets,
                    const py::buffer& new_start_buffer, const std::vector<std::pair<Address, Address>>& arrays,
                    int threads) {
    const Table<std::int64_t> starts(start_buffer);
    const Table<std::int64_t> new_starts(new_start_buffer);
    std::vector<MergeArray> views;
    for (const auto& [data, fresh] : arrays) views.push_back({at<std::uint32_t>(data), at<const std::uint32_t>(fresh)});
    const py::gil_scoped_release release;
    std::vector<std::int64_t> places(static_cast<std::size_t>(new_starts.data[new_starts.size - 1]));
    merge_places(at<const std::int32_t>(offsets), starts.data, at<const std::int32_t>(new_offsets), new_starts.data,
                 starts.size - 1, places.data());
    merge_arrays(views.data(), static_cast<std::int64_t>(views.size()), starts.data[starts.size - 1], places.data(),
                 static_cast<std::int64_t>(places.size()), threads);
  });
  m.def("square_sum", [](const py::buffer& row_buffer, Address grads, int threads) {
    const Table<Row> rows(row_buffer);
    const py::gil_scoped_release release;
    return square_sum_list(rows.data, rows.size, at<const float>(grads), threads);
  });

  py::class_<PyAges>(m, "Ages").def(py::init<Address, Address, Address, std::int32_t>());
  m.def("adam", [](const py::buffer& rows, const py::buffer& group_of, const py::buffer& steps,
                   const py::buffer& groups, const std::vector<Address>& arrays, const PyAges* ages, float clip,
                   int threads) {
    step<AdamGroup>(rows, group_of, steps, groups, arrays, ages,
                    [&](const auto& r, const auto* of, const auto* t, const auto& g, const auto& e, const Ages* a) {
                      adam_list(r.data, r.size, of, t, g.data, g.size, e, a, clip, threads);
                    });
  });
  m.def("sgd", [](const py::buffer& rows, const py::buffer& group_of, const py::buffer& steps,
                  const py::buffer& groups, const std::vector<Address>& arrays, const PyAges* ages, float clip,
                  int threads) {
    step<SgdGroup>(rows, group_of, steps, groups, arrays, ages,
                   [&](const auto& r, const auto* of, const auto* t, const auto& g, const auto& e, const Ages* a) {
                     sgd_list(r.data, r.size, of, t, g.data, e, a, clip, threads);
                   });
  });
  m.def(
      "encode_gaps",
      [](Address offsets, std::int64_t count, Address code) {
        return encode_gaps(at<const std::int32_t>(offsets), count, at<std::uint8_t>(code));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def("decode_gaps", [](Address code, std::int64_t length, std::int64_t count, std::int64_t limit, Address offsets) {
    const py::gil_scoped_release release;
    const GapVerdict verdict = decode_gaps(at<const std::uint8_t>(code), length, count, limit, at<std::int32_t>(offsets));
    return std::pair(static_cast<int>(verdict.problem), verdict.block);
  });
  m.def("read", [](const py::buffer& row_buffer, int threads) {
    const Table<Row> rows(row_buffer);
    const py::gil_scoped_release release;
    return read_list(rows.data, rows.size, threads);
  });
}
