#include "staging.h"

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace selective {
namespace {

constexpr std::size_t kLeast = 1 << 16;  // bytes of a block

// Page-locked memory, and the event after which its last copy is done.
struct Block {
  char* data = nullptr;
  std::size_t size = 0;
  cudaEvent_t done = nullptr;
};

struct Blocks {
  std::mutex mutex;
  std::map<int, std::vector<Block>> of_device;
};

// Never freed: when a process ends, the driver may be gone before its destructors run.
Blocks& blocks() {
  static Blocks* const all = new Blocks;
  return *all;
}

bool is_free(const Block& block) {
  const cudaError_t status = cudaEventQuery(block.done);
  if (status == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check(status, "cudaEventQuery");
  return true;
}

// A block that no copy uses any more, nobody else's until it is given back. If a call fails before that, it is lost, since
// a copy may still use it.
Block take(int device, std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(blocks().mutex);
  std::vector<Block>& found = blocks().of_device[device];
  for (Block& each : found) {
    if (each.size < bytes || !is_free(each)) continue;
    std::swap(each, found.back());
    const Block block = found.back();
    found.pop_back();
    return block;
  }
  Block block;
  block.size = bytes < kLeast ? kLeast : 2 * bytes;
  check(cudaEventCreateWithFlags(&block.done, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  void* data = nullptr;
  const cudaError_t status = cudaHostAlloc(&data, block.size, cudaHostAllocDefault);
  if (status != cudaSuccess) cudaEventDestroy(block.done);
  check(status, "cudaHostAlloc");
  block.data = static_cast<char*>(data);
  return block;
}

void give_back(int device, const Block& block) {
  const std::lock_guard<std::mutex> lock(blocks().mutex);
  blocks().of_device[device].push_back(block);
}

}  // namespace

void send(const Place& place, void* target, const void* source, std::size_t bytes) {
  if (bytes == 0) return;
  const Block block = take(place.device, bytes);
  std::memcpy(block.data, source, bytes);
  check(cudaMemcpyAsync(target, block.data, bytes, cudaMemcpyHostToDevice, place.stream), "cudaMemcpyAsync");
  check(cudaEventRecord(block.done, place.stream), "cudaEventRecord");
  give_back(place.device, block);
}

void receive(const Place& place, std::initializer_list<Fetching> copies) {
  std::size_t bytes = 0;
  for (const Fetching& each : copies) bytes += each.bytes;
  const Block block = take(place.device, bytes);
  char* there = block.data;
  for (const Fetching& each : copies) {
    check(cudaMemcpyAsync(there, each.source, each.bytes, cudaMemcpyDeviceToHost, place.stream), "cudaMemcpyAsync");
    there += each.bytes;
  }
  check(cudaEventRecord(block.done, place.stream), "cudaEventRecord");
  check(cudaEventSynchronize(block.done), "cudaEventSynchronize");
  there = block.data;
  for (const Fetching& each : copies) {
    std::memcpy(each.target, there, each.bytes);
    there += each.bytes;
  }
  give_back(place.device, block);
}

}  // namespace selective
