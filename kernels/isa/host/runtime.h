// A GPU made of this machine's threads: what `cuh/host.h` is written against.
//
// A block is a thread, its lanes are fibers of it that take turns in random order: at every
// meeting, at every poll, at some stores. Ranks share one world, as virtual ranks share one card.
// Nothing in here is instrumented: sanitizers are told of barriers, fences and bulk copies as the
// GPU's memory model has them, and of nothing else, so that a shuffle orders no memory and a
// barrier of a warp orders that warp's. ThreadSanitizer takes every lane for a thread.
#pragma once

namespace ep::host {

using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

// When bulk copies happen.
enum BulkTimes : i64 { AT_WAITS = 0, AT_ANY_TIME = 1, AT_ONCE = 2 };

// A launch on every rank. All int64, as Python writes it.
struct World {
  i64 num_ranks, ranks_per_node, num_blocks, num_warps;
  i64 num_params, params;                     // address of int64 [num_ranks][num_params]
  i64 windows, stride_bytes, window_bytes;    // address of rank 0's, and from one to the next
  i64 abort_offset, limit_ns;                 // as in Machine
  i64 seed, bulk_times;
  i64 report;   // address of 8 words, a multiple of 16
  i64 message;  // address of MESSAGE_BYTES: what was done that a GPU does not allow, or nothing
};
constexpr i64 MESSAGE_BYTES = 512;

// What a compiled kernel gives the runtime.
struct Program {
  void (*begin)(const World& world, i64 rank);  // run by each block's thread
  void (*kernel)(const i64* params);            // run by each lane
  i64 num_params;
};

// Runs a launch to its end. Returns 0, or 1 with a message.
int run(const World& world, const Program& program);
void poison_variables(void* inside);

// Ends the launch with a message, the first one of the world.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void leave();

int lane_id();
int thread_index();
int num_warps();
int block_index();
int rank_index();

// What lanes of a warp do together; all must do the same.
enum class Together {
  sync_warp,
  sync_block,
  ballot,
  match,
  shuffle,
  shuffle_up,
  shuffle_xor,
  reduce
};

void sync_warp();
void sync_block();
// Brings a value and waits for the warp's other lanes; their values are there until the next one.
void meet(Together kind, u64 value);
u64 met(int lane);
// Lanes that came to the last meeting: all but those that have left.
u32 met_lanes();

// Lets other lanes and blocks go on.
void poll();
// The same now and then, before what others may see.
void stir();
i64 nanoseconds();

// Fences. A relaxed write after a fence is made between `begin_covered` and `end_covered`, as a
// release, if the first returns true; an acquire is one of the words last loaded before it.
void fence_release();
void fence_acquire();
void has_loaded(const i64* word);
bool begin_covered();
void end_covered();

// Bulk copies, see bulk.cpp.
void init_barrier(u64* barrier, u32 count);
void publish_barriers();
void arrive_barrier(u64* barrier, u32 expected_bytes);
bool try_barrier(u64* barrier, u32 parity);
void bulk_load(void* stage, i64 source, u32 num_bytes, u64* barrier);
void bulk_store(i64 target, const void* stage, u32 num_bytes);
void bulk_commit();
void bulk_wait_read(int num_pending);
void bulk_wait(int num_pending);
void fence_to_bulk();

}  // namespace ep::host
