// The sum of squares of the selected gradients: the same bits in every run, whatever runs beside it.
#include "lists.h"
#include "rows.cuh"

namespace selective::cuda {
namespace {

// The sum of what all threads of a block hold, in thread 0: neighbours first.
__device__ inline double sum_of_block(double mine, double* shared) {
  shared[threadIdx.x] = mine;
  __syncthreads();
  for (unsigned step = 1; step < kThreads; step *= 2) {
    if (threadIdx.x % (2 * step) == 0) shared[threadIdx.x] += shared[threadIdx.x + step];
    __syncthreads();
  }
  return shared[0];
}

__global__ void square_kernel(Rows rows, const float* grads, double* sums) {
  SELECTIVE_SHARED(double, shared, kThreads);
  const Span span = span_of(rows, blockIdx.x, kNormBlock);
  double mine = 0.0;
  for (std::int64_t i = span.begin + threadIdx.x; i < span.end; i += kThreads) {
    mine += static_cast<double>(grads[i]) * grads[i];
  }
  const double sum = sum_of_block(mine, shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void total_kernel(const double* sums, std::int64_t n, double* total) {
  SELECTIVE_SHARED(double, shared, kThreads);
  double mine = 0.0;
  for (std::int64_t i = threadIdx.x; i < n; i += kThreads) mine += sums[i];
  const double sum = sum_of_block(mine, shared);
  if (threadIdx.x == 0) *total = sum;
}

}  // namespace

void square_sum(const Place& place, const Row* rows, std::int64_t n, const float* grads, double* total) {
  const std::vector<std::int64_t> blocks = blocks_of(rows, n, kNormBlock);
  const OnDevice current(place);
  Room room(place);
  Packet packet;
  const std::size_t rows_at = packet.add(rows, n);
  const std::size_t blocks_at = packet.add(blocks.data(), n + 1);
  const char* there = packet.send_to(place, room);
  double* sums = room.take<double>(blocks.back());
  if (blocks.back() != 0) {
    const Rows table{within<Row>(there, rows_at), within<std::int64_t>(there, blocks_at), n};
    launch(square_kernel, grid_of(blocks.back()), dim3(kThreads), 0, place.stream, table, grads, sums);
  }
  launch(total_kernel, dim3(1), dim3(kThreads), 0, place.stream, sums, blocks.back(), total);
}

}  // namespace selective::cuda
