// A block of lanes on one thread.
#pragma once

#include <memory>
#include <vector>

#include "fiber.h"
#include "runtime.h"

namespace ep::host {

constexpr int LANES = 32;

struct Launch;
struct Block;
struct Copies;

// Where lanes wait for each other. Two turns' objects and values: who runs ahead disturbs nobody.
struct Meeting {
  int num_live = 0, num_here = 0;
  Together kind = Together::sync_warp;
  u32 turn = 0;
  u32 lanes[2] = {};
  u64 values[2][LANES] = {};
  char objects[2] = {};
  std::vector<struct Lane*> waiting;
};

struct Lane {
  Fiber fiber;
  Block* block = nullptr;
  Meeting* warp = nullptr;
  int index = 0;  // in the block
  u32 turn = 0;   // of the last meeting
  bool has_left = false;
  // The lane's fences: what was before the last one.
  bool has_fenced = false;
  char fenced = 0;
  Actor coverer;
  // Words of the latest relaxed loads.
  void* loaded[4] = {};
  u32 num_loaded = 0;
  std::unique_ptr<Copies> copies;

  Lane();
  ~Lane();
  int lane() const { return index % LANES; }
};

class Random {
 public:
  explicit Random(u64 seed) : state(seed * 0x9e3779b97f4a7c15ull + 0x1234567ull) {}
  u32 below(u32 bound) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<u32>((state >> 32) * bound >> 32);
  }
  bool one_in(u32 bound) { return below(bound) == 0; }

 private:
  u64 state;
};

struct Block {
  Launch& launch;
  int rank, index;
  Random random;
  Fiber thread;
  char* stacks = nullptr;
  std::vector<Lane> lanes;
  std::vector<Meeting> warps;
  Meeting all;
  std::vector<Lane*> runnable;
  u32 num_idle = 0;
  int num_live = 0;
  char object = 0, fenced = 0;
  std::vector<u64*> unpublished;  // barriers that the copy engine does not know yet

  Block(Launch& launch, int rank, int index);
  ~Block();
  void run();
  // The lane that runs goes on later, when it is runnable.
  void suspend();
  void let_others();
  void arrive(Meeting& meeting, Together kind, u64 value, bool orders);
  void finish(Meeting& meeting);
  void lane_main();
};

struct Launch {
  const World& world;
  const Program& program;
  bool has_failed() const { return __atomic_load_n(&failed, __ATOMIC_ACQUIRE); }
  bool failed = false;
  bool taken = false;
  // Blocks that have begun, and that have ended.
  int num_begun = 0, num_ended = 0;
};

// Says what is wrong with a launch, unless something else was before, and ends it.
void note(Launch& launch, const char* format, ...) __attribute__((format(printf, 2, 3)));

struct LaneLeft {};

extern thread_local Lane* current;

// Bulk copies that may happen by themselves do so now and then.
void stir_copies(Block& block);
// Ends a lane's or a block's bulk copies. Returns what is wrong with them, or nullptr.
const char* check_copies(const Lane& lane);
void finish_copies(Block& block);
void drop_copies(Lane& lane);

}  // namespace ep::host
