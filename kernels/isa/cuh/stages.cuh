// Stages: shared memory that bulk loads of one warp fill and its lanes empty, in a ring.
//
// A warp has WARP_BYTES to itself and an mbarrier for each stage, so no warp waits for another and a
// warp that has left blocks nobody. A load ends one phase of its stage's barrier. Whoever reads a
// stage asks for its next load only when it has been read.
//
// Bytes in flight: an SM that copies 80 GB/s (comms/fabrics/sm90.toml, bulk.copy_gbs) from memory
// 900 ns away (bulk.load_ns) needs 72 KB of loads under way, and one that pulls 60 GB/s from peers
// 900 + 750 ns away needs 99 KB. 16 warps of 12 KiB have 192 KiB.
#pragma once

#include "waits.cuh"

namespace ep {

constexpr int NUM_WARPS = EP_NUM_WARPS;

#ifdef EP_HAS_BULK

EP_FN constexpr u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
// kernels.isa.cxx_kernel says how much, a multiple of three stages of whole lines.
constexpr u32 WARP_BYTES = EP_WARP_BYTES;
constexpr int MAX_STAGES = 12;

EP_SHARED u64 stage_barriers[NUM_WARPS][MAX_STAGES];
// WARP_BYTES for each warp; a launch gives as much dynamic shared memory.
EP_DYNAMIC_SHARED(Vec, stage_memory);

// A place in a ring of `COUNT` stages, and the parity of the phase that it is in.
template <int COUNT>
struct RingPlace {
  u32 stage = 0, parity = 0;
  EP_FN void advance() {
    if (++stage == COUNT) stage = 0, parity ^= 1;
  }
};

EP_FN void* warp_memory() {
  return reinterpret_cast<char*>(stage_memory) + WARP_BYTES * warp_index();
}

template <int COUNT, u32 BYTES>
struct Stages {
  static_assert(COUNT <= MAX_STAGES && COUNT * BYTES <= WARP_BYTES && BYTES % 128 == 0);
  using Place = RingPlace<COUNT>;
  u64* barriers;
  char* memory;

  // What lanes have written to the stages so far comes before what loads write there.
  EP_FN void init() {
    barriers = stage_barriers[warp_index()];
    memory = static_cast<char*>(warp_memory());
    sync_warp();
    if (lane_id() == 0) {
#pragma unroll 1
      for (int stage = 0; stage < COUNT; ++stage) init_barrier(&barriers[stage], 1);
      publish_barriers();
      fence_to_bulk();
    }
    sync_warp();
  }

  EP_FN char* at_place(Place place) const { return memory + place.stage * BYTES; }

  // One lane asks.
  EP_FN void load(Place place, i64 source, u32 num_bytes) const {
    u64* barrier = &barriers[place.stage];
    expect_bytes(barrier, num_bytes);
    bulk_load(at_place(place), source, num_bytes, barrier);
  }

  // Waits for the load of a place; returns why the wait ended without it, else 0.
  EP_FN i64 await(Place place) const {
    i64 cause = 0;
    Patience patience;
    while (!try_barrier(&barriers[place.stage], place.parity) && (cause = patience.spent()) == 0) {
    }
    return cause;
  }
};

#endif

// Chunks of equal size, give or take 16 bytes, that a row is cut into to pass through stages.
EP_FN u32 chunk_of(u32 row_bytes, u32 stage_bytes) {
  const u32 num_chunks = (row_bytes + stage_bytes - 1) / stage_bytes;
  return ((row_bytes + num_chunks - 1) / num_chunks + 15) / 16 * 16;
}

}  // namespace ep
