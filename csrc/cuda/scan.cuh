// The kernel of a read, one warp for some neighbouring tiles of a tensor of T, whose scores are of kind K.
#pragma once

#include <type_traits>

#include "tile.cuh"

namespace selective::cuda {
namespace {

// Blocks that share a multiprocessor, at least: 80 registers for a thread, and 48 KiB of loads in flight.
constexpr int kBlocksAtOnce = 3;

// Whether gradients alone can rule entries out: with a filter that knows the least gradient that reaches a threshold.
SELECTIVE_HD constexpr bool begins_with_gradients(Kind kind) {
  return kind == Kind::zero || kind == Kind::half || kind == Kind::one || kind == Kind::two || kind == Kind::any;
}

template <class T, Kind K>
__global__ void __launch_bounds__(kBlock, kBlocksAtOnce)
    scan_kernel(Reading reading, const Chunk* chunks, std::int64_t n_chunks) {
  SELECTIVE_SHARED(Marks, all_marks, kWarps);
  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_of();
  if (number >= n_chunks) return;
  Marks& marks = all_marks[warp_of()];
  const Chunk chunk = chunks[number];
  const Row& row = reading.rows[chunk.row];
  const Spot& spot = reading.division.spots[chunk.row];
  const Filter f = reading.control->filter;
  const std::uint64_t salt = K == Kind::random ? salt_of(reading.score, row) : 0;
  const std::uint32_t infinity = infinity_bits<T>();
  const std::uint32_t least = reading.selecting ? least_bits<T>(f.least) : infinity;
  bool gradients_only = grads_are_gradients(K) && (!reading.selecting || (begins_with_gradients(K) && f.least > 0.0f));
  const std::int64_t tiles = (row.numel + kTile - 1) / kTile;
  const std::int64_t last = chunk.tile + reading.division.tiles < tiles ? chunk.tile + reading.division.tiles : tiles;
  for (std::int64_t t = chunk.tile; t < last; ++t) {
    const std::int64_t first = t * kTile;
    const Tile<T> tile{reinterpret_cast<const T*>(row.grad) + first, reinterpret_cast<const T*>(row.param) + first,
                       static_cast<std::int32_t>(first),
                       static_cast<std::int32_t>(row.numel - first < kTile ? row.numel - first : kTile), salt};
    clear(marks);
    std::uint32_t top = 0;
    bool marked = false;
    if (gradients_only) {
      top = mark_gradients(tile, least, marks);
      __syncwarp();
      marked = !reading.selecting || count(marks) <= kLoud;
      if (!marked) {
        gradients_only = false;  // most likely the next tiles are like this one
        clear(marks);
      }
    }
    if (!marked) {
      if constexpr (begins_with_gradients(K) && K != Kind::zero) {
        top = f.exact ? mark_scores<T, K, true>(tile, f, marks) : mark_scores<T, K, false>(tile, f, marks);
      } else {
        top = mark_scores<T, K, true>(tile, f, marks);
      }
      __syncwarp();
    }
    if (grads_are_gradients(K) && top >= infinity) reading.control->nonfinite = 1;  // whoever writes writes the same
    drop_selected(tile, slice_of(reading, row, spot, t), reading.selected, reading.selected_grads, marks);
    if (!reading.selecting) continue;
    for_each(marks, [&](int, int position) {
      const std::uint32_t bits = score_bits_of<T, K>(tile, position, f);
      if (!is_selectable(bits) || bits < bits_of(f.threshold)) unmark(marks, position);
    });
    append(reading, reading.segments + spot.slots + t, marks,
           [&](int position) { return score_bits_of<T, K>(tile, position, f); });
  }
}

template <class T>
void launch_scan_of(const Place& place, const Reading& reading, const Chunk* chunks, std::int64_t n_chunks) {
  const auto launch_kind = [&](auto of) {
    constexpr Kind kind = decltype(of)::kind;
    // Keys have one type; random scores read nothing, whatever the type.
    using Read = std::conditional_t<kind == Kind::given || kind == Kind::random, float, T>;
    launch(scan_kernel<Read, kind>, grid_of(blocks_for(n_chunks, kWarps)), dim3(kBlock), 0, place.stream, reading,
           chunks, n_chunks);
  };
  with_kind(kind_of(reading.score), launch_kind, AllKinds());
}

}  // namespace
}  // namespace selective::cuda
