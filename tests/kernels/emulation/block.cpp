#include "block.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace emulation {
namespace {

struct Meeting {
  Exchange exchange;
  const char* what;
  unsigned there;  // lanes that have come
  unsigned left;   // lanes that have gone on to something else
};

enum class State { ready, meets, at_barrier, done };

struct Thread {
  std::unique_ptr<Fiber> fiber;
  State state = State::ready;
  Meeting* meeting = nullptr;  // the last one
};

struct Site {
  const void* site;
  std::unique_ptr<std::byte[]> memory;
  std::size_t bytes;
};

// Subnormal numbers count and rounding is to nearest, whatever the calling thread has set: as on the device.
class DeviceArithmetic {
#if defined(__SSE__)
 public:
  DeviceArithmetic() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DeviceArithmetic() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
 public:
  DeviceArithmetic() {}
#endif
};

std::mutex one_launch;
std::vector<Thread> threads(kMostThreads);
std::vector<Meeting> meetings(kMostThreads);  // a warp's are those from its first thread on
std::vector<Site> sites;
std::size_t shared_bytes = 0;
const std::function<void()>* body = nullptr;
std::exception_ptr thrown;
int current = 0;  // thread
int n_threads = 0;

Barrier barrier = Barrier::plain;
int arrived = 0, predicates = 0, outcome = 0;

void thread_main() {
  try {
    (*body)();
  } catch (...) {
    if (thrown == nullptr) thrown = std::current_exception();
  }
  threads[current].state = State::done;
}

void select(int thread) {
  current = thread;
  lane_index = thread % kWarp;
  thread_index = {thread % block_size.x, thread / block_size.x % block_size.y, thread / (block_size.x * block_size.y)};
}

void wait(State state) {
  threads[current].state = state;
  Fiber::suspend();
}

bool can_go_on(const Thread& thread) {
  if (thread.state == State::meets) return thread.meeting->there == thread.meeting->exchange.mask;
  return thread.state == State::ready;
}

// Runs a warp until each of its threads is done or at a barrier of the block.
void run_warp(int first) {
  const int last = std::min(first + kWarp, n_threads);
  for (bool progress = true; progress;) {
    progress = false;
    for (int i = first; i < last; ++i) {
      if (!can_go_on(threads[i])) continue;
      progress = true;
      select(i);
      threads[i].state = State::ready;
      threads[i].fiber->resume();
      if (thrown != nullptr) std::rethrow_exception(thrown);
    }
  }
  for (int i = first; i < last; ++i) {
    if (threads[i].state == State::meets) {
      throw std::runtime_error(std::string(threads[i].meeting->what) +
                               ": lanes of its mask have ended or wait for something else");
    }
  }
}

void release_barrier() {
  if (arrived != n_threads) throw std::runtime_error("__syncthreads: threads of the block have ended before it");
  outcome = barrier == Barrier::all ? predicates == n_threads : barrier == Barrier::any ? predicates > 0 : predicates;
  arrived = predicates = 0;
  for (int i = 0; i < n_threads; ++i) threads[i].state = State::ready;
}

void run_block(std::mt19937* order) {
  sites.clear();
  shared_bytes = 0;
  arrived = predicates = 0;
  for (int i = 0; i < n_threads; ++i) {
    if (threads[i].fiber == nullptr) threads[i].fiber = std::make_unique<Fiber>();
    threads[i].fiber->start(thread_main);
    threads[i].state = State::ready;
    threads[i].meeting = nullptr;
  }
  std::vector<int> warps((n_threads + kWarp - 1) / kWarp);
  for (std::size_t i = 0; i < warps.size() * kWarp; ++i) meetings[i].there = meetings[i].left = 0;
  std::iota(warps.begin(), warps.end(), 0);
  for (;;) {
    if (order != nullptr) std::shuffle(warps.begin(), warps.end(), *order);
    for (int warp : warps) run_warp(warp * kWarp);
    if (arrived == 0) break;
    release_barrier();
  }
}

}  // namespace

void fail(const char* message) { throw std::runtime_error(message); }

void run(Index grid, Index block, const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> guard(one_launch);
  const DeviceArithmetic device;
  const std::uint64_t threads_wanted = std::uint64_t{block.x} * block.y * block.z;
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  if (threads_wanted == 0 || threads_wanted > kMostThreads || blocks == 0 || grid.x > 0x7fffffffu ||
      grid.y > 65535 || grid.z > 65535) {
    fail("launch: invalid configuration");
  }
  n_threads = static_cast<int>(threads_wanted);
  body = &thread;
  block_size = block;
  grid_size = grid;
  thrown = nullptr;
  const char* seed = std::getenv("SELECTIVE_EMULATION_ORDER");
  std::mt19937 random(seed == nullptr ? 0u : static_cast<unsigned>(std::atoi(seed)));
  std::mt19937* order = seed == nullptr || std::atoi(seed) <= 0 ? nullptr : &random;
  std::vector<std::uint64_t> numbers(blocks);
  std::iota(numbers.begin(), numbers.end(), std::uint64_t{0});
  if (order != nullptr) std::shuffle(numbers.begin(), numbers.end(), *order);
  for (std::uint64_t number : numbers) {
    block_index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                   static_cast<unsigned>(number / (std::uint64_t{grid.x} * grid.y))};
    run_block(order);
  }
  sites.clear();
}

int block_barrier(Barrier what, int predicate) {
  if (arrived > 0 && what != barrier) fail("__syncthreads: threads of a block wait at barriers of different kinds");
  barrier = what;
  ++arrived;
  predicates += predicate != 0;
  wait(State::at_barrier);
  return outcome;
}

const Exchange& exchange(const char* what, unsigned mask, std::uint64_t value) {
  const unsigned self = 1u << lane_index;
  if ((mask & self) == 0) fail("a lane is not in the mask that it names");
  Thread& thread = threads[current];
  if (thread.meeting != nullptr) thread.meeting->left |= self;
  const int first = current - lane_index;
  Meeting* meeting = nullptr;
  for (int i = first; meeting == nullptr && i < first + kWarp; ++i) {  // one that still waits for this lane
    Meeting& each = meetings[i];
    const bool waits = each.there != 0 && each.there != each.exchange.mask && (each.there & self) == 0;
    if (waits && each.exchange.mask == mask && std::strcmp(each.what, what) == 0) meeting = &each;
  }
  for (int i = first; meeting == nullptr; ++i) {
    Meeting& each = meetings[i];
    if (each.there != 0 && each.left != each.exchange.mask) continue;
    each = {{{}, mask}, what, 0, 0};
    meeting = &each;
  }
  meeting->exchange.values[lane_index] = value;
  meeting->there |= self;
  thread.meeting = meeting;
  if (meeting->there != mask) wait(State::meets);
  return meeting->exchange;
}

void* shared_memory(const void* site, std::size_t bytes) {
  for (const Site& each : sites) {
    if (each.site == site) return each.memory.get();
  }
  shared_bytes += (bytes + 15) / 16 * 16;
  if (shared_bytes > kSharedBytes) fail("shared memory: a block has no more than 48 KiB");
  sites.push_back({site, std::make_unique<std::byte[]>(bytes), bytes});
  std::memset(sites.back().memory.get(), 0xa5, bytes);
  return sites.back().memory.get();
}

}  // namespace emulation
