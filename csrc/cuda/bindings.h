// What the bindings of all CUDA kernels share. Their classes are py::module_local(), since tests load this module and its
// build for an emulation into one process.
#pragma once

#include <array>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "../buffers.h"
#include "choosing.h"

namespace selective::cuda {

// Device, stream (an address, 0 for the default one), and the room's address and size in bytes.
using PyPlace = std::tuple<int, Address, Address, std::int64_t>;

inline Place place_of(const PyPlace& place) {
  const auto& [device, stream, room, size] = place;
  return {device, reinterpret_cast<cudaStream_t>(stream), at<char>(room), size};
}

// spots, chunks, ranges, tiles, slots
using PyDivision = std::tuple<Address, Address, std::array<std::int64_t, 4>, std::int32_t, std::int64_t>;
// family, exponent, eps, seed
using PyScore = std::tuple<std::int64_t, double, float, std::uint64_t>;
// lines, stride, rank, fixed
using PySample = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::uint32_t>;

// What new entries of an array begin with.
enum class Source : int { fill = 0, bits = 1, values = 2, grads = 3 };

// A selection ahead of an update, with its tables alive. All about the merge of what it finds is there, too.
struct PyChoosing {
  PyDivision division;
  pybind11::buffer slots;
  PyScore score;
  PySample sample;
  std::int64_t capacity;
  std::int64_t k;
  Address flag;
  pybind11::buffer tensors;  // number of each row's tensor
  pybind11::list starts;     // of the index, [n_tensors + 1]; become those of the index with the new entries
  // address, source, fill; the last one is the index list
  std::vector<std::tuple<Address, int, std::uint32_t>> arrays;
};

// scan_bindings.cpp
void bind_scan(pybind11::module_& m);
Choosing choosing_of(const PyChoosing& choosing, const std::int64_t* slots, const std::int32_t* selected,
                     float* selected_grads);

}  // namespace selective::cuda
