// The scores of one scalar, once for every scalar and vector type: D3, |g| / (|theta| + eps)^exp (paper Eq. 1),
// |g theta| (SNIP), smallest magnitude first (PaFi), random (R-Mask), and scores that somebody else computed.
//
// Each operation is one correctly rounded IEEE float32 operation and the files that include this one are compiled
// without contraction, so that every ISA and every backend gets the same bits for exp in {0, 1/2, 1, 2}.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace selective {

// Where a score comes from. Python passes these numbers (selective_kernels/score.py).
enum class Family : std::int64_t { d3 = 0, product = 1, magnitude = 2, random = 3, given = 4 };

// What the loops are compiled for: D3 by its exponent, and the other families.
enum class Kind : int { zero, half, one, two, any, product, magnitude, random, given };

struct Score {
  Family family;
  double exponent;     // d3 only
  float eps;           // d3 only: > 0, normal, and eps^exponent is normal
  std::uint64_t seed;  // random only
};

SELECTIVE_HD inline Kind kind_of(const Score& score) {
  switch (score.family) {
    case Family::product:
      return Kind::product;
    case Family::magnitude:
      return Kind::magnitude;
    case Family::random:
      return Kind::random;
    case Family::given:
      return Kind::given;
    case Family::d3:
      break;
  }
  if (score.exponent == 0.0) return Kind::zero;
  if (score.exponent == 0.5) return Kind::half;
  if (score.exponent == 1.0) return Kind::one;
  if (score.exponent == 2.0) return Kind::two;
  return Kind::any;
}

// Which arrays a score is computed from. With Kind::given the "gradients" are the scores themselves.
SELECTIVE_HD constexpr bool reads_grad(Kind kind) { return kind != Kind::magnitude && kind != Kind::random; }
SELECTIVE_HD constexpr bool reads_param(Kind kind) {
  return kind != Kind::zero && kind != Kind::random && kind != Kind::given;
}
SELECTIVE_HD constexpr bool grads_are_gradients(Kind kind) { return reads_grad(kind) && kind != Kind::given; }

namespace {

SELECTIVE_HD inline float square_root(float x) { return std::sqrt(x); }

// (|theta| + eps)^exp; F is float or a vector of floats. Not for Kind::zero, whose power is one.
template <Kind E, class F>
SELECTIVE_HD inline F power(F theta_abs, F eps) {
  static_assert(E == Kind::half || E == Kind::one || E == Kind::two, "a power without pow()");
  const F d = theta_abs + eps;
  if constexpr (E == Kind::half) return square_root(d);
  if constexpr (E == Kind::one) return d;
  if constexpr (E == Kind::two) return d * d;
}

template <Kind E, class F>
SELECTIVE_HD inline F d3(F grad_abs, F theta_abs, F eps) {
  if constexpr (E == Kind::zero) {
    return grad_abs;
  } else {
    return grad_abs / power<E>(theta_abs, eps);
  }
}

// Any other exponent: pow in double, rounded once.
SELECTIVE_HD inline float d3_any(float grad_abs, float theta_abs, float eps, double exponent) {
  const float d = theta_abs + eps;
  return grad_abs / static_cast<float>(std::pow(static_cast<double>(d), exponent));
}

SELECTIVE_HD inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

SELECTIVE_HD inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

constexpr std::uint32_t kLargestBits = 0x7f7fffffu;  // of the largest finite float32

// Smallest |theta| first: its bits in reverse. Zero, so not selectable, for the largest float32, inf and NaN.
SELECTIVE_HD inline std::uint32_t magnitude_key(std::uint32_t theta_abs_bits) {
  return theta_abs_bits < kLargestBits ? kLargestBits - theta_abs_bits : 0;
}

// A bijection of 32-bit numbers that spreads every bit of its input over the output (two multiply-xorshift rounds).
SELECTIVE_HD inline std::uint32_t mix32(std::uint32_t x) {
  x = (x ^ (x >> 16)) * 0x21f0aaadu;
  x = (x ^ (x >> 15)) * 0xd35a2d97u;
  return x ^ (x >> 15);
}

SELECTIVE_HD inline std::uint64_t mix64(std::uint64_t x) {  // splitmix64's finalizer
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

SELECTIVE_HD inline std::uint64_t tensor_salt(std::uint64_t seed, std::uint64_t tensor) {
  return mix64(mix64(seed + 0x9e3779b97f4a7c15u) + (tensor + 1) * 0x9e3779b97f4a7c15u);
}

// Bits of the random score of an entry: a hash of seed, tensor and offset, so that no number is ever drawn or stored.
// 30 random bits over normal numbers from 2^-63 to 2^65, whose order is their bits' order.
SELECTIVE_HD inline std::uint32_t random_key(std::uint64_t salt, std::uint32_t offset) {
  const std::uint32_t x = mix32(offset ^ static_cast<std::uint32_t>(salt));
  return (mix32(x + static_cast<std::uint32_t>(salt >> 32)) >> 2) + 0x20000000u;
}

}  // namespace
}  // namespace selective
