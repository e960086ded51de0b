// Stages: shared memory that bulk loads of one warp fill and its lanes empty, in a ring.
//
// A warp has an area to itself, so no warp waits for another: WARP_BYTES for stages, an mbarrier for
// each stage and records of what is in them. A load ends one phase of its stage's barrier. Whoever
// reads a stage asks for its next load only when it has been read.
//
// Bytes in flight: an SM that copies 80 GB/s (comms/fabrics/sm90.toml, bulk.copy_gbs) from memory
// 900 ns away (bulk.load_ns) needs 72 KB of loads under way, and one that pulls 60 GB/s from peers
// 900 + 750 ns away needs 99 KB. 16 warps of 13 KiB have 210 KiB.
#pragma once

#include "waits.cuh"

namespace ep {

constexpr int NUM_WARPS = EP_NUM_WARPS;

// A line of a file as reports have it; kernels.isa.cxx_kernel gives files their tags.
EP_FN constexpr i64 place_of(i64 tag, i64 line) { return tag << 20 | line; }
#define EP_HERE ep::place_of(EP_KERNEL_TAG, __LINE__)

#ifdef EP_HAS_BULK

EP_FN constexpr u32 smaller(u32 a, u32 b) { return a < b ? a : b; }

constexpr int MAX_STAGES = 12;
constexpr u32 BARRIERS_BYTES = 128, RECORDS_BYTES = 384;
// kernels.isa.cxx_kernel says how much a launch gives each warp.
constexpr u32 AREA_BYTES = EP_AREA_BYTES;
constexpr u32 WARP_BYTES = AREA_BYTES - BARRIERS_BYTES - RECORDS_BYTES;
static_assert(WARP_BYTES % 384 == 0, "three stages of whole lines");
EP_DYNAMIC_SHARED(Vec, warp_areas);

EP_FN char* warp_memory() {
  return reinterpret_cast<char*>(warp_areas) + AREA_BYTES * warp_index();
}
template <class Record>
EP_FN Record* warp_records() {
  return reinterpret_cast<Record*>(warp_memory() + WARP_BYTES + BARRIERS_BYTES);
}

// A place in a ring of `COUNT` stages, and the parity of the phase that it is in.
template <int COUNT>
struct RingPlace {
  u32 stage = 0, parity = 0;
  EP_FN void advance() {
    if (++stage == COUNT) stage = 0, parity ^= 1;
  }
};

template <int COUNT, u32 BYTES>
struct Stages {
  static_assert(COUNT <= MAX_STAGES && COUNT * BYTES <= WARP_BYTES && BYTES % 128 == 0);
  using Place = RingPlace<COUNT>;
  char* memory;

  // What lanes have written to the stages so far comes before what loads write there.
  EP_FN void init() {
    memory = warp_memory();
    sync_warp();
    if (lane_id() == 0) {
#pragma unroll 1
      for (u32 stage = 0; stage < COUNT; ++stage) init_barrier(barrier({stage, 0}), 1);
      publish_barriers();
      fence_stages_to_bulk();
    }
    sync_warp();
  }

  EP_FN char* at_place(Place place) const { return memory + place.stage * BYTES; }
  EP_FN u64* barrier(Place place) const {
    return reinterpret_cast<u64*>(memory + WARP_BYTES) + place.stage;
  }

  // One lane asks.
  EP_FN void load(Place place, i64 source, u32 num_bytes) const {
    expect_bytes(barrier(place), num_bytes);
    bulk_load(at_place(place), source, num_bytes, barrier(place));
  }

  // All lanes wait for the load of a place.
  EP_FN void await(Place place) const {
    if (ballot(!try_barrier(barrier(place), place.parity)) == 0) return;
    Patience patience;
    while (ballot(!try_barrier(barrier(place), place.parity)) != 0)
      leave_if(lane_id() == 0 ? patience.spent() : 0, NO_FLAG, 0, BYTES,
               place_of(EP_STAGES_TAG, __LINE__));
  }

  // One lane waits; returns why it must not wait longer, else 0.
  EP_FN i64 await_alone(Place place) const {
    if (try_barrier(barrier(place), place.parity)) return 0;
    i64 cause = 0;
    Patience patience;
    while (!try_barrier(barrier(place), place.parity) && (cause = patience.spent()) == 0) {
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
