// Inserting new entries into an index list and its arrays: two launches, whatever the number of arrays and tensors.
//
// First every entry of both lists goes to its place in a temporary copy of all arrays: its own place plus the number of
// entries of the other list that come before it in their tensor. Then the copy is written back.
#include "lists.h"

namespace selective::cuda {
namespace {

// One of the two lists: its offsets, its slices by tensor, its blocks of kEntries by tensor, and its arrays' addresses.
struct List {
  const std::int32_t* offsets;
  const std::int64_t* starts;          // [n_tensors + 1]
  const std::int64_t* blocks;          // [n_tensors + 1]
  const std::uint32_t* const* arrays;  // [n_arrays]; null for as many fills
  const std::uint32_t* fills;          // [n_arrays]
};

__device__ inline void move_entries(const List& mine, const List& other, std::int64_t n_tensors, std::int64_t block,
                                    std::uint32_t* merged, std::int64_t total, std::int64_t n_arrays) {
  const std::int64_t tensor = find_row(mine.blocks, n_tensors, block);
  const std::int64_t begin = mine.starts[tensor] + (block - mine.blocks[tensor]) * kEntries;
  const std::int64_t last = mine.starts[tensor + 1];
  const std::int64_t end = begin + kEntries < last ? begin + kEntries : last;
  const std::int64_t low = other.starts[tensor];
  const std::int64_t high = other.starts[tensor + 1];
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const std::int64_t place = i + lower_bound(other.offsets, low, high, mine.offsets[i]);
    for (std::int64_t a = 0; a < n_arrays; ++a) {
      const std::uint32_t* array = mine.arrays[a];
      merged[a * total + place] = array == nullptr ? mine.fills[a] : array[i];
    }
  }
}

__global__ void merge_kernel(List old, List fresh, std::int64_t n_tensors, std::int64_t n_old_blocks,
                             std::uint32_t* merged, std::int64_t total, std::int64_t n_arrays) {
  const std::int64_t block = blockIdx.x;
  if (block < n_old_blocks) {
    move_entries(old, fresh, n_tensors, block, merged, total, n_arrays);
  } else {
    move_entries(fresh, old, n_tensors, block - n_old_blocks, merged, total, n_arrays);
  }
}

__global__ void copy_kernel(const std::uint32_t* merged, std::uint32_t* const* arrays, std::int64_t total,
                            std::int64_t n_arrays) {
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kEntries;
  const std::int64_t end = begin + kEntries < total ? begin + kEntries : total;
  for (std::int64_t a = 0; a < n_arrays; ++a) {
    std::uint32_t* array = arrays[a];
    for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) array[i] = merged[a * total + i];
  }
}

std::vector<std::int64_t> blocks_of_list(const std::int64_t* starts, std::int64_t n_tensors) {
  std::vector<std::int64_t> blocks{0};
  for (std::int64_t t = 0; t < n_tensors; ++t) {
    blocks.push_back(blocks.back() + blocks_for(starts[t + 1] - starts[t], kEntries));
  }
  return blocks;
}

}  // namespace

void merge(Plan& plan, const std::int32_t* offsets, const std::int64_t* starts, const std::int32_t* new_offsets,
           const std::int64_t* new_starts, std::int64_t n_tensors, const std::vector<MergeArray>& arrays) {
  if (new_starts[n_tensors] == 0) return;
  const std::int64_t total = starts[n_tensors] + new_starts[n_tensors];
  const std::int64_t n_arrays = static_cast<std::int64_t>(arrays.size());
  const std::vector<std::int64_t> old_blocks = blocks_of_list(starts, n_tensors);
  const std::vector<std::int64_t> new_blocks = blocks_of_list(new_starts, n_tensors);
  std::vector<std::uint32_t*> data;
  std::vector<const std::uint32_t*> fresh;
  std::vector<std::uint32_t> fills;
  for (const MergeArray& array : arrays) {
    data.push_back(array.data);
    fresh.push_back(array.fresh);
    fills.push_back(array.fill);
  }
  const std::size_t starts_at = plan.add(starts, n_tensors + 1);
  const std::size_t new_starts_at = plan.add(new_starts, n_tensors + 1);
  const std::size_t old_blocks_at = plan.add(old_blocks.data(), n_tensors + 1);
  const std::size_t new_blocks_at = plan.add(new_blocks.data(), n_tensors + 1);
  const std::size_t data_at = plan.add(data.data(), n_arrays);
  const std::size_t fresh_at = plan.add(fresh.data(), n_arrays);
  const std::size_t fills_at = plan.add(fills.data(), n_arrays);
  const std::int64_t n_old_blocks = old_blocks.back();
  const std::int64_t n_blocks = n_old_blocks + new_blocks.back();
  plan.then([=](const Place& place, const char* there, Room& room) {
    std::uint32_t* merged = room.take<std::uint32_t>(total * n_arrays);
    const List old_list{offsets, within<std::int64_t>(there, starts_at), within<std::int64_t>(there, old_blocks_at),
                        within<const std::uint32_t*>(there, data_at), within<std::uint32_t>(there, fills_at)};
    const List new_list{new_offsets, within<std::int64_t>(there, new_starts_at),
                        within<std::int64_t>(there, new_blocks_at), within<const std::uint32_t*>(there, fresh_at),
                        within<std::uint32_t>(there, fills_at)};
    launch(merge_kernel, grid_of(n_blocks), dim3(kThreads), 0, place.stream, old_list, new_list, n_tensors,
           n_old_blocks, merged, total, n_arrays);
    launch(copy_kernel, grid_of(blocks_for(total, kEntries)), dim3(kThreads), 0, place.stream, merged,
           within<std::uint32_t*>(there, data_at), total, n_arrays);
  });
}

}  // namespace selective::cuda
