// What the kernels use of CUDA, on the CPU: stands in for the toolkit's header of this name when g++ compiles them.
//
// Device memory is the host's, a stream is nothing, every call has ended when it returns. Only what the kernels and
// their host code use is here; add to it what they come to use.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>
#include <tuple>
#include <type_traits>

#include "block.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

// Memory of the block; the toolkit's `__shared__ type name[count]` cannot be told apart from a local variable here.
#define SELECTIVE_SHARED(type, name, count) \
  type* const name = ::emulation::shared<type, count>(([] { static char site; return &site; })())

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  operator emulation::Index() const { return {x, y, z}; }
};

#define threadIdx (::emulation::thread_index)
#define blockIdx (::emulation::block_index)
#define blockDim (::emulation::block_size)
#define gridDim (::emulation::grid_size)
constexpr int warpSize = emulation::kWarp;

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulation {

template <class T, std::size_t count>
T* shared(const void* site) {
  static_assert(std::is_trivially_copyable_v<T>);
  return static_cast<T*>(shared_memory(site, sizeof(T) * count));
}

template <class T>
std::uint64_t as_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T of_bits(std::uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
T shuffled(const char* what, unsigned mask, T value, int source, int width) {
  const int base = lane_index / width * width;
  const Exchange& met = exchange(what, mask, as_bits(value));
  if (source < base || source >= base + width) source = lane_index;
  if ((met.mask >> source & 1) == 0) fail("__shfl_sync: the value of a lane that takes no part");
  return of_bits<T>(met.values[source]);
}

template <class T>
T checked_load(const T* address) {
  if (reinterpret_cast<std::uintptr_t>(address) % sizeof(T) != 0) fail("a load from a misaligned address");
  return *address;
}

// Like the toolkit's launch: arguments are converted to the kernel's parameters once; each thread has its own copies.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes, A&&... arguments) {
  if (shared_bytes != 0) fail("launch: dynamic shared memory is not emulated");
  const std::tuple<std::decay_t<P>...> values(static_cast<std::decay_t<P>>(arguments)...);
  run(grid, block, [&] { std::apply(kernel, values); });
}

}  // namespace emulation

// ---------------------------------------------------------------- threads of a block and of a warp

inline void __syncthreads() { emulation::block_barrier(emulation::Barrier::plain, 0); }
inline int __syncthreads_count(int p) { return emulation::block_barrier(emulation::Barrier::count, p); }
inline int __syncthreads_and(int p) { return emulation::block_barrier(emulation::Barrier::all, p); }
inline int __syncthreads_or(int p) { return emulation::block_barrier(emulation::Barrier::any, p); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::exchange("__syncwarp", mask, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  const int base = emulation::lane_index / width * width;
  return emulation::shuffled("__shfl_sync", mask, value, base + (lane & (width - 1)), width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulation::shuffled("__shfl_up_sync", mask, value, emulation::lane_index - static_cast<int>(delta), width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulation::shuffled("__shfl_down_sync", mask, value, emulation::lane_index + static_cast<int>(delta), width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return emulation::shuffled("__shfl_xor_sync", mask, value, emulation::lane_index ^ lanes, width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const emulation::Exchange& met = emulation::exchange("__ballot_sync", mask, predicate != 0);
  unsigned bits = 0;
  for (int i = 0; i < emulation::kWarp; ++i) bits |= static_cast<unsigned>(met.values[i]) << i;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  const emulation::Exchange& met = emulation::exchange("__match_any_sync", mask, emulation::as_bits(value));
  unsigned same = 0;
  for (int i = 0; i < emulation::kWarp; ++i) {
    same |= static_cast<unsigned>((mask >> i & 1) != 0 && met.values[i] == emulation::as_bits(value)) << i;
  }
  return same;
}
namespace emulation {
template <class T, class F>
T reduced(const char* what, unsigned mask, T value, F&& join) {
  const Exchange& met = exchange(what, mask, as_bits(value));
  for (int i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1) != 0 && i != lane_index) value = join(value, of_bits<T>(met.values[i]));
  }
  return value;
}
}  // namespace emulation
#define EMULATION_REDUCE(name, T, expression)                                                              \
  inline T name(unsigned mask, T value) {                                                                  \
    return emulation::reduced<T>(#name, mask, value, [](T a, T b) { return static_cast<T>(expression); }); \
  }
EMULATION_REDUCE(__reduce_add_sync, unsigned, a + b)
EMULATION_REDUCE(__reduce_add_sync, int, a + b)
EMULATION_REDUCE(__reduce_max_sync, unsigned, std::max(a, b))
EMULATION_REDUCE(__reduce_max_sync, int, std::max(a, b))
EMULATION_REDUCE(__reduce_min_sync, unsigned, std::min(a, b))
EMULATION_REDUCE(__reduce_min_sync, int, std::min(a, b))
EMULATION_REDUCE(__reduce_or_sync, unsigned, a | b)
EMULATION_REDUCE(__reduce_and_sync, unsigned, a & b)
#undef EMULATION_REDUCE

// ---------------------------------------------------------------- memory

#define EMULATION_ATOMIC(name, expression)                   \
  template <class T>                                         \
  T name(T* address, std::common_type_t<T> b) {              \
    const T a = emulation::checked_load(address);            \
    *address = static_cast<T>(expression);                   \
    return a;                                                \
  }
EMULATION_ATOMIC(atomicAdd, a + b)
EMULATION_ATOMIC(atomicSub, a - b)
EMULATION_ATOMIC(atomicMax, std::max(a, b))
EMULATION_ATOMIC(atomicMin, std::min(a, b))
EMULATION_ATOMIC(atomicOr, a | b)
EMULATION_ATOMIC(atomicAnd, a& b)
EMULATION_ATOMIC(atomicXor, a ^ b)
EMULATION_ATOMIC(atomicExch, b)
#undef EMULATION_ATOMIC
template <class T>
T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  const T old = emulation::checked_load(address);
  if (old == expected) *address = value;
  return old;
}
#define EMULATION_LOAD(name) \
  template <class T>         \
  T name(const T* address) { \
    return emulation::checked_load(address); \
  }
EMULATION_LOAD(__ldg)
EMULATION_LOAD(__ldcg)
EMULATION_LOAD(__ldcs)
EMULATION_LOAD(__ldca)
#undef EMULATION_LOAD

// ---------------------------------------------------------------- numbers

inline unsigned __float_as_uint(float x) { return emulation::of_bits<unsigned>(emulation::as_bits(x)); }
inline int __float_as_int(float x) { return emulation::of_bits<int>(emulation::as_bits(x)); }
inline float __uint_as_float(unsigned x) { return emulation::of_bits<float>(x); }
inline float __int_as_float(int x) { return emulation::of_bits<float>(emulation::as_bits(x)); }
inline long long __double_as_longlong(double x) { return emulation::of_bits<long long>(emulation::as_bits(x)); }
inline double __longlong_as_double(long long x) { return emulation::of_bits<double>(emulation::as_bits(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
using std::max;
using std::min;

// ---------------------------------------------------------------- the host's side

#include "runtime_calls.h"
