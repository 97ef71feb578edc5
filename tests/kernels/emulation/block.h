// One block of threads after the other, on the CPU: barriers, warps that exchange values, and shared memory.
//
// What a GPU leaves undefined is an error here where it can be seen: threads of a block that wait for different things,
// threads that end while others wait for them, values of lanes that take no part. Shared memory is filled with noise
// before each block. A launch runs to its end before the next one starts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulation {

struct Index {
  unsigned x, y, z;
};

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;           // of a block
constexpr std::size_t kSharedBytes = 48 << 10;  // of a block: what every GPU gives without being asked

// Of the running thread.
inline Index thread_index, block_index, block_size, grid_size;
inline int lane_index = 0;

// Runs `thread` once for each thread of each block.
//
// Blocks run in the order of their numbers; with a positive number in the environment variable
// SELECTIVE_EMULATION_ORDER, blocks, and the warps of a block between two barriers, run in an order that it seeds.
//
// Throws std::runtime_error with what a GPU would do wrong, or what a thread has thrown.
void run(Index grid, Index block, const std::function<void()>& thread);

enum class Barrier : int { plain, count, all, any };

// __syncthreads and its relatives.
int block_barrier(Barrier what, int predicate);

// The values that the lanes of `mask` bring to the same meeting; 0 for those that do not take part.
struct Exchange {
  std::uint64_t values[kWarp];
  unsigned mask;
};

// Waits until all lanes of `mask` are here, with the same `what`. The result holds until the thread meets others again.
const Exchange& exchange(const char* what, unsigned mask, std::uint64_t value);

// The block's own memory of `site`, the same for all its threads.
void* shared_memory(const void* site, std::size_t bytes);

[[noreturn]] void fail(const char* message);

}  // namespace emulation
