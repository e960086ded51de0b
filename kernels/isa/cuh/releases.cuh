// Releases: what makes a warp's writes known, its bulk copies first; and the barriers before them.
#pragma once

#include "bulk.cuh"
#include "waits.cuh"

namespace ep {

EP_FN void fence_release() {
  sync_warp();
  finish_bulk();
  if (lane_id() == 0) release_system();
  sync_warp();
}

EP_FN void store_word_release(i64 rank, i64 offset, i64 value) {
  sync_warp();
  finish_bulk();
  if (lane_id() == 0) store_release(at(rank, offset), value);
}

// Adds to a flag after everything that this warp's release covers.
EP_FN void put_signal(i64 rank, i64 offset, i64 value) {
  fence_release();
  if (lane_id() == 0) add_relaxed(at(rank, offset), value);
}

EP_FN void block_sync() {
  finish_bulk();
  sync_warp();
  sync_block();
}

#ifdef EP_GROUPS
EP_FN void group_sync_all(i32 group, i32 num_warps, i64 line) {
  finish_bulk();
  group_sync(group, num_warps, line);
}
#endif

// What a block does first and last, whatever it runs.
EP_FN void begin_block() {
  init_bulk();
#ifdef EP_GROUPS
  init_groups();
#endif
#if defined(EP_BULK) || defined(EP_GROUPS)
  sync_block();
#endif
}
EP_FN void end_block() { finish_bulk(); }

}  // namespace ep
