// Fibers of x86-64, known to the sanitizers.
#pragma once

#include <cstddef>

#ifdef EP_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* begin, unsigned long num_bytes);
void __tsan_write_range(void* begin, unsigned long num_bytes);
void __tsan_ignore_thread_begin();
void __tsan_ignore_thread_end();
}
#endif

namespace ep::host {

struct Fiber {
  void* place = nullptr;  // stack pointer while another runs
  const void* stack = nullptr;
  std::size_t stack_bytes = 0;
  void* tsan = nullptr;
  void* asan = nullptr;
};

// Makes this thread's own stack a fiber.
void adopt_thread(Fiber& fiber);
// Makes a fiber that begins in `entry`, which never returns and calls `begun` first.
void make_fiber(Fiber& fiber, char* stack, std::size_t num_bytes, void (*entry)());
void begun(Fiber& thread);
void free_fiber(Fiber& fiber);
// Goes on in another fiber. `ends`: this one will not be gone back to.
void switch_fiber(Fiber& from, Fiber& to, bool ends);

// What is before a release of an object is before what follows an acquire of it.
inline void released([[maybe_unused]] void* object) {
#ifdef EP_TSAN
  __tsan_release(object);
#endif
}
inline void acquired([[maybe_unused]] void* object) {
#ifdef EP_TSAN
  __tsan_acquire(object);
#endif
}

// Accesses of the lane, or of the actor, that runs.
inline void reads([[maybe_unused]] const void* begin, [[maybe_unused]] std::size_t num_bytes) {
#ifdef EP_TSAN
  __tsan_read_range(const_cast<void*>(begin), num_bytes);
#endif
}
inline void writes([[maybe_unused]] void* begin, [[maybe_unused]] std::size_t num_bytes) {
#ifdef EP_TSAN
  __tsan_write_range(begin, num_bytes);
#endif
}

// While one lives, ThreadSanitizer does not look at what the C library does for the runtime.
class Unwatched {
 public:
#ifdef EP_TSAN
  Unwatched() { __tsan_ignore_thread_begin(); }
  ~Unwatched() { __tsan_ignore_thread_end(); }
#else
  Unwatched() {}
#endif
  Unwatched(const Unwatched&) = delete;
};

// Somebody else than the lane that runs, for ThreadSanitizer: a copy engine.
class Actor {
 public:
  Actor() = default;
  Actor(const Actor&) = delete;
  ~Actor();
  void enter();
  void exit();
  template <class Work>
  void does(Work work) {
    enter();
    work();
    exit();
  }

 private:
  void* fiber = nullptr;
  void* before = nullptr;
};

}  // namespace ep::host
