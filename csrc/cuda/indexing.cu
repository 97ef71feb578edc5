// Gather, scatter and swap of single entries by flat offset: one launch, whatever the number of rows.
#include "lists.h"

namespace selective::cuda {
namespace {

enum class What { values, bits, grads };

template <What what>
__global__ void gather_kernel(Rows rows, const std::int32_t* offsets, std::uint32_t* out, std::int32_t* flag) {
  const Span span = span_of(rows, blockIdx.x, kEntries);
  const Row& row = rows.rows[span.row];
  with_dtype(static_cast<DType>(row.dtype), [&](auto storage) {
    const auto* data = reinterpret_cast<const decltype(storage)*>(what == What::grads ? row.grad : row.param);
    bool finite = true;
    for (std::int64_t i = span.begin + threadIdx.x; i < span.end; i += kThreads) {
      const auto stored = data[offsets[i]];
      const std::uint32_t bits = what == What::bits ? raw_bits(stored) : bits_of(widen(stored));
      out[i] = bits;
      finite = finite && (bits & 0x7fffffffu) < kInfinityBits;
    }
    if (what == What::grads && !finite) *flag = 1;  // whoever writes writes the same
  });
}

__global__ void scatter_kernel(Rows rows, const std::int32_t* offsets, const float* values) {
  const Span span = span_of(rows, blockIdx.x, kEntries);
  const Row& row = rows.rows[span.row];
  with_dtype(static_cast<DType>(row.dtype), [&](auto storage) {
    using T = decltype(storage);
    T* data = reinterpret_cast<T*>(row.param);
    for (std::int64_t i = span.begin + threadIdx.x; i < span.end; i += kThreads) {
      data[offsets[i]] = narrow<T>(values[i]);
    }
  });
}

__global__ void swap_kernel(Rows rows, const std::int32_t* offsets, std::uint32_t* bits) {
  const Span span = span_of(rows, blockIdx.x, kEntries);
  const Row& row = rows.rows[span.row];
  with_dtype(static_cast<DType>(row.dtype), [&](auto storage) {
    using T = decltype(storage);
    T* data = reinterpret_cast<T*>(row.param);
    for (std::int64_t i = span.begin + threadIdx.x; i < span.end; i += kThreads) {
      const std::int32_t offset = offsets[i];
      const std::uint32_t before = raw_bits(data[offset]);
      data[offset] = from_raw_bits<T>(bits[i]);
      bits[i] = before;
    }
  });
}

// Plans a launch over the entries of all rows, if there are any.
template <class... Parameters, class... Arguments>
void over_entries(Plan& plan, const Row* rows, std::int64_t n, void (*kernel)(Rows, Parameters...),
                  Arguments... arguments) {
  const PlannedRows table = plan_rows(plan, rows, n, kEntries);
  if (table.n_blocks == 0) return;
  plan.then([=](const Place& place, const char* there, Room&) {
    launch(kernel, grid_of(table.n_blocks), dim3(kThreads), 0, place.stream, table.on_device(there), arguments...);
  });
}

}  // namespace

void gather(Plan& plan, const Row* rows, std::int64_t n, const std::int32_t* offsets, float* out) {
  auto* bits = reinterpret_cast<std::uint32_t*>(out);
  over_entries(plan, rows, n, gather_kernel<What::values>, offsets, bits, static_cast<std::int32_t*>(nullptr));
}

void gather_bits(Plan& plan, const Row* rows, std::int64_t n, const std::int32_t* offsets,
                 std::uint32_t* out) {
  over_entries(plan, rows, n, gather_kernel<What::bits>, offsets, out, static_cast<std::int32_t*>(nullptr));
}

void gather_grads(Plan& plan, const Row* rows, std::int64_t n, const std::int32_t* offsets, float* out,
                  std::int32_t* flag) {
  over_entries(plan, rows, n, gather_kernel<What::grads>, offsets, reinterpret_cast<std::uint32_t*>(out), flag);
}

void scatter(Plan& plan, const Row* rows, std::int64_t n, const std::int32_t* offsets, const float* values) {
  over_entries(plan, rows, n, scatter_kernel, offsets, values);
}

void swap(Plan& plan, const Row* rows, std::int64_t n, const std::int32_t* offsets, std::uint32_t* bits) {
  over_entries(plan, rows, n, swap_kernel, offsets, bits);
}

}  // namespace selective::cuda
