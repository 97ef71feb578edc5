// The table of tensors on the device, and how kernels over an index list find their entries through it.
#pragma once

#include <cstring>
#include <vector>

#include "../convert.h"
#include "../row.h"
#include "staging.h"

namespace selective {

constexpr int kThreads = 256;            // of a block of a kernel over an index list
constexpr std::int64_t kEntries = 512;   // of the index list that a block handles; blocks never straddle tensors
constexpr std::uint32_t kInfinityBits = kLargestBits + 1;

// Tables that go to the device together, in one copy.
class Packet {
 public:
  // The place in the packet, in bytes, of a copy of `n` items.
  template <class T>
  std::size_t add(const T* items, std::int64_t n) {
    const std::size_t begin = (bytes_.size() + 15) / 16 * 16;
    const std::size_t size = static_cast<std::size_t>(n) * sizeof(T);
    bytes_.resize(begin + size);
    if (size != 0) std::memcpy(bytes_.data() + begin, items, size);
    return begin;
  }
  // The packet's address on the device; its contents are there for whatever is enqueued afterwards.
  char* send_to(const Place& place, Room& room) const {
    char* const target = room.take<char>(static_cast<std::int64_t>(bytes_.size()));
    send(place, target, bytes_.data(), bytes_.size());
    return target;
  }

 private:
  std::vector<char> bytes_;
};

template <class T>
const T* within(const char* packet, std::size_t begin) {
  return reinterpret_cast<const T*>(packet + begin);
}

// Running count of blocks of `per_block` entries of the rows' slices of the index list, [n + 1].
inline std::vector<std::int64_t> blocks_of(const Row* rows, std::int64_t n, std::int64_t per_block) {
  std::vector<std::int64_t> starts(static_cast<std::size_t>(n) + 1, 0);
  for (std::int64_t r = 0; r < n; ++r) {
    const std::size_t at = static_cast<std::size_t>(r);
    starts[at + 1] = starts[at] + blocks_for(rows[r].end - rows[r].begin, per_block);
  }
  return starts;
}

// What kernels over an index list get: rows and their running counts of blocks.
struct Rows {
  const Row* rows;             // [n]
  const std::int64_t* blocks;  // [n + 1]
  std::int64_t n;
};

namespace {

// The last place whose start is at most `value`; starts [n + 1] ascend from 0, and value is below the last of them.
SELECTIVE_HD inline std::int64_t find_row(const std::int64_t* starts, std::int64_t n, std::int64_t value) {
  std::int64_t low = 0;
  std::int64_t high = n;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    if (starts[middle] <= value) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// The first place in [low, high) whose item is at least `value`; the items ascend.
SELECTIVE_HD inline std::int64_t lower_bound(const std::int32_t* ascending, std::int64_t low, std::int64_t high,
                                             std::int32_t value) {
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (ascending[middle] < value) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// What a block of threads handles: entries [begin, end) of the index list, all of one tensor.
struct Span {
  std::int64_t row;
  std::int64_t begin;
  std::int64_t end;
};

SELECTIVE_HD inline Span span_of(const Rows& rows, std::int64_t block, std::int64_t per_block) {
  const std::int64_t row = find_row(rows.blocks, rows.n, block);
  const std::int64_t begin = rows.rows[row].begin + (block - rows.blocks[row]) * per_block;
  const std::int64_t end = rows.rows[row].end;
  return {row, begin, begin + per_block < end ? begin + per_block : end};
}

}  // namespace
}  // namespace selective
