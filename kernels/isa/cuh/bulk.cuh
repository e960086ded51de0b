// Rows by bulk copies: lane 0 asks, the copy engine moves each row through stages in shared memory.
//
// A warp has NUM_STAGES stages and an mbarrier for each. Load k of the warp fills stage k mod
// NUM_STAGES and ends phase k div NUM_STAGES of its barrier; the store that follows reads the
// stage, and the stage is filled again when the store before has been read. Loads of a row overlap,
// its stores are awaited by whatever releases them.
#pragma once

#include "rows.cuh"
#include "waits.cuh"

namespace ep {

constexpr int NUM_STAGES = 2;
// A block's stages fill at most 192 KiB; kernels.isa.cuda_kernel gives so much.
#ifdef EP_MANY_WARPS
constexpr u32 STAGE_BYTES = 3072;
#else
constexpr u32 STAGE_BYTES = 4096;
#endif

#if defined(EP_BULK) && defined(EP_HAS_BULK)

constexpr int MAX_WARPS = 32;

struct BulkState {
  u64 barriers[MAX_WARPS][NUM_STAGES];
  u32 num_loads[MAX_WARPS];
};
EP_SHARED BulkState bulk_state;
// NUM_STAGES * STAGE_BYTES for each warp; a launch gives as much dynamic shared memory.
EP_DYNAMIC_SHARED(Vec, bulk_stages);

EP_FN void init_bulk() {
  const int warp = thread_index() / LANES;
  if (lane_id() != 0) return;
  for (int stage = 0; stage < NUM_STAGES; ++stage)
    init_barrier(&bulk_state.barriers[warp][stage], 1);
  bulk_state.num_loads[warp] = 0;
  publish_barriers();
}

EP_FN void* stage_of(int warp, u32 load) {
  const u32 index = warp * NUM_STAGES + load % NUM_STAGES;
  return reinterpret_cast<char*>(bulk_stages) + index * STAGE_BYTES;
}

EP_FN u32 chunk_bytes(u32 num_bytes, u32 begin) {
  const u32 left = num_bytes - begin;
  return left < STAGE_BYTES ? left : STAGE_BYTES;
}

// Run by lane 0. Loads run NUM_STAGES ahead of stores.
EP_FN i32 copy_row_by_bulk(i64 target, i64 source, u32 num_bytes) {
  const int warp = thread_index() / LANES;
  u64* barriers = bulk_state.barriers[warp];
  const u32 first = bulk_state.num_loads[warp];
  const u32 num_chunks = (num_bytes + STAGE_BYTES - 1) / STAGE_BYTES;
  i32 cause = 0;
#pragma unroll 1
  for (u32 step = 0; step < num_chunks + NUM_STAGES - 1; ++step) {
    if (step < num_chunks) {
      const u32 load = first + step;
      const u32 begin = step * STAGE_BYTES, size = chunk_bytes(num_bytes, begin);
      // The stage's last store must have been read; within a row that is the latest one.
      if (step == 0)
        bulk_wait_read<NUM_STAGES - 1>();
      else
        bulk_wait_read<0>();
      u64* barrier = &barriers[load % NUM_STAGES];
      expect_bytes(barrier, size);
      bulk_load(stage_of(warp, load), source + begin, size, barrier);
    }
    if (step >= NUM_STAGES - 1) {
      const u32 chunk = step - (NUM_STAGES - 1), load = first + chunk;
      Patience patience;
      while (!try_barrier(&barriers[load % NUM_STAGES], load / NUM_STAGES & 1))
        if ((cause = patience.spent()) != 0) return cause;
      const u32 begin = chunk * STAGE_BYTES;
      bulk_store(target + begin, stage_of(warp, load), chunk_bytes(num_bytes, begin));
      bulk_commit();
    }
  }
  bulk_state.num_loads[warp] = first + num_chunks;
  return 0;
}

EP_COLD_FN void copy_row_bulk(i64 rank, i64 offset, i64 source, i64 num_bytes) {
  sync_warp();
  i32 cause = 0;
  if (lane_id() == 0) {
    fence_to_bulk();
    cause = copy_row_by_bulk(at(rank, offset), source, static_cast<u32>(num_bytes));
  }
  leave_if(cause, NO_FLAG, 0, num_bytes, 0);
}

// Waits until the bulk copies of this warp have been written; part of every release.
EP_FN void finish_bulk() {
  if (lane_id() == 0) bulk_wait_all();
}

#else

EP_FN void init_bulk() {}
EP_COLD_FN void copy_row_bulk(i64 rank, i64 offset, i64 source, i64 num_bytes) {
  copy_row(rank, offset, source, num_bytes);
}
EP_FN void finish_bulk() {}

#endif

}  // namespace ep
