// Launches: a thread for each block of each rank.
#include <elf.h>
#include <link.h>
#include <sched.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <thread>

#include "block.h"

namespace ep::host {

constexpr unsigned char SHARED_POISON = 0xcb;

static void record(Launch& launch, const char* format, va_list arguments) {
  const Unwatched unwatched;
  if (!__atomic_exchange_n(&launch.taken, true, __ATOMIC_ACQ_REL))
    std::vsnprintf(reinterpret_cast<char*>(launch.world.message), MESSAGE_BYTES, format, arguments);
  __atomic_store_n(&launch.failed, true, __ATOMIC_RELEASE);
}

void note(Launch& launch, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record(launch, format, arguments);
  va_end(arguments);
}

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record(current->block->launch, format, arguments);
  va_end(arguments);
  throw LaneLeft();
}

// Fills this thread's copies of a library's variables, among them the one at `inside`: a block
// finds nothing in its shared memory.
void poison_variables(void* inside) {
  dl_iterate_phdr(
      [](dl_phdr_info* object, size_t, void* inside) {
        auto* data = static_cast<char*>(object->dlpi_tls_data);
        for (int index = 0; index < object->dlpi_phnum; ++index) {
          const auto& segment = object->dlpi_phdr[index];
          if (segment.p_type != PT_TLS || data == nullptr) continue;
          if (inside < data || inside >= data + segment.p_memsz) continue;
          std::memset(data, SHARED_POISON, segment.p_memsz);
          return 1;
        }
        return 0;
      },
      inside);
}

// Waits for the other blocks: all are there together, as on a GPU that has room for them, and
// ThreadSanitizer takes none for another that has ended. To it this orders nothing.
static void meet_blocks(const World& world, int& count) {
  __atomic_fetch_add(&count, 1, __ATOMIC_ACQ_REL);
  while (__atomic_load_n(&count, __ATOMIC_ACQUIRE) < world.num_ranks * world.num_blocks)
    sched_yield();
}

int run(const World& world, const Program& program) {
  Launch launch{world, program};
  if (world.num_params != program.num_params)
    note(launch, "a kernel of %lld parameters is given %lld", program.num_params, world.num_params);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world.num_ranks && !launch.failed; ++rank)
    for (int index = 0; index < world.num_blocks; ++index)
      threads.emplace_back([&launch, rank, index] {
        launch.program.begin(launch.world, rank);
        Block block(launch, rank, index);
        meet_blocks(launch.world, launch.num_begun);
        block.run();
        meet_blocks(launch.world, launch.num_ended);
      });
  for (auto& thread : threads) thread.join();
  return launch.failed;
}

}  // namespace ep::host
