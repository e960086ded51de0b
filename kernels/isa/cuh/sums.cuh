// Lists of BF16 rows that a warp adds in FP32, in order, and writes as BF16.
//
// With bulk copies rows are cut into pieces of PIECE_BYTES, which pass through all of the warp's
// stages: each piece that has been added makes room for the load of another, up to several tokens
// ahead. A record in shared memory says what a stage's piece is, so that whoever adds needs to know
// nothing of lists. Without bulk copies rows are added from registers (rows.cuh).
//
// Lists come from a `Source`:
//   bool at_end() const            no list is left
//   bool take(Rows& rows)          the next list, or false while its rows are not there
#pragma once

#include "rows.cuh"
#include "stages.cuh"

namespace ep {

// A list of rows: lane i knows row i, if `lanes` has it. The sum goes to `out`.
struct Rows {
  u32 lanes;
  i64 address;
  float weight;
  i64 out;
};

// Waits for the next list. The reports name no flag: there are several.
template <class Source>
EP_FN bool await_rows(Source& source, Rows& rows) {
  if (source.at_end()) return false;
  Patience patience;
  while (!source.take(rows))
    leave_if(lane_id() == 0 ? patience.spent() : 0, NO_FLAG, 0, 0, 0);
  return true;
}

EP_FN void write_zeros(i64 out, i64 begin, i64 end) {
  for (i64 place = begin + VEC_BYTES * lane_id(); place < end; place += STEP_BYTES)
    store_row(out + place, {});
}

#ifdef EP_HAS_BULK

// Registers of a block of more warps do not hold the sums of four steps.
constexpr int PIECE_STEPS = NUM_WARPS <= 16 ? 4 : 2;
constexpr u32 PIECE_BYTES = PIECE_STEPS * STEP_BYTES;
constexpr int NUM_PIECES = smaller(WARP_BYTES / PIECE_BYTES, MAX_STAGES);

// What the piece in a stage is; `num_bytes` has bits for the first and the last row of a list.
struct PieceRecord {
  i64 out;
  float weight;
  u32 num_bytes;
};
constexpr u32 FIRST_ROW = 1u << 30, LAST_ROW = 1u << 31, SIZE_MASK = FIRST_ROW - 1;
static_assert(NUM_PIECES <= MAX_STAGES && sizeof(PieceRecord) * NUM_PIECES <= RECORDS_BYTES);

template <bool WEIGHTED>
EP_FN void add_piece(Sums (&sums)[PIECE_STEPS], const char* stage, float weight, bool is_first) {
  const Vec* vecs = reinterpret_cast<const Vec*>(stage) + lane_id();
#pragma unroll
  for (int step = 0; step < PIECE_STEPS; ++step)
    // Behind the end of a short piece lies what nobody writes out.
    add_vec<WEIGHTED>(sums[step], vecs[step * LANES], weight, is_first);
}

// Adds the lists of a source over bytes `begin` to `end` of their rows.
template <bool WEIGHTED, class Source>
EP_FN void add_lists(Source& source, u32 begin, u32 end) {
  using Ring = Stages<NUM_PIECES, PIECE_BYTES>;
  Ring ring;
  typename Ring::Place loading, adding;
  ring.init();
  PieceRecord* records = warp_records<PieceRecord>();
  Sums sums[PIECE_STEPS];
  Rows rows = {};
  u32 left = 0, column = end;  // of the list that is being loaded
  int num_loaded = 0;
  while (true) {
    while (num_loaded < NUM_PIECES) {
      if (column >= end) {
        if (source.at_end()) break;
        if (num_loaded == 0)
          await_rows(source, rows);
        else if (!source.take(rows))
          break;
        if (rows.lanes == 0 || begin == end) {
          write_zeros(rows.out, begin, end);
          continue;
        }
        column = begin, left = rows.lanes;
        // Whoever has seen that the rows are there, the copy engine reads them.
        sync_warp();
        if (lane_id() == 0) fence_to_bulk();
      }
      const int row = first_bit(left);
      const i64 address = shuffle(rows.address, row) + column;
      const float weight = WEIGHTED ? shuffle(rows.weight, row) : 0.f;
      if (lane_id() == 0) {
        const u32 size = smaller(PIECE_BYTES, end - column);
        const u32 first = left == rows.lanes ? FIRST_ROW : 0;
        const u32 last = (left & (left - 1)) == 0 ? LAST_ROW : 0;
        records[loading.stage] = {rows.out + column, weight, size | first | last};
        // The stage has been read.
        fence_stages_to_bulk();
        ring.load(loading, address, size);
      }
      loading.advance();
      ++num_loaded;
      left &= left - 1;
      if (left == 0) left = rows.lanes, column += PIECE_BYTES;
    }
    if (num_loaded == 0) return;
    sync_warp();
    const PieceRecord record = records[adding.stage];
    ring.await(adding);
    if (record.num_bytes & FIRST_ROW)
      add_piece<WEIGHTED>(sums, ring.at_place(adding), record.weight, true);
    else
      add_piece<WEIGHTED>(sums, ring.at_place(adding), record.weight, false);
    if (record.num_bytes & LAST_ROW) {
      Vec rounded[PIECE_STEPS];
#pragma unroll
      for (int step = 0; step < PIECE_STEPS; ++step) rounded[step] = round_sums(sums[step]);
      const i64 first = VEC_BYTES * lane_id();
      store_steps(rounded, record.out + first, (record.num_bytes & SIZE_MASK) - first);
    }
    adding.advance();
    --num_loaded;
    sync_warp();
  }
}

#else

template <int ROWS, int COLUMNS, bool WEIGHTED>
EP_FN void add_list(const Rows& rows, int num_rows, u32 begin, u32 end) {
  static_assert(ROWS * COLUMNS == IN_FLIGHT);
#pragma unroll 1
  for (u32 round = begin; round < end; round += COLUMNS * STEP_BYTES) {
    const i64 column = round + VEC_BYTES * lane_id(), left = end - column;
    Sums sums[COLUMNS] = {};
#pragma unroll 1
    for (int batch = 0; batch < num_rows; batch += ROWS) {
      const int mine = (batch + lane_id() % ROWS) % LANES;
      const ::ep::Source one = {shuffle(rows.address, mine), shuffle(rows.weight, mine)};
      add_rows<ROWS, COLUMNS, WEIGHTED>(sums, one, batch, num_rows, column, left);
    }
    Vec rounded[COLUMNS];
#pragma unroll
    for (int step = 0; step < COLUMNS; ++step) rounded[step] = round_sums(sums[step]);
    store_steps(rounded, rows.out + column, left);
  }
}

// Moves what lanes know of rows to the first lanes.
EP_FN int compact(Rows& rows) {
  int num_rows = 0, from = lane_id();
  for (u32 left = rows.lanes; left != 0; left &= left - 1, ++num_rows)
    if (lane_id() == num_rows) from = first_bit(left);
  rows.address = shuffle(rows.address, from);
  rows.weight = shuffle(rows.weight, from);
  return num_rows;
}

template <bool WEIGHTED, class Source>
EP_FN void add_lists(Source& source, u32 begin, u32 end) {
  Rows rows;
  while (await_rows(source, rows)) {
    sync_warp();
    const int num_rows = compact(rows);
    if (num_rows == 0)
      write_zeros(rows.out, begin, end);
    else if (num_rows <= IN_FLIGHT / 4)
      add_list<IN_FLIGHT / 4, 4, WEIGHTED>(rows, num_rows, begin, end);
    else if (num_rows <= IN_FLIGHT / 2)
      add_list<IN_FLIGHT / 2, 2, WEIGHTED>(rows, num_rows, begin, end);
    else
      add_list<IN_FLIGHT, 1, WEIGHTED>(rows, num_rows, begin, end);
  }
}

#endif

}  // namespace ep
