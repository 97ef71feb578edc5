// Prefetches go into the second cache: it can have more misses under way than the first one, whose buffers stay free
// for what is read now.
#pragma once

#include <cstdint>

namespace selective {
namespace {

inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

// For loops over data[offsets[i]], i in [0, count): fetches what comes about two memory latencies later.
template <class T>
inline void prefetch_entry(const T* data, const std::int32_t* offsets, std::int64_t i, std::int64_t count) {
  constexpr std::int64_t kAhead = 64;  // entries
  if (i + kAhead < count) prefetch(data + offsets[i + kAhead]);
}

}  // namespace
}  // namespace selective
