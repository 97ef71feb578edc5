// The scan's visit of one tile, or of two side by side: keep what reaches the threshold, gather the selected entries'
// gradients, watch for inf and NaN. One pass over gradients and parameters; what follows the pass runs from the cache.
#include <type_traits>

#include "isa.h"
#include "prefetch.h"
#include "vec.h"

namespace selective {
namespace {

constexpr int kPrefetch = 2048;  // bytes ahead; hardware prefetchers stop at each 4 KiB page
constexpr int kCacheLine = 64;   // bytes
constexpr int kUnroll = 4;       // vectors per step and array; almost always none of their entries is kept
constexpr std::uint32_t kAllLanes = (1u << Vec::lanes) - 1;

template <Exponent E, bool exact>
inline std::uint32_t keep(Vec grad_abs, Vec theta_abs, const Filter& f) {
  if constexpr (E == Exponent::any && exact) {
    return kAllLanes;  // pow has no vector form here: each entry is scored by score_kept
  } else if constexpr (E == Exponent::any) {
    const Vec d = theta_abs + broadcast(f.eps);
    const Vec limit = broadcast(f.log_limit) + broadcast(f.log_slope) * int_value_of_bits(d);
    return at_least(int_value_of_bits(grad_abs), limit);
  } else if constexpr (exact || E == Exponent::zero) {
    return at_least(d3<E>(grad_abs, theta_abs, broadcast(f.eps)), broadcast(f.threshold));
  } else {
    return at_least(grad_abs, broadcast(f.scaled) * power<E>(theta_abs, broadcast(f.eps)));
  }
}

template <Exponent E>
inline float score_of(float grad_abs, float theta_abs, const Filter& f) {
  if constexpr (E == Exponent::any) {
    return d3_any(grad_abs, theta_abs, f.eps, f.exponent);
  } else {
    return d3<E>(grad_abs, theta_abs, f.eps);
  }
}

// The positions among `unroll` vectors from i on that pass the filter, appended to `out`; returns how many.
template <class T, Exponent E, bool exact, int unroll>
inline int filter_vectors(const T* grad, const T* param, std::int32_t i, const Filter& f, Vec::Bits& top,
                          std::uint16_t* out) {
  for (int ahead = kPrefetch; ahead < kPrefetch + unroll * Vec::lanes * int{sizeof(T)}; ahead += kCacheLine) {
    prefetch(reinterpret_cast<const char*>(grad + i) + ahead);
    prefetch(reinterpret_cast<const char*>(param + i) + ahead);
  }
  std::uint32_t masks[unroll];
  std::uint32_t any = 0;
  for (int u = 0; u < unroll; ++u) {
    const Vec grad_abs = absolute(load(grad + i + u * Vec::lanes));
    top = max_bits(top, grad_abs);
    masks[u] = keep<E, exact>(grad_abs, absolute(load(param + i + u * Vec::lanes)), f);
    any |= masks[u];
  }
  int n = 0;
  if (any != 0) {
    for (int u = 0; u < unroll; ++u) n += append_positions(masks[u], i + u * Vec::lanes, out + n);
  }
  return n;
}

// Fills positions, count and nonfinite of each of n tiles of one size, which are read side by side.
template <class T, Exponent E, bool exact, int n>
void filter(const Tile* tiles, const Filter& f, Survivors* survivors) {
  const T* grads[n];
  const T* params[n];
  Vec::Bits tops[n];
  int counts[n] = {};
  for (int t = 0; t < n; ++t) {
    grads[t] = static_cast<const T*>(tiles[t].grad);
    params[t] = static_cast<const T*>(tiles[t].param);
    tops[t] = zero_bits();
  }
  const std::int32_t size = tiles[0].size;
  std::int32_t i = 0;
  const auto advance = [&](auto unroll) {
    for (; i + unroll * Vec::lanes <= size; i += unroll * Vec::lanes) {
      for (int t = 0; t < n; ++t) {
        counts[t] += filter_vectors<T, E, exact, unroll>(grads[t], params[t], i, f, tops[t],
                                                         survivors[t].positions + counts[t]);
      }
    }
  };
  advance(std::integral_constant<int, kUnroll>{});
  advance(std::integral_constant<int, 1>{});
  for (int t = 0; t < n; ++t) {
    std::uint32_t top = reduce(tops[t]);
    for (std::int32_t j = i; j < size; ++j) {
      const std::uint32_t bits = bits_of(std::fabs(widen(grads[t][j])));
      top = bits > top ? bits : top;
      survivors[t].positions[counts[t]++] = static_cast<std::uint16_t>(j);
    }
    survivors[t].nonfinite = top >= 0x7f800000u;
    survivors[t].count = counts[t];
  }
}

// Scores what the filter kept, drops what is selected already, and gathers the selected entries' gradients.
template <class T, Exponent E>
void score_kept(const Tile& tile, const Filter& f, Survivors& s) {
  const T* grad = static_cast<const T*>(tile.grad);
  const T* param = static_cast<const T*>(tile.param);
  const int n = s.count;
  std::int64_t in_tile = 0;
  int kept = 0;
  int next = 0;  // survivors before `next` are handled
  const auto score_until = [&](std::int32_t position) {
    for (; next < n && s.positions[next] < position; ++next) {
      const std::uint16_t p = s.positions[next];
      const float score = score_of<E>(std::fabs(widen(grad[p])), std::fabs(widen(param[p])), f);
      s.positions[kept] = p;
      s.scores[kept] = score;
      kept += score >= f.threshold && score < f.upper;
    }
  };
  for (; in_tile < tile.n_selected; ++in_tile) {
    const std::int32_t position = tile.selected[in_tile] - tile.base;
    if (position >= tile.size) break;
    if (tile.selected_grads != nullptr) tile.selected_grads[in_tile] = widen(grad[position]);
    score_until(position);
    if (next < n && s.positions[next] == position) ++next;
  }
  score_until(tile.size);
  s.count = kept;
  s.selected_in_tile = in_tile;
}

template <class T, Exponent E, int n>
void visit(const Tile* tiles, const Filter& f, Survivors* survivors) {
  if (f.exact) {
    filter<T, E, true, n>(tiles, f, survivors);
  } else {
    filter<T, E, false, n>(tiles, f, survivors);
  }
  for (int t = 0; t < n; ++t) score_kept<T, E>(tiles[t], f, survivors[t]);
}

template <Exponent E>
void visit(DType dtype, const Tile* tiles, int n, const Filter& f, Survivors* survivors) {
  with_dtype(dtype, [&](auto storage) {
    using T = decltype(storage);
    if (n == 2 && tiles[0].size == tiles[1].size) return visit<T, E, 2>(tiles, f, survivors);
    for (int t = 0; t < n; ++t) visit<T, E, 1>(tiles + t, f, survivors + t);
  });
}

}  // namespace

void SELECTIVE_ISA_NAME(visit)(DType dtype, const Tile* tiles, int n, const Filter& f, Survivors* survivors) {
  switch (f.kind) {
    case Exponent::zero:
      return visit<Exponent::zero>(dtype, tiles, n, f, survivors);
    case Exponent::half:
      return visit<Exponent::half>(dtype, tiles, n, f, survivors);
    case Exponent::one:
      return visit<Exponent::one>(dtype, tiles, n, f, survivors);
    case Exponent::two:
      return visit<Exponent::two>(dtype, tiles, n, f, survivors);
    case Exponent::any:
      return visit<Exponent::any>(dtype, tiles, n, f, survivors);
  }
}

}  // namespace selective
