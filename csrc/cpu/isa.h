// Names of the functions that exist once per ISA. CMake compiles topk.cpp, indexing.cpp and optim.cpp once for each,
// with SELECTIVE_ISA set to the ISA's name.
#pragma once

#include "../selective.h"

#define SELECTIVE_JOIN_(a, b) a##_##b
#define SELECTIVE_JOIN(a, b) SELECTIVE_JOIN_(a, b)
#define SELECTIVE_ISA_NAME(function) SELECTIVE_JOIN(function, SELECTIVE_ISA)

#define SELECTIVE_DECLARE(isa)                                                                                 \
  void visit_##isa(DType, const Tile*, int, const Filter&, Survivors*);                                        \
  void score_##isa(DType, const Tile&, const Filter&, Survivors&);                                             \
  bool gather_##isa(DType, const void*, const std::int32_t*, std::int64_t, float*);                            \
  void gather_bits_##isa(DType, const void*, const std::int32_t*, std::int64_t, std::uint32_t*);               \
  void scatter_##isa(DType, void*, const std::int32_t*, std::int64_t, const float*);                           \
  void swap_##isa(DType, void*, const std::int32_t*, std::int64_t, std::uint32_t*);                            \
  void adam_##isa(const AdamSpan&);                                                                            \
  void sgd_##isa(const SgdSpan&);                                                                              \
  std::uint64_t read_##isa(const void*, std::int64_t);

namespace selective {
SELECTIVE_DECLARE(avx512)
SELECTIVE_DECLARE(avx2)
SELECTIVE_DECLARE(portable)
}  // namespace selective
