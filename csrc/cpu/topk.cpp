// The scan's visit of one tile: keep what reaches the threshold, gather the selected entries' gradients, watch for inf
// and NaN. One pass over the tile's gradients and parameters; what follows the pass runs from the cache.
#include "isa.h"
#include "vec.h"

namespace selective {
namespace {

constexpr int kPrefetch = 2048;  // bytes ahead; hardware prefetchers stop at each 4 KiB page

template <Exponent E, bool exact>
inline std::uint32_t keep(Vec grad_abs, Vec theta_abs, const Filter& f) {
  if constexpr (E == Exponent::any) {
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

template <class T, Exponent E, bool exact>
int filter(const T* grad, const T* param, std::int32_t size, const Filter& f, Survivors& s) {
  constexpr bool every_one = E == Exponent::any && exact;  // pow has no vector form here: each entry is scored below
  int n = 0;
  Vec::Bits top = zero_bits();
  std::int32_t i = 0;
  for (; i + Vec::lanes <= size; i += Vec::lanes) {
    __builtin_prefetch(reinterpret_cast<const char*>(grad + i) + kPrefetch);
    __builtin_prefetch(reinterpret_cast<const char*>(param + i) + kPrefetch);
    const Vec grad_abs = absolute(load(grad + i));
    top = max_bits(top, grad_abs);
    if constexpr (!every_one) {
      const std::uint32_t mask = keep<E, exact>(grad_abs, absolute(load(param + i)), f);
      if (mask != 0) n += append_positions(mask, i, s.positions + n);
    }
  }
  std::uint32_t top_bits = reduce(top);
  if constexpr (every_one) {
    for (n = 0; n < i; ++n) s.positions[n] = static_cast<std::uint16_t>(n);
  }
  for (; i < size; ++i) {
    const std::uint32_t bits = bits_of(std::fabs(widen(grad[i])));
    top_bits = bits > top_bits ? bits : top_bits;
    s.positions[n++] = static_cast<std::uint16_t>(i);
  }
  s.nonfinite = top_bits >= 0x7f800000u;
  return n;
}

template <class T, Exponent E>
void visit(const Tile& tile, const Filter& f, Survivors& s) {
  const T* grad = static_cast<const T*>(tile.grad);
  const T* param = static_cast<const T*>(tile.param);
  const int n = f.exact ? filter<T, E, true>(grad, param, tile.size, f, s)
                        : filter<T, E, false>(grad, param, tile.size, f, s);
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

}  // namespace

void SELECTIVE_ISA_NAME(visit_tile)(DType dtype, const Tile& tile, const Filter& f, Survivors& s) {
  with_dtype(dtype, [&](auto storage) {
    using T = decltype(storage);
    switch (f.kind) {
      case Exponent::zero:
        return visit<T, Exponent::zero>(tile, f, s);
      case Exponent::half:
        return visit<T, Exponent::half>(tile, f, s);
      case Exponent::one:
        return visit<T, Exponent::one>(tile, f, s);
      case Exponent::two:
        return visit<T, Exponent::two>(tile, f, s);
      case Exponent::any:
        return visit<T, Exponent::any>(tile, f, s);
    }
  });
}

}  // namespace selective
