#include "block.h"

#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include <cstdlib>
#include <iterator>
#include <new>

#if defined(EP_TSAN) || defined(EP_ASAN)
constexpr std::size_t STACK_BYTES = 128 << 10;
#else
constexpr std::size_t STACK_BYTES = 64 << 10;
#endif
// Below each stack: who overruns one ends the program.
constexpr std::size_t FORBIDDEN_BYTES = 4096;

namespace ep::host {

thread_local Lane* current = nullptr;

namespace {

const char* name_of(Together kind) {
  switch (kind) {
    case Together::sync_warp: return "sync_warp";
    case Together::sync_block: return "sync_block";
    case Together::ballot: return "ballot";
    case Together::match: return "match";
    case Together::shuffle: return "shuffle";
    case Together::shuffle_up: return "shuffle_up";
    case Together::shuffle_xor: return "shuffle_xor";
    case Together::reduce: return "a reduction";
  }
  return "?";
}

void enter_lane() { current->block->lane_main(); }

char* new_stacks(std::size_t count) {
  const std::size_t num_bytes = count * (FORBIDDEN_BYTES + STACK_BYTES);
  constexpr int FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* stacks = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, FLAGS, -1, 0);
  if (stacks == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(stacks);
}

}  // namespace

Block::Block(Launch& launch, int rank, int index)
    : launch(launch),
      rank(rank),
      index(index),
      random(launch.world.seed * 1000003 + rank * 1009 + index),
      lanes(launch.world.num_warps * LANES),
      warps(launch.world.num_warps),
      num_live(static_cast<int>(lanes.size())) {
  adopt_thread(thread);
  stacks = new_stacks(lanes.size());
  // Lanes allocate nothing: the allocator's accesses would be theirs.
  runnable.reserve(lanes.size());
  all.waiting.reserve(lanes.size());
  for (auto& warp : warps) warp.waiting.reserve(LANES);
  all.num_live = num_live;
  for (auto& warp : warps) warp.num_live = LANES;
  for (int place = 0; place < num_live; ++place) {
    Lane& lane = lanes[place];
    lane.block = this, lane.warp = &warps[place / LANES], lane.index = place;
    char* forbidden = stacks + place * (FORBIDDEN_BYTES + STACK_BYTES);
    mprotect(forbidden, FORBIDDEN_BYTES, PROT_NONE);
    make_fiber(lane.fiber, forbidden + FORBIDDEN_BYTES, STACK_BYTES, enter_lane);
    runnable.push_back(&lane);
  }
}

Block::~Block() {
  for (Lane& lane : lanes) free_fiber(lane.fiber);
  munmap(stacks, lanes.size() * (FORBIDDEN_BYTES + STACK_BYTES));
}

// Takes who goes on. Where nobody can, all wait for each other: the launch has failed, and all go.
static Lane& next(Block& block) {
  auto& runnable = block.runnable;
  if (runnable.empty()) {
    const Lane* one = nullptr;
    const Meeting* where = nullptr;
    auto wake = [&](Meeting& meeting) {
      for (Lane* lane : meeting.waiting) {
        runnable.push_back(lane);
        one = lane, where = &meeting;
      }
      meeting.waiting.clear();
      meeting.num_here = 0;
    };
    wake(block.all);
    for (auto& warp : block.warps) wake(warp);
    note(block.launch, "rank %d, block %d: lanes wait for ever, lane %d of warp %d at %s",
         block.rank, block.index, one->lane(), one->index / LANES, name_of(where->kind));
  }
  const u32 place = block.random.below(static_cast<u32>(runnable.size()));
  Lane* lane = runnable[place];
  runnable[place] = runnable.back();
  runnable.pop_back();
  return *lane;
}

static void go_on(Block& block, Lane& me) {
  Lane& other = next(block);
  if (&other != &me) {
    current = &other;
    switch_fiber(me.fiber, other.fiber, false);
  }
  if (block.launch.has_failed()) throw LaneLeft();
}

void Block::suspend() { go_on(*this, *current); }

void Block::let_others() {
  if (++num_idle > runnable.size()) {
    num_idle = 0;
    sched_yield();
  }
  if (!runnable.empty()) {
    runnable.push_back(current);
    go_on(*this, *current);
  } else if (launch.has_failed()) {
    throw LaneLeft();
  }
}

void Block::arrive(Meeting& meeting, Together kind, u64 value, bool orders) {
  Lane& me = *current;
  if (meeting.num_here > 0 && meeting.kind != kind)
    fail("rank %d, block %d, warp %d: lane %d comes to %s, where others are at %s", rank, index,
         me.index / LANES, me.lane(), name_of(kind), name_of(meeting.kind));
  const u32 turn = meeting.turn & 1;
  if (meeting.num_here == 0) meeting.lanes[turn] = 0;
  meeting.kind = kind;
  meeting.lanes[turn] |= 1u << me.lane();
  meeting.values[turn][me.lane()] = value;
  me.turn = turn;
  if (orders) released(&meeting.objects[turn]);
  if (++meeting.num_here == meeting.num_live) {
    finish(meeting);
    if (random.one_in(2)) let_others();
  } else {
    meeting.waiting.push_back(&me);
    suspend();
  }
  if (orders) acquired(&meeting.objects[turn]);
}

void Block::finish(Meeting& meeting) {
  ++meeting.turn;
  meeting.num_here = 0;
  for (Lane* lane : meeting.waiting) runnable.push_back(lane);
  meeting.waiting.clear();
  num_idle = 0;
}

void Block::lane_main() {
  begun(thread);
  Lane& me = *current;
  acquired(&object);
  const World& world = launch.world;
  bool is_whole = false;
  try {
    launch.program.kernel(reinterpret_cast<const i64*>(world.params) + rank * world.num_params);
    is_whole = true;
  } catch (const LaneLeft&) {
  }
  me.has_left = true;
  if (!is_whole) drop_copies(me);
  if (const char* wrong = check_copies(me); wrong != nullptr)
    note(launch, "rank %d, block %d, warp %d: a lane ends with %s", rank, index, me.index / LANES,
         wrong);
  released(&object);
  for (Meeting* meeting : {me.warp, &all})
    if (--meeting->num_live == meeting->num_here && meeting->num_here > 0) finish(*meeting);
  if (--num_live == 0) {
    switch_fiber(me.fiber, thread, true);
  } else {
    Lane& other = next(*this);
    current = &other;
    switch_fiber(me.fiber, other.fiber, true);
  }
  std::abort();
}

void Block::run() {
  released(&object);
  current = &next(*this);
  switch_fiber(thread, current->fiber, false);
  current = nullptr;
  acquired(&object);
  finish_copies(*this);
}

int lane_id() { return current->lane(); }
int thread_index() { return current->index; }
int num_warps() { return static_cast<int>(current->block->warps.size()); }
int block_index() { return current->block->index; }
int rank_index() { return current->block->rank; }

void leave() { throw LaneLeft(); }

void meet(Together kind, u64 value) {
  current->block->arrive(*current->warp, kind, value, false);
}
u64 met(int lane) {
  const Lane& me = *current;
  if (lane < 0 || lane >= LANES || (me.warp->lanes[me.turn] >> lane & 1) == 0)
    fail("rank %d, block %d, warp %d: a shuffle from lane %d, which has left", me.block->rank,
         me.block->index, me.index / LANES, lane);
  return me.warp->values[me.turn][lane];
}
u32 met_lanes() { return current->warp->lanes[current->turn]; }
void sync_warp() { current->block->arrive(*current->warp, Together::sync_warp, 0, true); }
void sync_block() {
  // All of a warp's other meetings must be over: nobody waits there.
  current->block->arrive(current->block->all, Together::sync_block, 0, true);
}

void poll() {
  Block& block = *current->block;
  stir_copies(block);
  block.let_others();
}
void stir() {
  if (current->block->random.one_in(4)) poll();
}

i64 nanoseconds() {
  poll();
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}

// ThreadSanitizer knows no fences. A relaxed write that follows one is made by an actor that knows
// what the lane had done before the fence, and nothing later.
#ifdef EP_TSAN
void has_loaded(const i64* word) {
  Lane& me = *current;
  me.loaded[me.num_loaded++ % std::size(me.loaded)] = const_cast<i64*>(word);
}
void fence_acquire() {
  for (void* word : current->loaded)
    if (word != nullptr) acquired(word);
}
void fence_release() {
  released(&current->fenced);
  current->has_fenced = true;
}
bool begin_covered() {
  Lane& me = *current;
  if (!me.has_fenced) return false;
  me.coverer.enter();
  acquired(&me.fenced);
  return true;
}
void end_covered() { current->coverer.exit(); }
#else
void has_loaded(const i64*) {}
void fence_acquire() { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
void fence_release() { __atomic_thread_fence(__ATOMIC_RELEASE); }
bool begin_covered() { return false; }
void end_covered() {}
#endif

}  // namespace ep::host
