// Kernels that the emulation itself is tested with, and a plain C interface to them.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

namespace {

constexpr unsigned kAll = 0xffffffffu;

// out[block] = sum of in over the block: warps first, then across warps through shared memory.
__global__ void block_sum(const int* in, int count, int* out) {
  SELECTIVE_SHARED(int, partial, 32);
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  int value = i < count ? in[i] : 0;
  for (int delta = 16; delta > 0; delta /= 2) value += __shfl_down_sync(kAll, value, delta);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x < 32) {
    value = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0;
    value = __reduce_add_sync(kAll, value);
    if (threadIdx.x == 0) out[blockIdx.x] = value;
  }
}

// The even lanes meet twice, the odd ones three times, all in one warp: out[lane] = ballot of the last meeting.
__global__ void halves(unsigned* out) {
  const int lane = static_cast<int>(threadIdx.x);
  unsigned seen = 0;
  if (lane % 2 == 0) {
    for (int i = 0; i < 2; ++i) seen = __ballot_sync(0x55555555u, lane >= i * 16);
  } else {
    for (int i = 0; i < 3; ++i) seen = __ballot_sync(0xaaaaaaaau, lane >= i * 8);
  }
  __syncwarp();
  out[lane] = seen;
}

// Lacks a barrier: what a thread reads was written by another warp, or was not.
__global__ void race(int* out) {
  SELECTIVE_SHARED(int, mail, 64);
  mail[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = mail[63 - threadIdx.x];
}

__global__ void take_numbers(int* counter, int* out) { out[blockIdx.x] = atomicAdd(counter, 1); }

__global__ void some_leave_before_the_barrier() {
  if (threadIdx.x >= 32) return;
  __syncthreads();
}
__global__ void a_lane_is_missing(int* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_sync(kAll, 1, 0);
}
__global__ void different_purposes(int* out) {
  out[threadIdx.x] = threadIdx.x == 0 ? __shfl_sync(kAll, 1, 0) : __any_sync(kAll, 1);
}
__global__ void misaligned(const char* in, unsigned* out) { *out = __ldg(reinterpret_cast<const uint4*>(in)).x; }
__global__ void too_much_shared() {
  SELECTIVE_SHARED(double, large, 6145);
  large[0] = 0.0;
}
__global__ void beyond_shared(int i, int* out) {
  SELECTIVE_SHARED(int, four, 4);
  four[i] = 1;
  *out = four[i];
}

template <class F>
int guarded(char* message, std::size_t room, F&& f) {
  try {
    f();
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(message, room, "%s", error.what());
    return 1;
  }
}

}  // namespace

// Runs the kernel of a number on `out`; returns 1 with a message if the emulation complains.
extern "C" __attribute__((visibility("default"))) int selfcheck(int which, int* out, const int* in, int count,
                                                                int blocks, int threads, char* message, int room) {
  using emulation::launch;
  return guarded(message, static_cast<std::size_t>(room), [&] {
    auto* const words = reinterpret_cast<unsigned*>(out);
    const auto* const bytes = reinterpret_cast<const char*>(in);
    if (which == 0) launch(block_sum, blocks, threads, 0, in, count, out);
    if (which == 1) launch(halves, 1, 32, 0, words);
    if (which == 2) launch(race, 1, 64, 0, out);
    if (which == 3) launch(take_numbers, blocks, threads, 0, out + blocks, out);
    if (which == 4) launch(some_leave_before_the_barrier, 1, 64, 0);
    if (which == 5) launch(a_lane_is_missing, 1, 32, 0, out);
    if (which == 6) launch(different_purposes, 1, 32, 0, out);
    if (which == 7) launch(misaligned, 1, 1, 0, bytes + 4, words);
    if (which == 8) launch(too_much_shared, 1, 1, 0);
    if (which == 9) launch(beyond_shared, 1, 1, 0, count, out);
    if (which == 10) launch(block_sum, blocks, threads, 16, in, count, out);
  });
}
