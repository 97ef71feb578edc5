#include "fiber.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kStack = 64 * kPage;  // instrumented frames are large

Fiber* running = nullptr;

// The stack that resumes, for the sanitizer.
const void* caller_stack = nullptr;
std::size_t caller_size = 0;
void* caller_state = nullptr;

#if defined(__SANITIZE_ADDRESS__)
void leave(void** state, const void* stack, std::size_t size) { __sanitizer_start_switch_fiber(state, stack, size); }
void arrive(void* state, const void** stack, std::size_t* size) { __sanitizer_finish_switch_fiber(state, stack, size); }
void forget(const void* stack, std::size_t size) { ASAN_UNPOISON_MEMORY_REGION(stack, size); }
#else
void leave(void**, const void*, std::size_t) {}
void arrive(void*, const void**, std::size_t*) {}
void forget(const void*, std::size_t) {}
#endif

#if defined(__x86_64__)
// Saves what a call preserves on the old stack, and takes it from the new one. swapcontext also saves the mask of
// signals, by a call of the kernel, which takes a hundred times as long.
extern "C" void emulation_switch(void** saved, void* next);
asm(R"(
  .text
  .local emulation_switch
  .type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulation_switch, .-emulation_switch
)");

void* caller_pointer = nullptr;

void* first_pointer(std::byte* top, void (*entry)()) {
  void** frame = reinterpret_cast<void**>(top) - 8;  // six registers, the address to return to, and none above it
  for (int i = 0; i < 8; ++i) frame[i] = nullptr;
  frame[6] = reinterpret_cast<void*>(entry);
  return frame;
}

void switch_in(void** pointer) { emulation_switch(&caller_pointer, *pointer); }
void switch_out(void** pointer) { emulation_switch(pointer, caller_pointer); }
#else
ucontext_t caller_context;

void* first_pointer(std::byte* top, void (*entry)()) {
  std::byte* bottom = top - kStack;
  auto* context = new (bottom) ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = bottom + kPage;
  context->uc_stack.ss_size = kStack - kPage;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

void switch_in(void** pointer) { swapcontext(&caller_context, static_cast<ucontext_t*>(*pointer)); }
void switch_out(void** pointer) { swapcontext(static_cast<ucontext_t*>(*pointer), &caller_context); }
#endif

}  // namespace

Fiber::Fiber() {
  void* memory = mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<std::byte*>(memory);
  mprotect(memory_, kPage, PROT_NONE);
}

Fiber::~Fiber() { munmap(memory_, kPage + kStack); }

void Fiber::start(void (*main)()) {
  forget(memory_ + kPage, kStack);
  main_ = main;
  sanitizer_state_ = nullptr;
  stack_pointer_ = first_pointer(memory_ + kPage + kStack, &Fiber::enter);
}

void Fiber::enter() {
  arrive(nullptr, &caller_stack, &caller_size);
  running->main_();
  finish();
}

void Fiber::resume() {
  running = this;
  leave(&caller_state, memory_ + kPage, kStack);
  switch_in(&stack_pointer_);
  arrive(caller_state, nullptr, nullptr);
  running = nullptr;
}

void Fiber::suspend() {
  Fiber* self = running;
  leave(&self->sanitizer_state_, caller_stack, caller_size);
  switch_out(&self->stack_pointer_);
  arrive(self->sanitizer_state_, &caller_stack, &caller_size);
}

void Fiber::finish() {
  leave(nullptr, caller_stack, caller_size);
  switch_out(&running->stack_pointer_);
  std::abort();  // a finished fiber is never resumed
}

}  // namespace emulation
