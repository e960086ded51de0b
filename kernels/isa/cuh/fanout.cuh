// Consecutive rows that are read once and written to any number of ranks.
//
// Lane r writes to rank r. With bulk copies the rows of a warp pass through NUM_STAGES stages: two
// loads are under way while the stage before them is written to all ranks. Loads need no routing,
// so they begin before it is known. Without bulk copies a lane keeps IN_FLIGHT loads outstanding and
// stores each vector to all ranks.
#pragma once

#include "rows.cuh"
#include "stages.cuh"

namespace ep {

#ifdef EP_HAS_BULK

class Fanout {
  static constexpr int NUM_STAGES = 3;
  static constexpr u32 STAGE_BYTES = WARP_BYTES / NUM_STAGES;
  using Ring = Stages<NUM_STAGES, STAGE_BYTES>;

  Ring ring_;
  Ring::Place loading_, sending_;
  i64 source_, end_;
  u32 row_bytes_, chunk_bytes_, begin_ = 0;  // `begin_`: of the next load in its row

  EP_FN u32 size_at(u32 begin) const {
    return smaller(chunk_bytes_, row_bytes_ - begin);
  }

  EP_FN void load_next() {
    if (source_ == end_) return;
    const u32 size = size_at(begin_);
    if (is_elected()) {
      // Other lanes have seen that their stores have read the stage.
      fence_stages_to_bulk();
      ring_.load(loading_, source_, size);
    }
    loading_.advance();
    source_ += size;
    begin_ = begin_ + size == row_bytes_ ? 0 : begin_ + size;
  }

 public:
  // Begins to read rows that lie together.
  EP_FN void begin(i64 source, i64 num_rows, i64 row_bytes) {
    source_ = source;
    end_ = source + num_rows * row_bytes;
    row_bytes_ = static_cast<u32>(row_bytes);
    chunk_bytes_ = chunk_of(row_bytes_, STAGE_BYTES);
    ring_.init();
    for (int load = 0; load < NUM_STAGES - 1; ++load) load_next();
  }

  // Orders what the block has acquired before what is written from now on.
  EP_FN void acquired() { fence_to_bulk(); }

  // Writes the next row to `target` of each lane that `takes` it.
  EP_FN void send(bool takes, i64 target) {
#pragma unroll 1
    for (u32 begin = 0; begin < row_bytes_; begin += chunk_bytes_) {
      ring_.await(sending_);
      if (takes) bulk_store(target + begin, ring_.at_place(sending_), size_at(begin));
      bulk_commit();
      sending_.advance();
      // The stage before has been read: the next load fills it.
      bulk_wait_read<1>();
      sync_warp();
      load_next();
    }
  }

  // Waits until this lane's rows have been written.
  EP_FN void finish() { bulk_wait_all(); }
};

#else

class Fanout {
  i64 source_, row_bytes_;

 public:
  EP_FN void begin(i64 source, i64 num_rows, i64 row_bytes) {
    source_ = source, row_bytes_ = row_bytes;
  }

  EP_FN void acquired() {}

  EP_FN void send(bool takes, i64 target) {
    const u32 takers = ballot(takes);
    const i64 first = VEC_BYTES * lane_id();
#pragma unroll 1
    for (i64 round = first; round - first < row_bytes_; round += ROUND_BYTES) {
      Vec values[IN_FLIGHT];
      load_steps(values, source_ + round, row_bytes_ - round);
#pragma unroll 1
      for (u32 left = takers; left != 0; left &= left - 1)
        store_steps(values, shuffle(target, first_bit(left)) + round, row_bytes_ - round);
    }
    source_ += row_bytes_;
  }

  EP_FN void finish() {}
};

#endif

}  // namespace ep
