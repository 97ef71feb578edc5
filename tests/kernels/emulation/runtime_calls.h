// The calls of the CUDA runtime that the host code makes; cuda_runtime.h of this folder includes them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
};
// An event has happened once the host has asked for it, so that what waits for one has to be kept meanwhile.
struct EmulatedEvent {
  bool asked = true;
};
struct EmulatedStream;
using cudaStream_t = EmulatedStream*;
using cudaEvent_t = EmulatedEvent*;

enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
constexpr unsigned cudaEventDisableTiming = 2;
constexpr unsigned cudaHostAllocDefault = 0;

namespace emulation {

constexpr int kDevices = 2;  // with one memory; stream number 16 d and the 15 after it are device d's

inline int& current_device() {
  static int device = 0;
  return device;
}

// What a call gives: an error if the environment variable SELECTIVE_EMULATION_FAIL names it.
inline cudaError_t outcome(const char* call, bool right = true, cudaError_t wrong = cudaErrorInvalidValue) {
  const char* failing = std::getenv("SELECTIVE_EMULATION_FAIL");
  if (failing != nullptr && std::strcmp(failing, call) == 0) return cudaErrorIllegalAddress;
  return right ? cudaSuccess : wrong;
}

}  // namespace emulation

inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "emulated"; }
inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define EMULATION_NAME(error) \
  case error:                 \
    return #error;
    EMULATION_NAME(cudaSuccess)
    EMULATION_NAME(cudaErrorInvalidValue)
    EMULATION_NAME(cudaErrorMemoryAllocation)
    EMULATION_NAME(cudaErrorNoDevice)
    EMULATION_NAME(cudaErrorInvalidDevice)
    EMULATION_NAME(cudaErrorInvalidResourceHandle)
    EMULATION_NAME(cudaErrorNotReady)
    EMULATION_NAME(cudaErrorIllegalAddress)
#undef EMULATION_NAME
  }
  return "an unknown error";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) {  // as without a driver
  return *version = 0, emulation::outcome("cudaDriverGetVersion");
}
inline cudaError_t cudaRuntimeGetVersion(int* version) {
  return *version = 13000, emulation::outcome("cudaRuntimeGetVersion");
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  return *count = emulation::kDevices, emulation::outcome("cudaGetDeviceCount");
}
inline cudaError_t cudaGetDevice(int* device) {
  return *device = emulation::current_device(), emulation::outcome("cudaGetDevice");
}
inline cudaError_t cudaSetDevice(int device) {
  const bool there = device >= 0 && device < emulation::kDevices;
  const cudaError_t status = emulation::outcome("cudaSetDevice", there, cudaErrorInvalidDevice);
  if (status == cudaSuccess) emulation::current_device() = device;
  return status;
}
inline cudaError_t cudaStreamGetDevice(cudaStream_t stream, int* device) {
  const std::uintptr_t owner = reinterpret_cast<std::uintptr_t>(stream) / 16;
  *device = static_cast<int>(owner % emulation::kDevices);
  return emulation::outcome("cudaStreamGetDevice", owner < emulation::kDevices, cudaErrorInvalidResourceHandle);
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return emulation::outcome("cudaStreamSynchronize"); }
inline cudaError_t cudaDeviceSynchronize() { return emulation::outcome("cudaDeviceSynchronize"); }
inline cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t = nullptr) {
  std::memset(address, value, bytes);
  return emulation::outcome("cudaMemsetAsync");
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
  std::memcpy(to, from, bytes);
  return emulation::outcome("cudaMemcpyAsync");
}
inline cudaError_t cudaHostAlloc(void** address, std::size_t bytes, unsigned) {
  *address = std::malloc(bytes);
  return emulation::outcome("cudaHostAlloc", *address != nullptr, cudaErrorMemoryAllocation);
}
inline cudaError_t cudaFreeHost(void* address) { return std::free(address), emulation::outcome("cudaFreeHost"); }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = new EmulatedEvent, emulation::outcome("cudaEventCreateWithFlags");
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, emulation::outcome("cudaEventDestroy"); }
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t = nullptr) {
  return event->asked = false, emulation::outcome("cudaEventRecord");
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  return emulation::outcome("cudaEventQuery", std::exchange(event->asked, true), cudaErrorNotReady);
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return event->asked = true, emulation::outcome("cudaEventSynchronize");
}
