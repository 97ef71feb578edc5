// Chooses the fastest ISA that both this build and this machine have, once.
#include <atomic>
#include <cstring>
#include <vector>

#include "isa.h"

namespace selective {
namespace {

#define SELECTIVE_KERNELS(isa) \
  {                                                                                                    \
    #isa, visit_##isa, score_##isa, gather_##isa, gather_bits_##isa, scatter_##isa, swap_##isa,        \
        adam_##isa, sgd_##isa, read_##isa                                                              \
  }

const std::vector<const Kernels*>& runnable() {
  static const std::vector<const Kernels*> found = [] {
    std::vector<const Kernels*> list;
#if defined(SELECTIVE_HAS_X86)
    __builtin_cpu_init();
    static const Kernels avx512 = SELECTIVE_KERNELS(avx512);
    static const Kernels avx2 = SELECTIVE_KERNELS(avx2);
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx2 && has_avx512) list.push_back(&avx512);
    if (has_avx2) list.push_back(&avx2);
#endif
    static const Kernels portable = SELECTIVE_KERNELS(portable);
    list.push_back(&portable);
    return list;
  }();
  return found;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{runnable().front()};
  return kernels;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

bool use_isa(const char* name) {
  for (const Kernels* candidate : runnable()) {
    if (std::strcmp(candidate->isa, name) == 0) {
      chosen().store(candidate);
      return true;
    }
  }
  return false;
}

const char* const* available_isas() {
  static const std::vector<const char*> names = [] {
    std::vector<const char*> list;
    for (const Kernels* candidate : runnable()) list.push_back(candidate->isa);
    list.push_back(nullptr);
    return list;
  }();
  return names.data();
}

}  // namespace selective
