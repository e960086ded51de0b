// Rows that a warp copies one after another, with flags that tell of them when they are there.
//
// With bulk copies a row passes through NUM_STAGES stages in chunks. One lane asks for LOADS_AHEAD
// loads before it stores the first of them, and fills a stage again when its store has read it. A
// flag is added to when the row's stores have been written, MOST_UNWRITTEN chunks later or at
// `finish`: the warp does not wait for acknowledgements over NVLink in between. What is still owed
// to a chunk is kept in shared memory. Without bulk copies every row is there when `add` returns.
#pragma once

#include "rows.cuh"
#include "stages.cuh"

namespace ep {

// Adds to a flag that tells of no row that is under way.
EP_FN void tell_now(i64 flag, i64 value) {
  sync_warp();
  if (lane_id() != 0) return;
  release_system();
  add_relaxed(flag, value);
}

#ifdef EP_HAS_BULK

// A chunk under way, and whether a flag tells of it and of all before it.
struct alignas(16) CopyRecord {
  i64 target;
  u32 num_bytes, tells;
};
struct alignas(16) CopyFlag {
  i64 address, value;
};
constexpr u32 NUM_RECORDS = 8;
struct CopyRecords {
  CopyRecord chunks[NUM_RECORDS];
  CopyFlag flags[NUM_RECORDS];
};
static_assert(sizeof(CopyRecords) <= RECORDS_BYTES);

template <bool TELLS>
class AnyCopies {
  static constexpr int NUM_STAGES = 3;
  static constexpr u32 STAGE_BYTES = WARP_BYTES / NUM_STAGES;
  static constexpr u32 LOADS_AHEAD = 2, MOST_UNWRITTEN = 4;
  // A record is not overwritten before it has been looked at.
  static_assert(LOADS_AHEAD + MOST_UNWRITTEN + 1 <= NUM_RECORDS);
  using Ring = Stages<NUM_STAGES, STAGE_BYTES>;

  Ring ring_;
  Ring::Place loading_, storing_;
  CopyRecords* records_;
  u32 num_loaded_ = 0, num_stored_ = 0, num_written_ = 0;  // chunks

  // The oldest chunk that was not known to be written is.
  EP_FN void tell_next() {
    const u32 place = num_written_++ % NUM_RECORDS;
    if (!TELLS || !records_->chunks[place].tells) return;
    const CopyFlag flag = records_->flags[place];
    release_system();
    add_relaxed(flag.address, flag.value);
  }

  EP_FN i64 store_next() {
    const i64 cause = ring_.await_alone(storing_);
    if (cause != 0) return cause;
    const CopyRecord record = records_->chunks[num_stored_ % NUM_RECORDS];
    bulk_store(record.target, ring_.at_place(storing_), record.num_bytes);
    bulk_commit();
    storing_.advance();
    if (++num_stored_ - num_written_ > MOST_UNWRITTEN) {
      bulk_wait<MOST_UNWRITTEN>();
      tell_next();
    }
    return 0;
  }

  EP_FN i64 load_next(i64 target, i64 source, u32 num_bytes) {
    if (num_loaded_ - num_stored_ == LOADS_AHEAD) {
      const i64 cause = store_next();
      if (cause != 0) return cause;
    }
    // The stage's last store is older than the NUM_STAGES - LOADS_AHEAD latest.
    bulk_wait_read<NUM_STAGES - LOADS_AHEAD>();
    records_->chunks[num_loaded_++ % NUM_RECORDS] = {target, num_bytes, 0};
    ring_.load(loading_, source, num_bytes);
    loading_.advance();
    return 0;
  }

  EP_FN i64 store_all() {
    while (num_stored_ != num_loaded_)
      if (const i64 cause = store_next(); cause != 0) return cause;
    bulk_wait_all();
    while (num_written_ != num_stored_) tell_next();
    return 0;
  }

 public:
  EP_FN void begin() {
    ring_.init();
    records_ = warp_records<CopyRecords>();
  }

  // Orders what this warp has acquired before the copies that follow.
  EP_FN void acquired() {
    sync_warp();
    if (is_elected()) fence_to_bulk();
  }

  // Orders what lanes have done to the stages before the copies that follow.
  EP_FN void stages_used() {
    sync_warp();
    if (is_elected()) fence_stages_to_bulk();
  }

  EP_FN void add(i64 target, i64 source, i64 num_bytes) {
    sync_warp();
    i64 cause = 0;
    if (is_elected()) {
      const u32 size = static_cast<u32>(num_bytes), chunk = chunk_of(size, STAGE_BYTES);
#pragma unroll 1
      for (u32 begin = 0; begin < size && cause == 0; begin += chunk)
        cause = load_next(target + begin, source + begin, smaller(chunk, size - begin));
    }
    leave_if(cause, NO_FLAG, 0, num_bytes, place_of(EP_COPIES_TAG, __LINE__));
  }

  // Adds to a flag after all rows so far, once after a row.
  EP_FN void tell(i64 flag, i64 value) {
    static_assert(TELLS);
    sync_warp();
    if (!is_elected()) return;
    const u32 place = (num_loaded_ - 1) % NUM_RECORDS;
    records_->flags[place] = {flag, value};
    records_->chunks[place].tells = 1;
  }

  EP_FN void finish() {
    sync_warp();
    leave_if(is_elected() ? store_all() : 0, NO_FLAG, 0, 0, place_of(EP_COPIES_TAG, __LINE__));
  }
};

#else

template <bool TELLS>
class AnyCopies {
 public:
  EP_FN void begin() {}
  EP_FN void acquired() {}
  EP_FN void stages_used() {}
  EP_FN void add(i64 target, i64 source, i64 num_bytes) {
    sync_warp();
    copy_vecs(target, source, num_bytes);
  }
  EP_FN void tell(i64 flag, i64 value) { tell_now(flag, value); }
  EP_FN void finish() {}
};

#endif

using Copies = AnyCopies<true>;
// Of which no flag tells.
using SilentCopies = AnyCopies<false>;

}  // namespace ep
