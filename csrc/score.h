// The D3 score |g| / (|theta| + eps)^exp, per element, once for every scalar and vector type (paper Eq. 1).
//
// Each operation is one correctly rounded IEEE float32 operation and the files that include this one are compiled
// without contraction, so that every ISA and every backend gets the same bits for exp in {0, 1/2, 1, 2}.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace selective {

enum class Exponent : int { zero, half, one, two, any };

inline Exponent exponent_kind(double exponent) {
  if (exponent == 0.0) return Exponent::zero;
  if (exponent == 0.5) return Exponent::half;
  if (exponent == 1.0) return Exponent::one;
  if (exponent == 2.0) return Exponent::two;
  return Exponent::any;
}

namespace {

inline float square_root(float x) { return std::sqrt(x); }

// (|theta| + eps)^exp; F is float or a vector of floats. Not for Exponent::zero, whose power is one.
template <Exponent E, class F>
inline F power(F theta_abs, F eps) {
  static_assert(E == Exponent::half || E == Exponent::one || E == Exponent::two, "a power without pow()");
  const F d = theta_abs + eps;
  if constexpr (E == Exponent::half) return square_root(d);
  if constexpr (E == Exponent::one) return d;
  if constexpr (E == Exponent::two) return d * d;
}

template <Exponent E, class F>
inline F d3(F grad_abs, F theta_abs, F eps) {
  if constexpr (E == Exponent::zero) {
    return grad_abs;
  } else {
    return grad_abs / power<E>(theta_abs, eps);
  }
}

// Any other exponent: pow in double, rounded once.
inline float d3_any(float grad_abs, float theta_abs, float eps, double exponent) {
  const float d = theta_abs + eps;
  return grad_abs / static_cast<float>(std::pow(static_cast<double>(d), exponent));
}

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace
}  // namespace selective
