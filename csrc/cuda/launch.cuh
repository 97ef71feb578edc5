// How everything here talks to the device: calls whose status becomes an exception, launches, the chosen device.
//
// Device code uses only what the emulation of the device in the tests has, too, whose cuda_runtime.h takes the place of
// the toolkit's there.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

namespace selective {

// Raises RuntimeError in Python, naming the call, unless it succeeded.
inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or whoever asks next would be told of this one
  throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorName(status) + " (" +
                           cudaGetErrorString(status) + ")");
}

// Where work goes: a device, one of its streams, and memory on it that the call may use until its work is done.
struct Place {
  int device;
  cudaStream_t stream;
  char* room;         // aligned to 16 bytes
  std::int64_t size;  // bytes
};

// Makes a device the current one for a block, and checks that the stream belongs to it.
class OnDevice {
 public:
  explicit OnDevice(const Place& place) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (place.device != before_) check(cudaSetDevice(place.device), "cudaSetDevice");
    changed_ = place.device != before_;
    int owner = place.device;
    const cudaError_t status = place.stream == nullptr ? cudaSuccess : cudaStreamGetDevice(place.stream, &owner);
    if (status == cudaSuccess && owner == place.device) return;
    restore();
    check(status, "cudaStreamGetDevice");
    throw std::invalid_argument("stream: expected one of device " + std::to_string(place.device) +
                                ", got one of device " + std::to_string(owner));
  }
  ~OnDevice() { restore(); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  void restore() {
    if (changed_) cudaSetDevice(before_);  // it was the current one before; there is nobody to tell
  }
  int before_ = 0;
  bool changed_ = false;
};

inline std::int64_t blocks_for(std::int64_t items, std::int64_t per_block) {
  return (items + per_block - 1) / per_block;
}

// A grid of so many blocks in one dimension.
inline dim3 grid_of(std::int64_t blocks) {
  if (blocks > 0x7fffffff) {
    throw std::invalid_argument("launch: expected fewer than 2^31 blocks, got " + std::to_string(blocks));
  }
  return dim3(static_cast<unsigned>(blocks));
}

#if defined(SELECTIVE_EMULATION)

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t,
            Arguments&&... arguments) {
  emulation::launch(kernel, grid, block, shared, std::forward<Arguments>(arguments)...);
}

#elif defined(__CUDACC__)

// An array in the memory that a block's threads share.
#define SELECTIVE_SHARED(type, name, count) __shared__ type name[count]

// Enqueues a kernel; arguments are converted to the types of its parameters.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
            Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "a kernel's number of arguments");
  std::tuple<Parameters...> values(static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  std::apply(
      [&](auto&... each) {
        void* addresses[] = {static_cast<void*>(&each)...};
        check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, addresses, shared, stream),
              "cudaLaunchKernel");
      },
      values);
}

#endif

}  // namespace selective
