// The operations on a whole index list: rows of a table are cut into pieces of entries, pieces run in parallel.
#pragma once

#include <cstdint>

#include "../groups.h"
#include "../selective.h"

namespace selective {

// In all of these rows [n] come in ascending id, offsets is the whole index list, and per-entry arrays are indexed like
// it: entry i of the list is element i. Results do not depend on `threads`.

// out[i] = float32 of data at each entry of the rows; data is the rows' `param`. Returns whether all are finite.
bool gather_list(const Row* rows, std::int64_t n, const std::int32_t* offsets, float* out, int threads);
void gather_bits_list(const Row* rows, std::int64_t n, const std::int32_t* offsets, std::uint32_t* out, int threads);
void scatter_list(const Row* rows, std::int64_t n, const std::int32_t* offsets, const float* values, int threads);
void swap_list(const Row* rows, std::int64_t n, const std::int32_t* offsets, std::uint32_t* bits, int threads);

// Sum of squares of grads over the rows' entries: float64 partial sums over kNormBlock entries of a row in index
// order, added up in order.
double square_sum_list(const Row* rows, std::int64_t n, const float* grads, int threads);

// When each entry was chosen and which steps each tensor missed, for "per_entry" ages (C6).
struct Ages {
  const std::int32_t* chosen;          // [length of the index list] step (from 0) at which each entry was selected
  const std::int64_t* missed_starts;   // [number of tensors + 1] slices of missed_steps by tensor id
  const std::int32_t* missed_steps;    // ascending per tensor: steps in which the tensor had no gradient
  std::int32_t now;                    // the current step (from 0)
};

struct EntryArrays {
  const std::int32_t* offsets;
  const float* grads;
  float* exp_avg;     // SGD: the momentum buffer, or null
  float* exp_avg_sq;  // SGD: null
  float* master;      // null if no row has a 16-bit dtype
};

// groups_of[r], steps[r]: group and step count (this step included) of row r. ages: null for "global".
void adam_list(const Row* rows, std::int64_t n, const std::int64_t* groups_of, const std::int64_t* steps,
               const AdamGroup* groups, std::int64_t n_groups, const EntryArrays& arrays, const Ages* ages,
               float clip, int threads);
void sgd_list(const Row* rows, std::int64_t n, const std::int64_t* groups_of, const std::int64_t* steps,
              const SgdGroup* groups, const EntryArrays& arrays, const Ages* ages, float clip, int threads);

// places[j] = position that new entry j takes in the merged list. Both lists have n_tensors + 1 starts, are sorted and
// have no entry in common.
void merge_places(const std::int32_t* offsets, const std::int64_t* starts, const std::int32_t* new_offsets,
                  const std::int64_t* new_starts, std::int64_t n_tensors, std::int64_t* places);

// Moves the `count` elements of an array apart, in place, and puts the n_new new ones at `places` (ascending). The
// array has room for count + n_new elements; fresh [n_new], or null for zeros. width: 4 bytes per element.
struct MergeArray {
  std::uint32_t* data;
  const std::uint32_t* fresh;
};
void merge_arrays(const MergeArray* arrays, std::int64_t n_arrays, std::int64_t count, const std::int64_t* places,
                  std::int64_t n_new, int threads);

// Reads every byte of the rows' gradients (where there are any) and parameters once.
std::uint64_t read_list(const Row* rows, std::int64_t n, int threads);

}  // namespace selective
