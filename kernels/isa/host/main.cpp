// Runs a launch that a file holds: argv = library, file. The windows are mapped from the file, so
// that who wrote it finds the results there.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>

#include "runtime.h"

#ifdef EP_ASAN
#include <sanitizer/asan_interface.h>
#endif

using ep::host::i64;
using ep::host::World;

// Addresses in the file are those of its writer: what lies in the windows is moved along.
static void relocate(i64& value, i64 begin, i64 end, i64 distance) {
  if (value >= begin && value < end) value += distance;
}

int main(int num_arguments, char** arguments) {
  if (num_arguments != 3) return 2;
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  const auto run = reinterpret_cast<int (*)(World*)>(dlsym(library, "ep_host_run"));
  const int file = open(arguments[2], O_RDWR);
  struct stat facts;
  if (run == nullptr || file < 0 || fstat(file, &facts) != 0) return 2;
  void* memory = mmap(nullptr, facts.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) return 2;

  // First the world, whose own addresses are offsets in the file, but for the windows'.
  char* begin = static_cast<char*>(memory);
  World& world = *reinterpret_cast<World*>(begin);
  const i64 written = world.windows, total = world.num_ranks * world.stride_bytes;
  const i64 moved = reinterpret_cast<i64>(begin);
  world.params += moved, world.report += moved, world.message += moved;
  world.windows = reinterpret_cast<i64>(begin + facts.st_size - total);
  i64* params = reinterpret_cast<i64*>(world.params);
  for (i64 index = 0; index < world.num_ranks * world.num_params; ++index)
    relocate(params[index], written, written + total, world.windows - written);
#ifdef EP_ASAN
  for (i64 rank = 0; rank < world.num_ranks; ++rank)
    __asan_poison_memory_region(
        reinterpret_cast<void*>(world.windows + rank * world.stride_bytes + world.window_bytes),
        world.stride_bytes - world.window_bytes);
#endif
  // A failed launch is told in the message.
  run(&world);
  return 0;
}
