// Threads for the kernels: torch's OpenMP workers where the build has OpenMP, else the calling thread alone.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <type_traits>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace selective {

// Scores need subnormals (C2), but torch.set_flush_denormal and some libraries set FTZ/DAZ in a thread. Saves the
// thread's floating-point control, clears both, rounds to nearest, restores it at the end.
class IeeeMode {
 public:
#if defined(__SSE2__)
  IeeeMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80u); }
  ~IeeeMode() { _mm_setcsr(saved_); }

 private:
  unsigned int saved_;
#elif defined(__aarch64__)
  IeeeMode() {
    std::uint64_t control;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    saved_ = control;
    asm volatile("msr fpcr, %0" : : "r"(std::uint64_t{0}));
  }
  ~IeeeMode() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  std::uint64_t saved_;
#else
  IeeeMode() {}
#endif
  IeeeMode(const IeeeMode&) = delete;
  IeeeMode& operator=(const IeeeMode&) = delete;
};

constexpr bool has_openmp() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

// Runs work(state, i) for i in [0, count) on at most `threads` threads, in ascending order per thread, with a State of
// each thread's own; finish(state) runs once per thread at its end. An exception in a thread is rethrown here.
template <class State, class Work, class Finish>
void parallel_for(std::int64_t count, int threads, State&& make_state, Work&& work, Finish&& finish) {
  if (count <= 0) return;
  std::exception_ptr failure;
  std::mutex failure_lock;
  // An exception may not leave a loop that OpenMP shares out, so each piece of work is guarded by itself.
  const auto guarded = [&](auto&& f) {
    try {
      f();
    } catch (...) {
      const std::lock_guard<std::mutex> guard(failure_lock);
      failure = std::current_exception();
    }
  };
  const int used = count < threads ? static_cast<int>(count) : threads;
#if defined(_OPENMP)
#pragma omp parallel num_threads(used) if (used > 1)
#endif
  {
    const IeeeMode ieee;
    std::optional<std::decay_t<decltype(make_state())>> state;
    guarded([&] { state.emplace(make_state()); });
#if defined(_OPENMP)
#pragma omp for schedule(dynamic, 1) nowait
#endif
    for (std::int64_t i = 0; i < count; ++i) {
      if (state) guarded([&] { work(*state, i); });
    }
    if (state) guarded([&] { finish(*state); });
  }
  (void)used;
  if (failure) std::rethrow_exception(failure);
}

template <class Work>
void parallel_for(std::int64_t count, int threads, Work&& work) {
  struct Nothing {};
  parallel_for(
      count, threads, [] { return Nothing{}; }, [&](Nothing&, std::int64_t i) { work(i); }, [](Nothing&) {});
}

}  // namespace selective
