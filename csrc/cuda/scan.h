// The contract of the exact top-k on CUDA (C3, C4): read, select, and repair, each of which only enqueues.
//
// A read looks at some tensors of a table once: it appends entries whose score reaches a threshold to a buffer, tile by
// tile in ascending order, gathers the gradients of the entries selected already and watches for inf and NaN. The
// selection finds the best k of what all reads have appended. Whether anything can be missing shows in the counts that
// the host gets; then a repair replaces what the reads have found by exactly the best k of their tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "../filter.h"
#include "../row.h"
#include "launch.cuh"

namespace selective::cuda {

constexpr std::int32_t kLine = 16;    // entries; a sampled line is one or two sectors of 32 bytes
constexpr std::int32_t kBins = 4096;  // of the sample's scores
constexpr int kBinShift = 19;         // scores that agree in the bits above share a bin: 16 bins per power of two
constexpr std::int32_t kLargestDigits = 2048;  // values of a digit in a search, see search.cuh
constexpr int kFlatBits = 33;         // of a position among the entries of all tensors

// What sizes alone say of a row in a set of rows; an array of them has one more that holds the totals. A slot is a tile,
// and each row has one more of them than tiles.
struct Spot {
  std::int64_t lines;  // of the rows before it
  std::int64_t slots;  // of the rows before it
  std::int64_t flat;   // the position of its first entry among those of the whole table
};

// Neighbouring tiles of a row, for one warp.
struct Chunk {
  std::int32_t row;   // of the read
  std::int32_t tile;  // the first one
};

// How a set of rows is divided; made once for their sizes and dtypes. Arrays are on the device.
struct Division {
  const Spot* spots;       // [n_rows + 1]
  const Chunk* chunks;     // those of float32 rows first, then bfloat16, then float16
  std::int64_t ranges[4];  // first chunk of each dtype, and their number
  std::int32_t tiles;      // of a chunk, fewer at the end of a row
  std::int64_t n_slots;
};

// Which scores are looked at before a read: one line of `stride` each, of which the one of `rank` is the threshold.
struct Sample {
  std::int64_t lines;   // 0: the threshold is `fixed`
  std::int64_t stride;
  std::int64_t rank;    // from 1, the best first
  std::uint32_t fixed;  // bits of a threshold > 0
};

// A tile's candidates, in ascending position.
struct Segment {
  const std::uint64_t* first;
  std::int64_t count;
};

// What a read has found out, on the device.
struct Control {
  unsigned long long count;  // of candidates, also of those that had no room
  Filter filter;             // and its threshold
  std::int32_t nonfinite;    // 1: a gradient is inf or NaN
  std::uint32_t repairs;     // reads of a repair
  std::uint32_t finished;    // blocks that have sampled
  std::uint32_t bins[kBins];
};

// One read. Arrays are on the device and stay alive and unmodified until the scan ends.
struct Reading {
  const Row* rows;  // [n_rows]
  std::int64_t n_rows;
  Division division;
  Score score;
  bool selecting;                // else gradients are only looked at
  const std::int32_t* selected;  // the index list, or null if it is empty
  std::int32_t* tile_starts;     // [n_slots]: selected entries of the row before each of its tiles
  float* selected_grads;         // ordered like the index list, or null
  Control* control;
  std::uint64_t* candidates;     // [capacity]: bits of the score above position in the tile
  std::int64_t capacity;
  Segment* segments;             // [n_slots]: of each tile; a row's last slot has none
};

// Enqueues a read. rows [n_rows] are on the host; `reading` needs everything but rows, control and tile_starts, which go
// to the room: that stays the read's until the scan ends.
Reading read(const Place& place, const Row* rows, Reading reading, const Sample& sample);
std::int64_t read_room(std::int64_t n_rows, std::int64_t n_slots);

// Replaces the segments of all readings by those of exactly the best k entries, or of all, if there are fewer.
// candidates [k] are on the device.
void repair(const Place& place, const std::vector<Reading>& readings, std::int64_t k, std::uint64_t* candidates);
std::int64_t repair_room();

// The rows that some readings have read, in ascending order. On the host, but for spots.
struct Found {
  const Row* rows;  // [n_rows], with their gradients where these are wanted
  const Spot* spots;  // [n_rows + 1]
  const Segment* const* segments;  // [n_rows]: of each row's first tile, or null
  std::int64_t n_rows;
  std::int64_t n_slots;
  std::vector<const Control*> controls;
};

// The best k entries in ascending order. Arrays are on the device, [k] where nothing else is said.
struct Winners {
  std::int32_t* offsets;
  std::uint32_t* bits;   // raw bits of the parameters, zero-extended
  float* values;         // the parameters, or null
  float* grads;          // the gradients, or null
  std::int64_t* report;  // [2 + n_rows + 4 n_readings]: bits of the lowest score among them, or 0; how many of them are
                         // in the rows before each one, and in all; of each reading the count, 1 if gradients are not
                         // finite, the bits of the threshold, and the reads of a repair
};

// Enqueues the selection of the best k, or of all, if there are fewer.
void select(const Place& place, const Found& found, std::int64_t k, const Winners& winners);
std::int64_t select_room(std::int64_t n_rows, std::int64_t n_slots, std::int64_t n_readings);

}  // namespace selective::cuda
