// The scan's visit of one tile, or of two side by side: keep what reaches the threshold, gather the selected entries'
// gradients, watch for inf and NaN. One pass over the gradients, and over the parameters where the gradients alone do
// not show that next to nothing can be kept; what follows the pass runs from the cache. What may be kept is scored
// later: by then its parameters have arrived.
#include <type_traits>

#include "isa.h"
#include "prefetch.h"
#include "vec.h"

namespace selective {
namespace {

constexpr int kPrefetch = 2048;  // bytes ahead; hardware prefetchers stop at each 4 KiB page
constexpr int kCacheLine = 64;   // bytes
constexpr int kUnroll = 4;       // vectors per step and array; almost always none of their entries is kept
constexpr int kMostCandidates = 128;     // of a tile, to be scored one by one; more of them cost more than a read
constexpr int kMostCandidatesOfPow = 32;  // the same where a score needs pow()
constexpr std::uint32_t kAllLanes = (1u << Vec::lanes) - 1;

// Which of the lanes from entry `offset` of the tensor on pass the filter.
template <Kind K, bool exact>
inline std::uint32_t keep(Vec grad, Vec theta_abs, std::uint32_t offset, std::uint64_t salt, const Filter& f) {
  if constexpr (K == Kind::random) {
    float keys[Vec::lanes];
    for (int i = 0; i < Vec::lanes; ++i) {
      keys[i] = float_of(random_key(salt, offset + static_cast<std::uint32_t>(i)));
    }
    return at_least(load(keys), broadcast(f.threshold));
  } else if constexpr (K == Kind::magnitude) {
    return at_least(broadcast(f.largest), theta_abs);
  } else if constexpr (K == Kind::given) {
    return at_least(grad, broadcast(f.threshold));
  } else if constexpr (K == Kind::product) {
    return at_least(grad * theta_abs, broadcast(f.threshold));
  } else if constexpr (K == Kind::any && exact) {
    return kAllLanes;  // pow has no vector form here: each entry is scored by `score`
  } else if constexpr (K == Kind::any) {
    const Vec d = theta_abs + broadcast(f.eps);
    const Vec limit = broadcast(f.log_limit) + broadcast(f.log_slope) * int_value_of_bits(d);
    return at_least(int_value_of_bits(grad), limit);
  } else if constexpr (exact || K == Kind::zero) {
    return at_least(d3<K>(grad, theta_abs, broadcast(f.eps)), broadcast(f.threshold));
  } else {
    return at_least(grad, broadcast(f.scaled) * power<K>(theta_abs, broadcast(f.eps)));
  }
}

// The score of entry p of a tile.
template <class T, Kind K>
inline float score_of(const Tile& tile, std::int32_t p, const Filter& f) {
  if constexpr (K == Kind::random) {
    return float_of(random_key(tile.salt, static_cast<std::uint32_t>(tile.base + p)));
  } else {
    const float grad = reads_grad(K) ? widen(static_cast<const T*>(tile.grad)[p]) : 0.0f;
    const float theta_abs = reads_param(K) ? std::fabs(widen(static_cast<const T*>(tile.param)[p])) : 0.0f;
    if constexpr (K == Kind::given) {
      return grad;
    } else if constexpr (K == Kind::magnitude) {
      return float_of(magnitude_key(bits_of(theta_abs)));
    } else if constexpr (K == Kind::product) {
      return std::fabs(grad) * theta_abs;
    } else if constexpr (K == Kind::any) {
      return d3_any(std::fabs(grad), theta_abs, f.eps, f.exponent);
    } else {
      return d3<K>(std::fabs(grad), theta_abs, f.eps);
    }
  }
}

// What a pass compares with the filter: scores, with rounding errors or without, or nothing but gradients.
enum class Pass { exact, near, gradients };

// The positions among `unroll` vectors from i on that pass the filter, appended to `out`; returns how many.
template <class T, Kind K, Pass pass, int unroll>
inline int filter_vectors(const Tile& tile, std::int32_t i, const Filter& f, Vec::Bits& top, std::uint16_t* out) {
  const T* grad = static_cast<const T*>(tile.grad) + i;
  const T* param = static_cast<const T*>(tile.param) + i;
  constexpr bool with_params = reads_param(K) && pass != Pass::gradients;
  for (int ahead = kPrefetch; ahead < kPrefetch + unroll * Vec::lanes * int{sizeof(T)}; ahead += kCacheLine) {
    if (reads_grad(K)) prefetch(reinterpret_cast<const char*>(grad) + ahead);
    if (with_params) prefetch(reinterpret_cast<const char*>(param) + ahead);
  }
  std::uint32_t masks[unroll];
  std::uint32_t any = 0;
  for (int u = 0; u < unroll; ++u) {
    Vec grads = broadcast(0.0f);
    Vec theta_abs = broadcast(0.0f);
    if constexpr (reads_grad(K)) grads = load(grad + u * Vec::lanes);
    if constexpr (grads_are_gradients(K)) {
      grads = absolute(grads);
      top = max_bits(top, grads);
    }
    if constexpr (with_params) theta_abs = absolute(load(param + u * Vec::lanes));
    const std::uint32_t offset = static_cast<std::uint32_t>(tile.base + i + u * Vec::lanes);
    if constexpr (pass == Pass::gradients) {
      masks[u] = at_least(grads, broadcast(f.least));
    } else {
      masks[u] = keep<K, pass == Pass::exact>(grads, theta_abs, offset, tile.salt, f);
    }
    any |= masks[u];
  }
  int n = 0;
  if (any != 0) {
    for (int u = 0; u < unroll; ++u) n += append_positions(masks[u], i + u * Vec::lanes, out + n);
  }
  return n;
}

// Fills positions, count and nonfinite of each of n tiles of one size, which are read side by side. False, with nothing
// of use filled in: Pass::gradients lets too many pass.
template <class T, Kind K, Pass pass, int n>
bool filter(const Tile* tiles, const Filter& f, Survivors* survivors) {
  Vec::Bits tops[n];
  int counts[n] = {};
  for (int t = 0; t < n; ++t) tops[t] = zero_bits();
  const std::int32_t size = tiles[0].size;
  std::int32_t i = 0;
  constexpr int most = K == Kind::any ? kMostCandidatesOfPow : kMostCandidates;
  const auto advance = [&](auto unroll) {
    for (; i + unroll * Vec::lanes <= size; i += unroll * Vec::lanes) {
      for (int t = 0; t < n; ++t) {
        counts[t] += filter_vectors<T, K, pass, unroll>(tiles[t], i, f, tops[t], survivors[t].positions + counts[t]);
        if (pass == Pass::gradients && counts[t] > most) return false;
      }
    }
    return true;
  };
  if (!advance(std::integral_constant<int, kUnroll>{})) return false;
  if (!advance(std::integral_constant<int, 1>{})) return false;
  for (int t = 0; t < n; ++t) {
    std::uint32_t top = reduce(tops[t]);
    for (std::int32_t j = i; j < size; ++j) {
      if constexpr (grads_are_gradients(K)) {
        const std::uint32_t bits = bits_of(std::fabs(widen(static_cast<const T*>(tiles[t].grad)[j])));
        top = bits > top ? bits : top;
      }
      survivors[t].positions[counts[t]++] = static_cast<std::uint16_t>(j);
    }
    survivors[t].nonfinite = top >= 0x7f800000u;
    survivors[t].count = counts[t];
    survivors[t].loud = false;
  }
  return true;
}

// Drops what is selected already, and gathers the selected entries' gradients.
template <class T, bool fetch_params>
void drop_selected(const Tile& tile, Survivors& s) {
  std::uint64_t selected[kTile / 64] = {};  // a bit for each entry: no branch here depends on which ones they are
  std::int64_t in_tile = 0;
  for (; in_tile < tile.n_selected; ++in_tile) {
    const std::int32_t position = tile.selected[in_tile] - tile.base;
    if (position >= tile.size) break;
    selected[position / 64] |= std::uint64_t{1} << (position % 64);
    if (tile.selected_grads != nullptr) {
      tile.selected_grads[in_tile] = widen(static_cast<const T*>(tile.grad)[position]);
    }
  }
  std::int32_t kept = 0;
  for (std::int32_t i = 0; i < s.count; ++i) {
    const std::uint16_t p = s.positions[i];
    s.positions[kept] = p;
    kept += 1 - static_cast<std::int32_t>(selected[p / 64] >> (p % 64) & 1);
  }
  if constexpr (fetch_params) {
    for (std::int32_t i = 0; i < kept; ++i) prefetch(static_cast<const T*>(tile.param) + s.positions[i]);
  }
  s.count = kept;
  s.selected_in_tile = in_tile;
}

// Leaves the survivors whose score passes the filter.
template <class T, Kind K>
void score(const Tile& tile, const Filter& f, Survivors& s) {
  std::int32_t kept = 0;
  for (std::int32_t i = 0; i < s.count; ++i) {
    const std::uint16_t p = s.positions[i];
    const float score = score_of<T, K>(tile, p, f);
    s.positions[kept] = p;
    s.scores[kept] = score;
    kept += score >= f.threshold && score < f.upper;
  }
  s.count = kept;
}

template <class T, Kind K, int n>
void visit(const Tile* tiles, const Filter& f, Survivors* survivors) {
  if constexpr (reads_param(K) && reads_grad(K) && K != Kind::product) {
    if (f.least > 0.0f && filter<T, K, Pass::gradients, n>(tiles, f, survivors)) {
      for (int t = 0; t < n; ++t) drop_selected<T, true>(tiles[t], survivors[t]);
      return;
    }
  }
  if (f.exact) {
    filter<T, K, Pass::exact, n>(tiles, f, survivors);
  } else {
    filter<T, K, Pass::near, n>(tiles, f, survivors);
  }
  for (int t = 0; t < n; ++t) {
    survivors[t].loud = f.least > 0.0f;
    drop_selected<T, false>(tiles[t], survivors[t]);
  }
}

template <Kind K>
void visit(DType dtype, const Tile* tiles, int n, const Filter& f, Survivors* survivors) {
  with_dtype(dtype, [&](auto storage) {
    using T = decltype(storage);
    if (n == 2 && tiles[0].size == tiles[1].size) return visit<T, K, 2>(tiles, f, survivors);
    for (int t = 0; t < n; ++t) visit<T, K, 1>(tiles + t, f, survivors + t);
  });
}

// call(std::integral_constant<Kind, kind>)
template <class Call>
void with_kind(Kind kind, Call&& call) {
  switch (kind) {
#define SELECTIVE_KIND(kind) \
  case Kind::kind:           \
    return call(std::integral_constant<Kind, Kind::kind>())
    SELECTIVE_KIND(zero);
    SELECTIVE_KIND(half);
    SELECTIVE_KIND(one);
    SELECTIVE_KIND(two);
    SELECTIVE_KIND(any);
    SELECTIVE_KIND(product);
    SELECTIVE_KIND(magnitude);
    SELECTIVE_KIND(random);
    SELECTIVE_KIND(given);
#undef SELECTIVE_KIND
  }
}

}  // namespace

void SELECTIVE_ISA_NAME(visit)(DType dtype, const Tile* tiles, int n, const Filter& f, Survivors* survivors) {
  with_kind(f.kind, [&](auto kind) { visit<kind()>(dtype, tiles, n, f, survivors); });
}

void SELECTIVE_ISA_NAME(score)(DType dtype, const Tile& tile, const Filter& f, Survivors& survivors) {
  with_kind(f.kind, [&](auto kind) {
    with_dtype(dtype, [&](auto storage) { score<decltype(storage), kind()>(tile, f, survivors); });
  });
}

}  // namespace selective
