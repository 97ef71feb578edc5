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

// A block that no copy uses any more, the last one of those found.
Block& block_of(std::vector<Block>& found, std::size_t bytes) {
  for (Block& block : found) {
    if (block.size < bytes || !is_free(block)) continue;
    std::swap(block, found.back());
    return found.back();
  }
  Block block;
  block.size = bytes < kLeast ? kLeast : 2 * bytes;
  check(cudaEventCreateWithFlags(&block.done, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  void* data = nullptr;
  const cudaError_t status = cudaHostAlloc(&data, block.size, cudaHostAllocDefault);
  if (status != cudaSuccess) cudaEventDestroy(block.done);
  check(status, "cudaHostAlloc");
  block.data = static_cast<char*>(data);
  found.push_back(block);
  return found.back();
}

// A block that is nobody else's until this goes.
class Borrowed {
 public:
  Borrowed(int device, std::size_t bytes) : device_(device) {
    const std::lock_guard<std::mutex> lock(blocks().mutex);
    std::vector<Block>& found = blocks().of_device[device];
    block = block_of(found, bytes);
    found.pop_back();
  }
  ~Borrowed() {
    const std::lock_guard<std::mutex> lock(blocks().mutex);
    blocks().of_device[device_].push_back(block);
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  Block block;

 private:
  int device_;
};

}  // namespace

void send(const Place& place, void* target, const void* source, std::size_t bytes) {
  if (bytes == 0) return;
  Blocks& all = blocks();
  const std::lock_guard<std::mutex> lock(all.mutex);
  Block& block = block_of(all.of_device[place.device], bytes);
  std::memcpy(block.data, source, bytes);
  check(cudaMemcpyAsync(target, block.data, bytes, cudaMemcpyHostToDevice, place.stream), "cudaMemcpyAsync");
  check(cudaEventRecord(block.done, place.stream), "cudaEventRecord");
}

void receive(const Place& place, std::initializer_list<Fetching> copies) {
  std::size_t bytes = 0;
  for (const Fetching& each : copies) bytes += each.bytes;
  const Borrowed borrowed(place.device, bytes);
  const Block& block = borrowed.block;
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
}

}  // namespace selective
