// A vector of floats for the ISA this translation unit is compiled for: AVX-512, AVX2 or plain C++.
//
// Everything is in an anonymous namespace: the same names exist once per ISA and must never be merged by the linker.
#pragma once

#include <cstdint>
#include <cstring>

#include "../convert.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace selective {
namespace {

#if defined(__AVX512F__)

struct Vec {
  static constexpr int lanes = 16;
  using Bits = __m512i;  // running maximum of the gradients' bits
  __m512 v;
};
inline Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const BFloat16* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}
inline Vec load(const Float16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec square_root(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
inline Vec absolute(Vec a) { return {_mm512_abs_ps(a.v)}; }
inline Vec int_value_of_bits(Vec a) { return {_mm512_cvtepi32_ps(_mm512_castps_si512(a.v))}; }
inline std::uint32_t at_least(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
inline Vec::Bits zero_bits() { return _mm512_setzero_si512(); }
inline Vec::Bits max_bits(Vec::Bits m, Vec a) { return _mm512_max_epu32(m, _mm512_castps_si512(a.v)); }
inline std::uint32_t reduce(Vec::Bits m) { return _mm512_reduce_max_epu32(m); }
inline int append_positions(std::uint32_t mask, int base, std::uint16_t* out) {
  const __m512i iota = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i packed = _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), iota);
  const __m256i narrow16 = _mm512_cvtepi32_epi16(_mm512_add_epi32(packed, _mm512_set1_epi32(base)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), narrow16);
  return __builtin_popcount(mask);
}

#elif defined(__AVX2__)

struct Vec {
  static constexpr int lanes = 8;
  using Bits = __m256i;
  __m256 v;
};
inline Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const BFloat16* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16))};
}
inline Vec load(const Float16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec square_root(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
inline Vec absolute(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Vec int_value_of_bits(Vec a) { return {_mm256_cvtepi32_ps(_mm256_castps_si256(a.v))}; }
inline std::uint32_t at_least(Vec a, Vec b) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)));
}
inline Vec::Bits zero_bits() { return _mm256_setzero_si256(); }
inline Vec::Bits max_bits(Vec::Bits m, Vec a) { return _mm256_max_epu32(m, _mm256_castps_si256(a.v)); }
inline std::uint32_t reduce(Vec::Bits m) {
  alignas(32) std::uint32_t x[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(x), m);
  std::uint32_t top = 0;
  for (std::uint32_t value : x) top = value > top ? value : top;
  return top;
}

#else

struct Vec {
  static constexpr int lanes = 8;
  struct Bits {
    std::uint32_t v[8];
  };
  float v[8];
};
#define SELECTIVE_LANES(expression) \
  Vec r;                            \
  for (int i = 0; i < Vec::lanes; ++i) r.v[i] = (expression); \
  return r
inline Vec broadcast(float x) { SELECTIVE_LANES(x); }
template <class T>
inline Vec load(const T* p) {
  SELECTIVE_LANES(widen(p[i]));
}
inline Vec operator+(Vec a, Vec b) { SELECTIVE_LANES(a.v[i] + b.v[i]); }
inline Vec operator*(Vec a, Vec b) { SELECTIVE_LANES(a.v[i] * b.v[i]); }
inline Vec operator/(Vec a, Vec b) { SELECTIVE_LANES(a.v[i] / b.v[i]); }
inline Vec square_root(Vec a) { SELECTIVE_LANES(square_root(a.v[i])); }
inline Vec absolute(Vec a) { SELECTIVE_LANES(std::fabs(a.v[i])); }
inline Vec int_value_of_bits(Vec a) {
  SELECTIVE_LANES(static_cast<float>(static_cast<std::int32_t>(bits_of(a.v[i]))));
}
#undef SELECTIVE_LANES
inline std::uint32_t at_least(Vec a, Vec b) {
  std::uint32_t mask = 0;
  for (int i = 0; i < Vec::lanes; ++i) mask |= static_cast<std::uint32_t>(a.v[i] >= b.v[i]) << i;
  return mask;
}
inline Vec::Bits zero_bits() { return {{0, 0, 0, 0, 0, 0, 0, 0}}; }
inline Vec::Bits max_bits(Vec::Bits m, Vec a) {
  for (int i = 0; i < Vec::lanes; ++i) m.v[i] = bits_of(a.v[i]) > m.v[i] ? bits_of(a.v[i]) : m.v[i];
  return m;
}
inline std::uint32_t reduce(Vec::Bits m) {
  std::uint32_t top = 0;
  for (std::uint32_t value : m.v) top = value > top ? value : top;
  return top;
}

#endif

#if !defined(__AVX512F__)
inline int append_positions(std::uint32_t mask, int base, std::uint16_t* out) {
  int n = 0;
  for (; mask != 0; mask &= mask - 1) out[n++] = static_cast<std::uint16_t>(base + __builtin_ctz(mask));
  return n;
}
#endif

}  // namespace
}  // namespace selective
