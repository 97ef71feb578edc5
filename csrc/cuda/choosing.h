// A selection ahead of an update, in one call with it: one read of the tensors that are updated, their best k entries, and
// the host's one wait for the counts.
#pragma once

#include "scan.h"

namespace selective::cuda {

// What is wanted. Arrays are on the device, but for slots.
struct Choosing {
  Division division;            // of the update's rows
  const std::int64_t* slots;    // [n_rows], on the host: of the rows before each one
  Score score;                  // reads gradients
  Sample sample;
  std::int64_t capacity;        // how many candidates have room
  std::int64_t k;               // at least 1
  const std::int32_t* selected; // the index list, or null if it is empty
  float* selected_grads;        // receives the gradients at the index list, as it is ordered
  bool values;                  // whether the new entries' parameters are wanted in float32
  const std::int32_t* flag;     // [1]: not zero if a gradient elsewhere is not finite; or null
};

enum class Outcome : int {
  complete = 0,
  nonfinite = 1,   // a gradient is inf or NaN
  incomplete = 2,  // some of the best may be missing: the threshold was misleading, and a repair is wanted
};

// What came out. New entries are in ascending order, on the device; they stay in the room.
struct Chosen {
  Outcome outcome;
  std::uint32_t lowest;              // bits of their lowest score, or 0
  std::vector<std::int64_t> counts;  // [n_rows]: how many there are of each row
  const std::int32_t* offsets;
  const std::uint32_t* bits;
  const float* values;
  const float* grads;
};

// rows [n] are on the host; their slices are those of the index list. Waits. Room: what choosing_room says.
Chosen choose(const Place& place, const Row* rows, std::int64_t n, const Choosing& wanted);
std::int64_t choosing_room(std::int64_t n_rows, std::int64_t n_slots, std::int64_t capacity, std::int64_t k);

}  // namespace selective::cuda
