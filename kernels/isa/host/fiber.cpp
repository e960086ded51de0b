#include "fiber.h"

#include <cstdint>

#ifdef EP_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" void ep_host_switch(void** from, void* to);
// What a function must keep goes to the stack that is left, and comes from the one that is gone to.
asm(R"(
.text
.globl ep_host_switch
.type ep_host_switch, @function
ep_host_switch:
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
.size ep_host_switch, .-ep_host_switch
)");

namespace ep::host {

#ifdef EP_TSAN
constexpr unsigned NO_SYNC = 1;
// This thread itself, which knows nothing of what its fibers do.
static thread_local void* own = nullptr;
#endif

void adopt_thread([[maybe_unused]] Fiber& fiber) {
#ifdef EP_TSAN
  fiber.tsan = own = __tsan_get_current_fiber();
#endif
}

void make_fiber(Fiber& fiber, char* stack, std::size_t num_bytes, void (*entry)()) {
  fiber.stack = stack;
  fiber.stack_bytes = num_bytes;
  const auto top = reinterpret_cast<std::uintptr_t>(stack + num_bytes) & ~std::uintptr_t{15};
  // A function begins 8 bytes below a multiple of 16: its return address, here of nobody.
  void** place = reinterpret_cast<void**>(top) - 1;
  *place = nullptr;
  *--place = reinterpret_cast<void*>(entry);
  for (int kept = 0; kept < 6; ++kept) *--place = nullptr;
  fiber.place = place;
#ifdef EP_TSAN
  fiber.tsan = __tsan_create_fiber(0);
#endif
}

void begun([[maybe_unused]] Fiber& thread) {
#ifdef EP_ASAN
  const void* stack;
  std::size_t stack_bytes;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &stack_bytes);
  // Only the first fiber comes from the thread's own stack.
  if (thread.stack == nullptr) thread.stack = stack, thread.stack_bytes = stack_bytes;
#endif
}

void free_fiber([[maybe_unused]] Fiber& fiber) {
#ifdef EP_TSAN
  __tsan_destroy_fiber(fiber.tsan);
#endif
}

void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool ends) {
#ifdef EP_ASAN
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.asan, to.stack, to.stack_bytes);
#endif
#ifdef EP_TSAN
  __tsan_switch_to_fiber(to.tsan, NO_SYNC);
#endif
  ep_host_switch(&from.place, to.place);
#ifdef EP_ASAN
  __sanitizer_finish_switch_fiber(from.asan, nullptr, nullptr);
#endif
}

#ifdef EP_TSAN
Actor::~Actor() {
  if (fiber != nullptr) __tsan_destroy_fiber(fiber);
}
void Actor::enter() {
  before = __tsan_get_current_fiber();
  if (fiber == nullptr) {
    // Who is made knows what its maker does.
    __tsan_switch_to_fiber(own, NO_SYNC);
    fiber = __tsan_create_fiber(0);
  }
  __tsan_switch_to_fiber(fiber, NO_SYNC);
}
void Actor::exit() { __tsan_switch_to_fiber(before, NO_SYNC); }
#else
Actor::~Actor() = default;
void Actor::enter() {}
void Actor::exit() {}
#endif

}  // namespace ep::host
