// Lists of BF16 rows that a warp adds in FP32, in order, and writes as BF16.
//
// With bulk copies rows are cut into pieces of PIECE_BYTES, which pass through all of the warp's
// stages: as soon as a piece has been added, another is loaded into its stage, up to several tokens
// ahead. Lane i asks for the pieces of row i. A record in shared memory says where a list's columns go
// and how many rows they have, so that whoever adds needs to know nothing of lists. Without bulk
// copies rows are added from registers (rows.cuh).
//
// Lists come from a `Source`:
//   bool at_end() const                no list is left
//   bool take(Rows& rows, Late& late)  the next list, or false and why its rows are not there
#pragma once

#include "rows.cuh"
#include "stages.cuh"

namespace ep {

// A list of at most LANES rows: lane i knows row i. The sum goes to `out`.
struct Rows {
  int num_rows;
  i64 address;
  float weight;
  i64 out;
};

// A flag that tells of a row that is not there.
struct Late {
  i64 offset, seen, wanted;
};

// Whether this lane's row is late for any lane; tells which flag the first of those awaits.
EP_FN bool is_any_late(bool has_flag, i64 offset, i64 wanted, Late& late) {
  const i64 seen = has_flag ? load_polled(own(offset)) : wanted;
  const u32 lanes = ballot(seen < wanted);
  if (lanes == 0) {
    acquire_polled();
    return false;
  }
  const int one = first_bit(lanes);
  late = {shuffle(offset, one), shuffle(seen, one), shuffle(wanted, one)};
  return true;
}

// Leaves when the next list has been waited for too long.
EP_FN void give_up_if(Patience& patience, const Late& late) {
  leave_if(lane_id() == 0 ? patience.spent() : 0, late.offset, late.seen, late.wanted,
           place_of(EP_SUMS_TAG, __LINE__));
}

#ifdef EP_HAS_BULK

// As many sums as a lane has registers for: asking for a piece and awaiting it take 70 instructions,
// and adding 17 for each step.
constexpr int PIECE_STEPS = NUM_WARPS <= 12 ? 8 : 4;
// Steps that are not taken where a piece ends before them.
constexpr int STEPS_AT_ONCE = 4;
constexpr u32 PIECE_BYTES = PIECE_STEPS * STEP_BYTES;
constexpr int NUM_PIECES = smaller(WARP_BYTES / PIECE_BYTES, MAX_STAGES);

// Columns of a list whose rows are being loaded.
struct ListRecord {
  i64 out;
  u32 num_bytes;
  int num_rows;
};
// Lists that are being loaded have a piece in a stage each; one more is being added.
constexpr u32 NUM_LISTS = 16;
static_assert(NUM_PIECES < NUM_LISTS);
struct ListRecords {
  ListRecord lists[NUM_LISTS];
  float weights[MAX_STAGES];
};
static_assert(sizeof(ListRecords) <= RECORDS_BYTES);

// Loads the pieces of a source's lists, one after the other, and knows which is next.
template <bool WEIGHTED, class Source>
class PieceLoader {
  using Ring = Stages<NUM_PIECES, PIECE_BYTES>;

  Source& source_;
  u32 begin_, end_, column_;
  u32 num_bytes_ = 0, num_opened_ = 0;
  int row_ = 0, num_rows_ = 0;  // of the columns that are open
  i64 piece_ = 0;  // of this lane's row
  Rows rows_ = {};
  typename Ring::Place place_;

  // Goes on to the next columns, of the next list at the end of one; false when its rows are not
  // there, or when no list is left.
  EP_FN bool open(bool waits) {
    column_ += PIECE_BYTES;
    while (column_ >= end_) {
      column_ = end_;
      if (source_.at_end()) return false;
      Patience patience;
      Late late;
      while (!source_.take(rows_, late)) {
        if (!waits) return false;
        give_up_if(patience, late);
      }
      // Whoever has seen that the rows are there, the copy engine reads them.
      sync_warp();
      fence_to_bulk();
      if (rows_.num_rows == 0)
        clear_columns(rows_.out, begin_, end_);
      else
        column_ = begin_;
    }
    num_bytes_ = smaller(PIECE_BYTES, end_ - column_);
    piece_ = rows_.address + column_;
    row_ = 0, num_rows_ = rows_.num_rows;
    if (lane_id() == 0)
      records->lists[num_opened_ % NUM_LISTS] = {rows_.out + column_, num_bytes_, rows_.num_rows};
    ++num_opened_;
    return true;
  }

 public:
  Ring ring;
  ListRecords* records;

  EP_FN PieceLoader(Source& source, u32 begin, u32 end)
      : source_(source), begin_(begin), end_(end), column_(end) {
    ring.init();
    records = warp_records<ListRecords>();
  }

  // Loads the next piece into a stage that is free; false when there is none now.
  EP_FN bool load(bool waits) {
    if (row_ == num_rows_ && !open(waits)) return false;
    if (lane_id() == row_) {
      // The stage has been read.
      fence_stages_to_bulk();
      if (WEIGHTED) records->weights[place_.stage] = rows_.weight;
      ring.load(place_, piece_, num_bytes_);
    }
    place_.advance();
    ++row_;
    return true;
  }
};

template <bool WEIGHTED, bool IS_FIRST>
EP_FN void add_piece(Sums (&sums)[PIECE_STEPS], const char* stage, float weight, u32 num_bytes) {
  const Vec* vecs = reinterpret_cast<const Vec*>(stage) + lane_id();
#pragma unroll
  for (int first = 0; first < PIECE_STEPS; first += STEPS_AT_ONCE)
    if (first == 0 || num_bytes > first * STEP_BYTES)
#pragma unroll
      for (int step = first; step < first + STEPS_AT_ONCE; ++step)
        // Behind the end of a short piece lies what nobody writes out.
        add_vec<WEIGHTED>(sums[step], vecs[step * LANES], weight, IS_FIRST, true);
}

// Adds the lists of a source over bytes `begin` to `end` of their rows.
template <bool WEIGHTED, class Source>
EP_FN void add_lists(Source& source, u32 begin, u32 end) {
  if (begin == end) return;
  PieceLoader<WEIGHTED, Source> loader(source, begin, end);
  RingPlace<NUM_PIECES> place;
  int num_loaded = 0, row = 0;
  u32 num_added = 0;
  ListRecord list = {};
  Sums sums[PIECE_STEPS] = {};
#pragma unroll 1
  while (true) {
    while (num_loaded < NUM_PIECES && loader.load(num_loaded == 0)) ++num_loaded;
    if (num_loaded == 0) return;
    sync_warp();
    if (row == 0) list = loader.records->lists[num_added % NUM_LISTS];
    const float weight = WEIGHTED ? loader.records->weights[place.stage] : 0.f;
    loader.ring.await(place);
    const char* stage = loader.ring.at_place(place);
    if (row == 0)
      add_piece<WEIGHTED, true>(sums, stage, weight, list.num_bytes);
    else
      add_piece<WEIGHTED, false>(sums, stage, weight, list.num_bytes);
    place.advance();
    --num_loaded;
    sync_warp();
    if (++row < list.num_rows) continue;
    Vec rounded[PIECE_STEPS];
#pragma unroll
    for (int step = 0; step < PIECE_STEPS; ++step) rounded[step] = round_sums(sums[step]);
    const i64 first = VEC_BYTES * lane_id();
    store_steps(rounded, list.out + first, list.num_bytes - first);
    row = 0, ++num_added;
  }
}

#else

template <bool WEIGHTED, class Source>
EP_FN void add_lists(Source& source, u32 begin, u32 end) {
  Rows rows;
  while (!source.at_end()) {
    Patience patience;
    Late late;
    while (!source.take(rows, late)) give_up_if(patience, late);
    sync_warp();
    add_columns<WEIGHTED>(rows.out, {rows.address, rows.weight}, rows.num_rows, begin, end);
  }
}

#endif

}  // namespace ep
