// pybind11 only: addresses and streams as integers, tables as buffers. Arguments were checked in Python
// (selective_kernels/checks.py). Only an update that selects first waits for the device, and lets go of the GIL for
// that; all others enqueue.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
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

// A merge, with its tables alive.
struct PyMerge {
  Address offsets;
  py::buffer starts;
  Address new_offsets;
  py::buffer new_starts;
  std::vector<std::pair<Address, Address>> arrays;
};

void plan_merge(Plan& plan, const PyMerge& merging) {
  const Table<std::int64_t> starts(merging.starts);
  const Table<std::int64_t> new_starts(merging.new_starts);
  std::vector<MergeArray> views;
  for (const auto& [data, fresh] : merging.arrays) {
    views.push_back({at<std::uint32_t>(data), at<const std::uint32_t>(fresh), 0});
  }
  merge(plan, at<const std::int32_t>(merging.offsets), starts.data, at<const std::int32_t>(merging.new_offsets),
        new_starts.data, starts.size - 1, views);
}

// Plans the merge of new entries into the index, and makes the rows' slices those of the index after it. Returns the
// starts of the new entries.
std::vector<std::int64_t> insert(Plan& plan, std::vector<Row>& rows, const std::int32_t* offsets,
                                 const PyChoosing& choosing, const Chosen& chosen) {
  const Table<std::int64_t> tensors(choosing.tensors);
  const std::vector<std::int64_t> starts = choosing.starts.cast<std::vector<std::int64_t>>();
  std::vector<std::int64_t> new_starts(starts.size(), 0);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    new_starts.at(static_cast<std::size_t>(tensors.data[r]) + 1) = chosen.counts[r];
  }
  for (std::size_t t = 1; t < new_starts.size(); ++t) new_starts[t] += new_starts[t - 1];
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const std::size_t tensor = static_cast<std::size_t>(tensors.data[r]);
    rows[r].begin += new_starts[tensor];
    rows[r].end += new_starts[tensor + 1];
  }
  std::vector<MergeArray> views;
  for (const auto& [data, source, fill] : choosing.arrays) {
    const std::uint32_t* fresh = nullptr;
    if (source == static_cast<int>(Source::bits)) fresh = chosen.bits;
    if (source == static_cast<int>(Source::values)) fresh = reinterpret_cast<const std::uint32_t*>(chosen.values);
    if (source == static_cast<int>(Source::grads)) fresh = reinterpret_cast<const std::uint32_t*>(chosen.grads);
    views.push_back({at<std::uint32_t>(data), fresh, fill});
  }
  views.push_back({at<std::uint32_t>(reinterpret_cast<Address>(offsets)),
                   reinterpret_cast<const std::uint32_t*>(chosen.offsets), 0});
  merge(plan, offsets, starts.data(), chosen.offsets, new_starts.data(), static_cast<std::int64_t>(starts.size()) - 1,
        views);
  return new_starts;
}

// Waits for what a selection finds; other Python threads run meanwhile.
Chosen choose_for(const PyChoosing& choosing, Room& room, const std::vector<Row>& rows,
                  const UpdateArrays& update) {
  const std::int64_t n = static_cast<std::int64_t>(rows.size());
  const Table<std::int64_t> slots(choosing.slots);
  const bool nothing = choosing.starts[choosing.starts.size() - 1].cast<std::int64_t>() == 0;
  const std::int32_t* const selected = nothing ? nullptr : update.offsets;
  float* const grads = selected == nullptr ? nullptr : const_cast<float*>(update.grads);
  const Choosing wanted = choosing_of(choosing, slots.data, selected, grads);
  const Place place = room.part(choosing_room(n, wanted.division.n_slots, wanted.capacity, wanted.k));
  const py::gil_scoped_release others_run;
  return choose(place, rows.data(), n, wanted);
}

// What a step does before its update, in this order.
struct PyBefore {
  const PyChoosing* choosing;     // or null: then what it finds is merged; `merge` and `flag` are null
  const PyMerge* merge;           // or null
  std::optional<Address> flag;    // the selected gradients are gathered, and this flag is raised
  std::optional<double> limit;    // the gradients are clipped to this norm
  double eps;                     // of the clip factor
};

// Outcome, bits of the lowest score, and how many new entries there are; None without a selection.
using PyChosen = std::optional<std::tuple<int, std::uint32_t, std::int64_t>>;

// `call` is one of the two updates.
template <class Group, class Call>
PyChosen step(const PyPlace& place, const py::buffer& row_buffer, const py::buffer& group_of_buffer,
              const py::buffer& step_buffer, const py::buffer& group_buffer, const std::vector<Address>& arrays,
              float clip, const PyAges* ages, const PyBefore* before, Call&& call) {
  const Table<Row> table(row_buffer);
  const Table<std::int64_t> group_of(group_of_buffer);
  const Table<std::int64_t> steps(step_buffer);
  const Table<Group> groups(group_buffer);
  const UpdateArrays update{at<const std::int32_t>(arrays.at(0)), at<const float>(arrays.at(1)),
                            at<float>(arrays.at(2)), at<float>(arrays.at(3)), at<float>(arrays.at(4)), clip,
                            at<const float>(arrays.at(5)), at<const std::int32_t>(arrays.at(6))};
  Plan plan;
  Room room(place_of(place));
  PyChosen found;
  std::vector<std::int64_t> new_starts;
  std::vector<Row> rows(table.data, table.data + table.size);
  const std::int64_t n = table.size;
  if (before != nullptr && before->choosing != nullptr) {
    const PyChoosing& choosing = *before->choosing;
    const Chosen chosen = choose_for(choosing, room, rows, update);
    found = {static_cast<int>(chosen.outcome), chosen.lowest, 0};
    if (chosen.outcome != Outcome::complete) return found;
    new_starts = insert(plan, rows, update.offsets, choosing, chosen);
    std::get<2>(*found) = new_starts.back();
  }
  std::optional<std::size_t> clip_at;
  if (before != nullptr) {
    if (before->merge != nullptr) plan_merge(plan, *before->merge);
    if (before->flag) {
      gather_grads(plan, rows.data(), n, update.offsets, at<float>(arrays.at(1)), at<std::int32_t>(*before->flag));
    }
    if (before->limit) clip_at = clip_factor(plan, rows.data(), n, update.grads, {*before->limit, before->eps});
  }
  const std::size_t* clip_there = clip_at ? &*clip_at : nullptr;
  if (ages == nullptr) {
    call(plan, rows.data(), n, group_of.data, steps.data, groups.data, update, nullptr, clip_there);
  } else {
    const Table<std::int64_t> missed_starts(ages->missed_starts);
    const Table<std::int32_t> missed_steps(ages->missed_steps);
    const Table<std::int64_t> places(ages->places);
    const Ages view{at<const std::int32_t>(ages->chosen), missed_starts.data, missed_steps.data, ages->now,
                    at<const float>(ages->corrections1), at<const float>(ages->corrections2), places.data};
    call(plan, rows.data(), n, group_of.data, steps.data, groups.data, update, &view, clip_there);
  }
  plan.run(room.rest());
  // Here, where nothing can interrupt it: the lists of the index are about to be those with the new entries.
  for (std::size_t t = 0; t < new_starts.size(); ++t) {
    const py::list& starts = before->choosing->starts;
    starts[t] = starts[t].cast<std::int64_t>() + new_starts[t];
  }
  return found;
}

int version(cudaError_t (*query)(int*), const char* name) {
  int found = 0;
  check(query(&found), name);
  return found;
}

// Runs a plan of one operation over the rows in a buffer.
template <class Add>
void planned(const PyPlace& place, const py::buffer& row_buffer, Add&& add) {
  const Table<Row> rows(row_buffer);
  Plan plan;
  add(plan, rows.data, rows.size);
  plan.run(place_of(place));
}

void bind_lists(py::module_& m) {
  m.attr("ROOM_PER_ROW") = kRoomPerRow;
  m.attr("LEAST_ROOM") = kLeastRoom;
  m.def("gather", [](const PyPlace& place, const py::buffer& row_buffer, Address offsets, Address out) {
    planned(place, row_buffer, [&](Plan& plan, const Row* rows, std::int64_t n) {
      gather(plan, rows, n, at<const std::int32_t>(offsets), at<float>(out));
    });
  });
  m.def("gather_bits", [](const PyPlace& place, const py::buffer& row_buffer, Address offsets, Address out) {
    planned(place, row_buffer, [&](Plan& plan, const Row* rows, std::int64_t n) {
      gather_bits(plan, rows, n, at<const std::int32_t>(offsets), at<std::uint32_t>(out));
    });
  });
  m.def("gather_grads",
        [](const PyPlace& place, const py::buffer& row_buffer, Address offsets, Address out, Address flag) {
          planned(place, row_buffer, [&](Plan& plan, const Row* rows, std::int64_t n) {
            gather_grads(plan, rows, n, at<const std::int32_t>(offsets), at<float>(out), at<std::int32_t>(flag));
          });
        });
  m.def("scatter", [](const PyPlace& place, const py::buffer& row_buffer, Address offsets, Address values) {
    planned(place, row_buffer, [&](Plan& plan, const Row* rows, std::int64_t n) {
      scatter(plan, rows, n, at<const std::int32_t>(offsets), at<const float>(values));
    });
  });
  m.def("swap", [](const PyPlace& place, const py::buffer& row_buffer, Address offsets, Address bits) {
    planned(place, row_buffer, [&](Plan& plan, const Row* rows, std::int64_t n) {
      swap(plan, rows, n, at<const std::int32_t>(offsets), at<std::uint32_t>(bits));
    });
  });
  m.def("square_sum", [](const PyPlace& place, const py::buffer& row_buffer, Address grads, Address total) {
    planned(place, row_buffer, [&](Plan& plan, const Row* rows, std::int64_t n) {
      square_sum(plan, rows, n, at<const float>(grads), at<double>(total));
    });
  });
  py::class_<PyMerge>(m, "Merge", py::module_local())
      .def(py::init<Address, py::buffer, Address, py::buffer, std::vector<std::pair<Address, Address>>>())
      .def("run", [](const PyMerge& merging, const PyPlace& place) {
        Plan plan;
        plan_merge(plan, merging);
        plan.run(place_of(place));
      });
}

void bind_updates(py::module_& m) {
  py::class_<PyAges>(m, "Ages", py::module_local())
      .def(py::init<Address, py::buffer, py::buffer, std::int32_t, Address, Address, py::buffer>());
  py::class_<PyBefore>(m, "Before", py::module_local())
      .def(py::init<const PyChoosing*, const PyMerge*, std::optional<Address>, std::optional<double>, double>(),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>());
  m.def("adam", [](const PyPlace& place, const py::buffer& rows, const py::buffer& group_of, const py::buffer& steps,
                   const py::buffer& groups, const std::vector<Address>& arrays, float clip, const PyAges* ages,
                   const PyBefore* before) {
    return step<AdamGroup>(place, rows, group_of, steps, groups, arrays, clip, ages, before,
                    [](Plan& plan, const auto&... arguments) { adam(plan, arguments...); });
  });
  m.def("sgd", [](const PyPlace& place, const py::buffer& rows, const py::buffer& group_of, const py::buffer& steps,
                  const py::buffer& groups, const std::vector<Address>& arrays, float clip, const PyAges* ages,
                  const PyBefore* before) {
    return step<SgdGroup>(place, rows, group_of, steps, groups, arrays, clip, ages, before,
                   [](Plan& plan, const auto&... arguments) { sgd(plan, arguments...); });
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
  bind_scan(m);
}
