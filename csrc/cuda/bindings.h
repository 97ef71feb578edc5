// What the bindings of all CUDA kernels share. Their classes are py::module_local(), since tests load this module and its
// build for an emulation into one process.
#pragma once

#include <cstdint>
#include <tuple>

#include "../buffers.h"
#include "launch.cuh"

namespace selective::cuda {

// Device, stream (an address, 0 for the default one), and the room's address and size in bytes.
using PyPlace = std::tuple<int, Address, Address, std::int64_t>;

inline Place place_of(const PyPlace& place) {
  const auto& [device, stream, room, size] = place;
  return {device, reinterpret_cast<cudaStream_t>(stream), at<char>(room), size};
}

void bind_scan(pybind11::module_& m);  // scan_bindings.cpp

}  // namespace selective::cuda
