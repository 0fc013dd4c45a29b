// Fibers: stacks that kernel threads run on, and the switch from one to another.
//
// On x86-64 and aarch64 a switch is a dozen instructions that save what a call has to preserve.
// Elsewhere, and with SIMT_USE_UCONTEXT, ucontext does it at the price of a system call per switch.
// Neither saves the floating-point modes: kernels have no means to change them.
#pragma once

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(SIMT_USE_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define SIMT_USE_UCONTEXT
#endif

#ifdef SIMT_USE_UCONTEXT
#include <ucontext.h>
#endif

namespace simt {

struct Stack {
  unsigned char* bottom;
  size_t bytes;
};

}  // namespace simt

#ifdef SIMT_USE_UCONTEXT

namespace simt {

using Context = ucontext_t;

inline void prepare_context(Context& context, Stack stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack.bottom;
  context.uc_stack.ss_size = stack.bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

inline void fetch_ahead(const Context&) {}

}  // namespace simt

#else

// Saves the registers a call preserves on the running stack, stores the stack pointer in *saved,
// and does the reverse with the stack pointer `next`.
extern "C" __attribute__((visibility("hidden"))) void simt_switch_stack(void** saved, void* next);

#if defined(__x86_64__)

// Ends in a jump, not in `ret`, which the processor would expect to go back to the last caller:
// about a quarter faster.
asm(R"(
  .pushsection .text
  .globl simt_switch_stack
  .hidden simt_switch_stack
  .type simt_switch_stack, @function
simt_switch_stack:
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
  popq %rcx
  jmp *%rcx
  .size simt_switch_stack, . - simt_switch_stack
  .popsection
)");

namespace simt {
// r15, r14, r13, r12, rbx, rbp, the address to go on at, and a null return address that ends
// backtraces and puts the stack pointer where a call would have left it: 8 below a multiple of 16.
constexpr size_t frame_words = 8;
constexpr size_t frame_entry = 6;
}  // namespace simt

#else

asm(R"(
  .pushsection .text
  .globl simt_switch_stack
  .hidden simt_switch_stack
  .type simt_switch_stack, %function
simt_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size simt_switch_stack, . - simt_switch_stack
  .popsection
)");

namespace simt {
constexpr size_t frame_words = 20;
constexpr size_t frame_entry = 11;  // x30, the address to go on at
}  // namespace simt

#endif

namespace simt {

struct Context {
  void* stack_pointer;
};

// Lays out the frame that simt_switch_stack would have saved had `entry` been about to start.
inline void prepare_context(Context& context, Stack stack, void (*entry)()) {
  void** frame = reinterpret_cast<void**>(stack.bottom + stack.bytes) - frame_words;
  for (size_t word = 0; word < frame_words; ++word) frame[word] = nullptr;
  frame[frame_entry] = reinterpret_cast<void*>(entry);
  context.stack_pointer = frame;
}

inline void switch_context(Context& from, Context& to) {
  simt_switch_stack(&from.stack_pointer, to.stack_pointer);
}

// Every stack is in pages of its own, so that each switch waits for memory unless it is asked for
// before: with this a barrier takes half the time.
inline void fetch_ahead(const Context& context) { __builtin_prefetch(context.stack_pointer); }

}  // namespace simt

#endif

namespace simt {

struct Fiber {
  Context context;
  Stack stack;
  Fiber* next_free;
  Fiber* next_made;
};

// Stacks are made on demand and kept for the life of the process: one per thread that was ever
// suspended at the same time as the others.
class FiberPool {
 public:
  explicit FiberPool(void (*entry)()) : entry_(entry) {}

  Fiber* take() {
    if (free_ == nullptr) make();
    Fiber* fiber = free_;
    free_ = fiber->next_free;
    return fiber;
  }

  void give_back(Fiber* fiber) {
    fiber->next_free = free_;
    free_ = fiber;
  }

  // Forgets whatever the fibers were doing, without unwinding it.
  void abandon_all() {
    free_ = nullptr;
    for (Fiber* fiber = made_; fiber != nullptr; fiber = fiber->next_made) start_over(fiber);
  }

 private:
  // Room for about 100 KB of local arrays. A page below the stack cannot be touched, so that a
  // kernel that needs more crashes instead of overwriting another thread's stack.
  static constexpr size_t stack_bytes = 128 << 10;

  void make() {
    const size_t guard_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, guard_bytes, PROT_NONE) != 0) {
      perror("simt: no memory for another thread's stack");
      abort();
    }
    Fiber* fiber = new Fiber;
    unsigned char* bottom = static_cast<unsigned char*>(memory) + guard_bytes;
    fiber->stack = {bottom, stack_bytes - guard_bytes};
    fiber->next_made = made_;
    made_ = fiber;
    start_over(fiber);
  }

  void start_over(Fiber* fiber) {
    prepare_context(fiber->context, fiber->stack, entry_);
    give_back(fiber);
  }

  void (*entry_)();
  Fiber* free_ = nullptr;
  Fiber* made_ = nullptr;
};

}  // namespace simt
