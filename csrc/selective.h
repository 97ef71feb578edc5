// The contract of the CPU kernels: every exported function, every pointer's type, length, direction and ordering.
//
// Nothing here knows about torch: addresses and lengths come in, results go to memory that the caller owns. Arguments
// are checked by the caller (selective_kernels/checks.py). No function keeps a pointer after it returns, except Scan,
// which keeps its rows until it is destroyed.
#pragma once

#include <cstdint>

#include "convert.h"
#include "filter.h"
#include "row.h"
#include "update.h"

namespace selective {

// One tile of a tensor. in: grad, param [size], of which those are read that the filter's kind reads, and of param only
// the entries with |g| >= filter.least where these are few; selected [n_selected], sorted, absolute offsets >= base, may
// run past the tile. out: selected_grads[i] for each selected offset inside the tile (may be null).
struct Tile {
  const void* grad;
  const void* param;
  std::uint64_t salt;  // of the tensor, for Kind::random
  std::int32_t size;  // 1 .. kTile
  std::int32_t base;  // offset of the tile's first entry in its tensor
  const std::int32_t* selected;
  std::int64_t n_selected;
  float* selected_grads;
};

// out of a visit: `count` entries in ascending position that are not selected and may pass the filter; after `score`,
// those that do, with their exact scores.
struct Survivors {
  std::int32_t count;
  std::int64_t selected_in_tile;
  bool nonfinite;  // some gradient of the tile is inf or NaN; false if the score is not made of gradients
  bool loud;       // too many gradients reached filter.least for parameters to be left unread
  std::uint16_t positions[kTile + 16];
  float scores[kTile];
};

// Entries [begin, end) of the index list, all in one tensor. in/out: param (scattered), exp_avg, exp_avg_sq, master
// (null for float32), each [end - begin] from `begin` on. in: offsets, grads, chosen.
struct AdamSpan {
  void* param;
  DType dtype;
  const std::int32_t* offsets;
  const float* grads;
  float* exp_avg;
  float* exp_avg_sq;
  float* master;
  std::int64_t count;
  float clip;
  float step_size;    // lr / (1 - beta1^t), for "global"
  float correction2;  // sqrt(1 - beta2^t), for "global"
  AdamCoefficients coefficients;
  const std::int32_t* ages;   // "per_entry": updates of each entry, this one included; else null
  const float* step_sizes;    // "per_entry": [max_age + 1], indexed by age, the last one holds from there on
  const float* corrections2;  // "per_entry": [max_age + 1]
  std::int32_t max_age;
};

struct SgdSpan {
  void* param;
  DType dtype;
  const std::int32_t* offsets;
  const float* grads;
  float* buffer;  // null without momentum
  float* master;
  std::int64_t count;
  float clip;
  bool first;                // every entry's buffer starts now
  const std::int32_t* ages;  // "per_entry": the buffers of age 1 start now; else null
  SgdCoefficients coefficients;
};

// One implementation of everything per ISA; `kernels()` gives the chosen one.
struct Kernels {
  const char* isa;
  // n tiles, 1 or 2, and their survivors; two of one size are read side by side. What `score` will read of the
  // parameters is on its way to the cache afterwards.
  void (*visit)(DType, const Tile* tiles, int n, const Filter&, Survivors* survivors);
  void (*score)(DType, const Tile& tile, const Filter&, Survivors& survivors);
  // out[i] = float32(data[offsets[i]]); returns whether all of them are finite
  bool (*gather)(DType, const void* data, const std::int32_t* offsets, std::int64_t count, float* out);
  // out[i] = raw bits of data[offsets[i]], zero-extended
  void (*gather_bits)(DType, const void* data, const std::int32_t* offsets, std::int64_t count, std::uint32_t* out);
  // data[offsets[i]] = values[i] rounded to nearest even; offsets are distinct
  void (*scatter)(DType, void* data, const std::int32_t* offsets, std::int64_t count, const float* values);
  // exchanges the raw bits of data[offsets[i]] and bits[i]; offsets are distinct
  void (*swap)(DType, void* data, const std::int32_t* offsets, std::int64_t count, std::uint32_t* bits);
  void (*adam)(const AdamSpan&);
  void (*sgd)(const SgdSpan&);
  // xor of all 64-bit words: a read at full speed, for the bandwidth that a scan is compared with
  std::uint64_t (*read)(const void* data, std::int64_t bytes);
};

const Kernels& kernels();
// Selects an ISA by name for the whole process; false if this machine or build lacks it.
bool use_isa(const char* name);
// The ISAs that run here, fastest first; null-terminated.
const char* const* available_isas();

}  // namespace selective
