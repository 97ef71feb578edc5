// The sum of squares of the selected gradients: the same bits in every run, whatever runs beside it.
#include "lists.h"

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

// total and factor [1] each; limit.limit < 0: no factor is wanted.
__global__ void total_kernel(const double* sums, std::int64_t n, double* total, ClipLimit limit, float* factor) {
  SELECTIVE_SHARED(double, shared, kThreads);
  double mine = 0.0;
  for (std::int64_t i = threadIdx.x; i < n; i += kThreads) mine += sums[i];
  const double sum = sum_of_block(mine, shared);
  if (threadIdx.x != 0) return;
  *total = sum;
  if (limit.limit < 0.0) return;
  const double wanted = limit.limit / (std::sqrt(sum) + limit.eps);
  *factor = static_cast<float>(wanted > 1.0 ? 1.0 : wanted);
}

constexpr ClipLimit kNoLimit{-1.0, 0.0};

// Plans the sum; `ends` gives, where the plan's tables are, the addresses of total and factor.
template <class Ends>
void plan_sum(Plan& plan, const Row* rows, std::int64_t n, const float* grads, const ClipLimit& limit, Ends ends) {
  const PlannedRows table = plan_rows(plan, rows, n, kNormBlock);
  plan.then([=](const Place& place, char* there, Room& room) {
    double* sums = room.take<double>(table.n_blocks);
    if (table.n_blocks != 0) {
      launch(square_kernel, grid_of(table.n_blocks), dim3(kThreads), 0, place.stream, table.on_device(there), grads,
             sums);
    }
    const auto [total, factor] = ends(there);
    launch(total_kernel, dim3(1), dim3(kThreads), 0, place.stream, sums, table.n_blocks, total, limit, factor);
  });
}

}  // namespace

void square_sum(Plan& plan, const Row* rows, std::int64_t n, const float* grads, double* total) {
  plan_sum(plan, rows, n, grads, kNoLimit,
           [=](char*) { return std::pair<double*, float*>(total, nullptr); });
}

std::size_t clip_factor(Plan& plan, const Row* rows, std::int64_t n, const float* grads, const ClipLimit& limit) {
  const double zeros[2] = {};
  const std::size_t total_at = plan.add(zeros, 2);
  const std::size_t factor_at = total_at + sizeof(double);
  plan_sum(plan, rows, n, grads, limit, [=](char* there) {
    return std::pair(reinterpret_cast<double*>(there + total_at), reinterpret_cast<float*>(there + factor_at));
  });
  return factor_at;
}

}  // namespace selective::cuda
