#include "lists.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "parallel.h"

namespace selective {
namespace {

constexpr std::int64_t kReadPiece = 1 << 18;  // bytes

// Rows' entries cut into pieces of at most kNormBlock.
struct Piece {
  std::int64_t row;
  std::int64_t first;
  std::int64_t count;
};

std::vector<Piece> pieces_of(const Row* rows, std::int64_t n) {
  std::vector<Piece> pieces;
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t i = rows[r].begin; i < rows[r].end; i += kNormBlock) {
      pieces.push_back({r, i, std::min(kNormBlock, rows[r].end - i)});
    }
  }
  return pieces;
}

template <class Work>
void for_pieces(const Row* rows, std::int64_t n, int threads, Work&& work) {
  const std::vector<Piece> pieces = pieces_of(rows, n);
  parallel_for(static_cast<std::int64_t>(pieces.size()), threads, [&](std::int64_t i) {
    const Row& row = rows[pieces[static_cast<std::size_t>(i)].row];
    work(row, static_cast<DType>(row.dtype), reinterpret_cast<void*>(row.param), pieces[static_cast<std::size_t>(i)]);
  });
}

}  // namespace

bool gather_list(const Row* rows, std::int64_t n, const std::int32_t* offsets, float* out, int threads) {
  std::atomic<bool> finite{true};
  for_pieces(rows, n, threads, [&](const Row&, DType dtype, const void* data, const Piece& p) {
    if (!kernels().gather(dtype, data, offsets + p.first, p.count, out + p.first)) finite.store(false);
  });
  return finite.load();
}

void gather_bits_list(const Row* rows, std::int64_t n, const std::int32_t* offsets, std::uint32_t* out, int threads) {
  for_pieces(rows, n, threads, [&](const Row&, DType dtype, const void* data, const Piece& p) {
    kernels().gather_bits(dtype, data, offsets + p.first, p.count, out + p.first);
  });
}

void scatter_list(const Row* rows, std::int64_t n, const std::int32_t* offsets, const float* values, int threads) {
  for_pieces(rows, n, threads, [&](const Row&, DType dtype, void* data, const Piece& p) {
    kernels().scatter(dtype, data, offsets + p.first, p.count, values + p.first);
  });
}

void swap_list(const Row* rows, std::int64_t n, const std::int32_t* offsets, std::uint32_t* bits, int threads) {
  for_pieces(rows, n, threads, [&](const Row&, DType dtype, void* data, const Piece& p) {
    kernels().swap(dtype, data, offsets + p.first, p.count, bits + p.first);
  });
}

double square_sum_list(const Row* rows, std::int64_t n, const float* grads, int threads) {
  const std::vector<Piece> pieces = pieces_of(rows, n);
  std::vector<double> sums(pieces.size(), 0.0);
  parallel_for(static_cast<std::int64_t>(pieces.size()), threads, [&](std::int64_t i) {
    const Piece& p = pieces[static_cast<std::size_t>(i)];
    double sum = 0.0;
    for (std::int64_t j = p.first; j < p.first + p.count; ++j) sum += static_cast<double>(grads[j]) * grads[j];
    sums[static_cast<std::size_t>(i)] = sum;
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

void merge_places(const std::int32_t* offsets, const std::int64_t* starts, const std::int32_t* new_offsets,
                  const std::int64_t* new_starts, std::int64_t n_tensors, std::int64_t* places) {
  for (std::int64_t t = 0; t < n_tensors; ++t) {
    const std::int32_t* next = offsets + starts[t];
    const std::int32_t* end = offsets + starts[t + 1];
    for (std::int64_t j = new_starts[t]; j < new_starts[t + 1]; ++j) {
      next = std::lower_bound(next, end, new_offsets[j]);
      places[j] = (next - offsets) + j;
    }
  }
}

void merge_arrays(const MergeArray* arrays, std::int64_t n_arrays, std::int64_t count, const std::int64_t* places,
                  std::int64_t n_new, int threads) {
  parallel_for(n_arrays, threads, [&](std::int64_t a) {
    std::uint32_t* data = arrays[a].data;
    std::int64_t end = count;  // old elements from here on are in place
    for (std::int64_t j = n_new - 1; j >= 0; --j) {
      const std::int64_t begin = places[j] - j;  // the first old element behind new element j
      if (end > begin) {
        std::memmove(data + places[j] + 1, data + begin, static_cast<std::size_t>(end - begin) * sizeof *data);
      }
      data[places[j]] = arrays[a].fresh == nullptr ? 0 : arrays[a].fresh[j];
      end = begin;
    }
  });
}

std::uint64_t read_list(const Row* rows, std::int64_t n, int threads) {
  struct Part {
    const char* data;
    std::int64_t bytes;
  };
  std::vector<Part> parts;
  for (std::int64_t r = 0; r < n; ++r) {
    const std::int64_t bytes = rows[r].numel * (static_cast<DType>(rows[r].dtype) == DType::float32 ? 4 : 2);
    for (std::int64_t i = 0; i < bytes; i += kReadPiece) {
      for (const std::uint64_t address : {rows[r].grad, rows[r].param}) {
        if (address != 0) parts.push_back({reinterpret_cast<const char*>(address) + i, std::min(kReadPiece, bytes - i)});
      }
    }
  }
  std::atomic<std::uint64_t> all{0};
  parallel_for(static_cast<std::int64_t>(parts.size()), threads, [&](std::int64_t i) {
    all.fetch_xor(kernels().read(parts[static_cast<std::size_t>(i)].data, parts[static_cast<std::size_t>(i)].bytes));
  });
  return all.load();
}

}  // namespace selective
