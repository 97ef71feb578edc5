// How Python's arguments are read, in both modules: addresses as integers, tables as buffers of 8-byte items.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace selective {
namespace {

using Address = std::uint64_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// A contiguous buffer of 8-byte items seen as an array of structs.
template <class Struct>
struct Table {
  explicit Table(const pybind11::buffer& buffer) : info(buffer.request()) {
    const std::int64_t bytes = info.size * info.itemsize;
    if (info.ndim != 1 || bytes % static_cast<std::int64_t>(sizeof(Struct)) != 0) {
      throw pybind11::value_error("table: expected whole rows of " + std::to_string(sizeof(Struct)) + " bytes, got " +
                                  std::to_string(bytes) + " bytes");
    }
    data = static_cast<const Struct*>(info.ptr);
    size = bytes / static_cast<std::int64_t>(sizeof(Struct));
  }
  pybind11::buffer_info info;
  const Struct* data;
  std::int64_t size;
};

}  // namespace
}  // namespace selective
