// The contract of the CUDA kernels over index lists: every function adds an operation to a plan, which enqueues all.
//
// Rows, starts and other tables are on the host and may change when a function has returned; arrays are on the device
// that the plan will run on, are indexed like the index list, and stay alive until the stream has come past. Arguments
// are checked by the caller (selective_kernels/checks.py). A call that fails throws, see launch.cuh.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "../groups.h"
#include "../row.h"
#include "plan.h"

namespace selective::cuda {

// Bytes of room that a plan of one operation of each kind over so many rows needs at most, besides what their comments
// say.
constexpr std::int64_t kRoomPerRow = 512;
constexpr std::int64_t kLeastRoom = 4096;

// out[i] = float32 of param at each entry, or its raw bits, or float32 of grad; then flag [1] becomes 1 if one of them
// is inf or NaN, else it stays as it is.
void gather(Plan& plan, const Row* rows, std::int64_t n, const std::int32_t* offsets, float* out);
void gather_bits(Plan& plan, const Row* rows, std::int64_t n, const std::int32_t* offsets, std::uint32_t* out);
void gather_grads(Plan& plan, const Row* rows, std::int64_t n, const std::int32_t* offsets, float* out,
                  std::int32_t* flag);
void scatter(Plan& plan, const Row* rows, std::int64_t n, const std::int32_t* offsets, const float* values);
void swap(Plan& plan, const Row* rows, std::int64_t n, const std::int32_t* offsets, std::uint32_t* bits);

// An array of 4-byte items with room for all entries, and the new entries' values: `fresh`, or if that is null `fill` for
// each.
struct MergeArray {
  std::uint32_t* data;
  const std::uint32_t* fresh;
  std::uint32_t fill;
};

// Brings the new entries of all arrays to their places in the list, which has one of the arrays. Both lists have
// n_tensors + 1 starts, are sorted and have no entry in common. Room: 4 bytes per entry of both lists and array, too.
void merge(Plan& plan, const std::int32_t* offsets, const std::int64_t* starts, const std::int32_t* new_offsets,
           const std::int64_t* new_starts, std::int64_t n_tensors, const std::vector<MergeArray>& arrays);

// total [1] = sum of squares of grads over the rows' entries: float64 partial sums over kNormBlock entries of a row,
// added up in a fixed order. Room: 8 bytes per partial sum, too.
void square_sum(Plan& plan, const Row* rows, std::int64_t n, const float* grads, double* total);

// The factor that clips gradients to a norm: min(1, limit / (sqrt(sum of squares) + eps)) in float64, NaN if that is.
struct ClipLimit {
  double limit;
  double eps;
};
// Returns the place of the factor, a float, among the plan's tables. Room as for square_sum.
std::size_t clip_factor(Plan& plan, const Row* rows, std::int64_t n, const float* grads, const ClipLimit& limit);

// When each entry was chosen and which steps each tensor missed, for "per_entry" ages (C6); and, on the device, what an
// age makes of a learning rate: corrections1[first + age] = 1 - beta1^age and corrections2[...] = sqrt(1 - beta2^age).
struct Ages {
  const std::int32_t* chosen;         // [length of the index list], on the device: step (from 0) of each entry
  const std::int64_t* missed_starts;  // [n_rows + 1] slices of missed_steps by row, on the host
  const std::int32_t* missed_steps;   // ascending per row: steps in which the tensor had no gradient, on the host
  std::int32_t now;                   // the current step (from 0)
  const float* corrections1;
  const float* corrections2;
  const std::int64_t* places;  // [n_groups][2]: `first`, and the last age that is there: it holds from there on
};

// What both updates get besides rows and groups. A 16-bit row needs master.
struct UpdateArrays {
  const std::int32_t* offsets;
  const float* grads;
  float* first;               // exp_avg, or the momentum buffer; null if no group has momentum
  float* second;              // exp_avg_sq; SGD: null
  float* master;              // null if no row has a 16-bit dtype
  float clip;                // factor on the gradients
  const float* clip_there;   // [1]: replaces clip, or null
  const std::int32_t* skip;  // [1]: unless zero nothing happens; or null
};

// groups_of[r], steps[r]: group and step count (this step included) of row r. ages: null for "global"; with them the
// room is 4 bytes per missed step larger. clip_at: where the plan's own clip factor will be, or null.
void adam(Plan& plan, const Row* rows, std::int64_t n, const std::int64_t* groups_of, const std::int64_t* steps,
          const AdamGroup* groups, const UpdateArrays& arrays, const Ages* ages, const std::size_t* clip_at);
void sgd(Plan& plan, const Row* rows, std::int64_t n, const std::int64_t* groups_of, const std::int64_t* steps,
         const SgdGroup* groups, const UpdateArrays& arrays, const Ages* ages, const std::size_t* clip_at);

}  // namespace selective::cuda
