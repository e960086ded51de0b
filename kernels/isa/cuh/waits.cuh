// Waits: lane 0 or all lanes poll, with a limit and an abort word; all lanes leave together.
//
// Their numbers are of 32 bits: what calls a wait keeps its own values in the other registers.
#pragma once

#include "machine.cuh"

namespace ep {

// Polls between two looks at the clock and at the abort word.
constexpr u32 LOOK_EVERY = 64;

// A wait in progress. Only lane 0 looks at the clock; the others are told.
struct Patience {
  u32 num_polls = 0;
  i64 begun = 0;

  // Returns why the wait must end now, 0 to go on.
  EP_FN i32 spent() {
    if (++num_polls % LOOK_EVERY != 0) return 0;
    if (load_relaxed(own(ep_machine.abort_offset)) != 0) return ABORTED;
    const i64 now = nanoseconds();
    if (begun == 0) begun = now;
    return now - begun > ep_machine.limit_ns ? TIMED_OUT : 0;
  }
};

// Says where a wait has failed, unless another has, ends all kernels of the node, and leaves. All
// lanes come; the first one with a cause says it, in its own values.
[[noreturn]] EP_COLD_FN void report_and_leave(i32 cause, i64 offset, i64 seen, i64 wanted,
                                              i64 line) {
  const i64 address = ep_machine.report;
  const i32 rank = static_cast<i32>(own_rank());
  const bool tells = lane_id() == first_bit(ballot(cause != 0));
  if (tells && compare_swap(address, 0, cause) == 0) {
    store_relaxed(address + 8, rank);
    store_relaxed(address + 16, block_index());
    store_relaxed(address + 24, thread_index() / LANES);
    store_relaxed(address + 32, offset);
    store_relaxed(address + 40, seen);
    store_relaxed(address + 48, wanted);
    store_relaxed(address + 56, line);
  }
  if (tells && cause == TIMED_OUT) {
    const i32 ranks_per_node = static_cast<i32>(ep_machine.ranks_per_node);
    const i32 first = rank - rank % ranks_per_node;
#pragma unroll 1
    for (i32 peer = first; peer < first + ranks_per_node; ++peer)
      if (peer < ep_machine.world_size && ep_machine.bases[peer] != 0)
        store_relaxed(at(peer, ep_machine.abort_offset), 1);
  }
  leave();
}

// Leaves with all lanes where one has found a cause; which one is its own affair.
EP_FN void leave_if(i32 cause, i64 offset, i64 seen, i64 wanted, i64 line) {
  if (ballot(cause != 0) != 0) report_and_leave(cause, offset, seen, wanted, line);
}

// Leaves where lane 0 has no patience left, saying what the first of the lanes awaits that are late.
EP_FN void leave_if_spent(Patience& patience, u32 late, i64 offset, i64 seen, i64 wanted,
                          i64 line) {
  const i32 cause = shuffle(lane_id() == 0 ? patience.spent() : 0, 0);
  if (cause != 0)
    report_and_leave(lane_id() == first_bit(late) ? cause : 0, offset, seen, wanted, line);
}

EP_COLD_FN i64 wait_ge(i64 offset, i64 value, i64 line) {
  sync_warp();
  i64 seen = 0;
  i32 cause = 0;
  if (lane_id() == 0) {
    const i64 flag = own(offset);
    Patience patience;
    while ((seen = load_acquire(flag)) < value && (cause = patience.spent()) == 0) {
    }
  }
  leave_if(cause, offset, seen, value, line);
  seen = shuffle(seen, 0);
  sync_warp();  // orders what the other lanes read after what lane 0 has acquired
  return seen;
}

EP_COLD_FN i32 wait_any(i64 offset, i32 stride, i64 values, i32 count, i32 first, i64 line) {
  sync_warp();
  Patience patience;
  while (true) {
    i64 flag = offset, seen = 0, wanted = 0;
    i32 cause = 0;
#pragma unroll 1
    for (i32 begin = 0; begin < count; begin += LANES) {
      const i32 turn = begin + lane_id();
      i32 index = first + turn;
      if (index >= count) index -= count;
      bool found = false;
      if (turn < count) {
        wanted = load_i64(values + 8ll * index);
        flag = offset + static_cast<i64>(index) * stride;
        seen = load_acquire(own(flag));
        found = seen >= wanted;
      }
      const u32 lanes = ballot(found);
      if (lanes != 0) {
        sync_warp();  // as in wait_ge: the flag's lane has acquired for all
        return shuffle(index, first_bit(lanes));
      }
    }
    if (lane_id() == 0) cause = patience.spent();
    leave_if(cause, flag, seen, wanted, line);
  }
}

EP_COLD_FN void wait_all(i64 offset, i32 stride, i32 count, i64 value, i64 line) {
  sync_warp();
  const i64 flags = own(offset);
  Patience patience;
#pragma unroll 1
  for (i32 begin = 0; begin < count; begin += LANES) {
    const i32 index = begin + lane_id();
    while (true) {
      i64 seen = value;
      if (index < count) seen = load_acquire(flags + static_cast<i64>(index) * stride);
      const u32 late = ballot(seen < value);
      if (late == 0) break;
      leave_if_spent(patience, late, offset + static_cast<i64>(index) * stride, seen, value, line);
    }
  }
  sync_warp();  // as in wait_ge: every lane has acquired for all
}

// Barriers of some warps of a block: a counter in shared memory that only grows, so that a warp
// that has left is not waited for longer than any other wait.
constexpr int NUM_GROUPS = 16;
#ifdef EP_GROUPS
EP_SHARED u32 group_arrivals[NUM_GROUPS];

EP_FN void init_groups() {
  if (thread_index() < NUM_GROUPS) group_arrivals[thread_index()] = 0;
}

EP_FN void group_sync(i32 group, i32 num_warps, i64 line) {
  sync_warp();
  i32 cause = 0;
  u32 seen = 0, wanted = 0;
  if (lane_id() == 0) {
    u32* counter = &group_arrivals[group];
    const u32 size = static_cast<u32>(num_warps);
    const u32 goal = (arrive_shared(counter) / size + 1) * size;
    Patience patience;
    // The difference tells whether the goal is reached when the counter has wrapped.
    while (static_cast<i32>(load_acquire_shared(counter) - goal) < 0 &&
           (cause = patience.spent()) == 0) {
    }
    seen = load_acquire_shared(counter);
    wanted = goal;
  }
  leave_if(cause, NO_FLAG, seen, wanted, line);
  sync_warp();
}
#endif

}  // namespace ep
