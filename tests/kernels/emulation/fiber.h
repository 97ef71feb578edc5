// Stacks that a thread switches between by hand: each thread of an emulated block runs on one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulation {

// A stack with a guard page below it, and where its code goes on when it is switched to.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next `resume` call `main` on this stack from its start; what ran here before is dropped.
  void start(void (*main)());
  // Runs until the fiber calls `suspend` or `finish`; not from within a fiber.
  void resume();
  // From within: back to `resume`, which may be called again.
  static void suspend();
  // From within: back to `resume`, for good.
  [[noreturn]] static void finish();

 private:
  static void enter();

  std::byte* memory_;
  void* stack_pointer_ = nullptr;
  void (*main_)() = nullptr;
  void* sanitizer_state_ = nullptr;
};

}  // namespace emulation
