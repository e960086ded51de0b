// Rows: copies by loads and stores of the whole warp, and sums of BF16 rows in FP32.
//
// A lane moves 16 bytes at a time and keeps IN_FLIGHT loads outstanding: a warp has 4 KiB in flight,
// which is what comms/fabrics/sm90.toml says of `ldst`, or 2 KiB where a block has so many warps that
// registers do not suffice.
#pragma once

#include "machine.cuh"

namespace ep {

constexpr int VEC_BYTES = 16;
#ifdef EP_MANY_WARPS
constexpr int IN_FLIGHT = 4;
#else
constexpr int IN_FLIGHT = 8;
#endif
// Bytes that a warp's lanes move by one access each, and from one of a lane's to its next.
constexpr int STEP_BYTES = VEC_BYTES * LANES;
constexpr int ROUND_BYTES = STEP_BYTES * IN_FLIGHT;

// Loads a lane's STEPS vectors, as far as they lie before `left` bytes; zeros stand for the rest.
template <int STEPS, int STEP = 0>
EP_FN void load_steps(Vec (&values)[STEPS], i64 source, i32 left) {
  if constexpr (STEP < STEPS) {
    values[STEP] = load_row_if<STEP * STEP_BYTES>(left, source);
    load_steps<STEPS, STEP + 1>(values, source, left);
  }
}
template <int STEPS, int STEP = 0>
EP_FN void store_steps(const Vec (&values)[STEPS], i64 target, i32 left) {
  if constexpr (STEP < STEPS) {
    store_row_if<STEP * STEP_BYTES>(left, target, values[STEP]);
    store_steps<STEPS, STEP + 1>(values, target, left);
  }
}

EP_FN void copy_vecs(i64 target, i64 source, i64 num_bytes) {
  const i32 first = VEC_BYTES * read_lane_id();
  Vec values[IN_FLIGHT];
  target += first, source += first;
#pragma unroll 1
  for (u32 round = static_cast<u32>(num_bytes / ROUND_BYTES); round > 0; --round) {
    load_steps(values, source, ROUND_BYTES);
    store_steps(values, target, ROUND_BYTES);
    target += ROUND_BYTES, source += ROUND_BYTES;
  }
  const i32 left = static_cast<i32>(num_bytes % ROUND_BYTES);
  if (left == 0) return;
  load_steps(values, source, left - first);
  store_steps(values, target, left - first);
}

// Copies rows, a multiple of 16 bytes; the source may be changed when all lanes are here again.
EP_FN void copy_row(i64 rank, i64 offset, i64 source, i64 num_bytes) {
  sync_warp();
  copy_vecs(at(rank, offset), source, num_bytes);
  sync_warp();
}

// Copies bytes of any number and alignment; by 16 or 4 at a time where all of them allow it.
EP_COLD_FN void copy_bytes(i64 rank, i64 offset, i64 source, i64 num_bytes) {
  sync_warp();
  const i64 target = at(rank, offset);
  const i64 all = target | source | num_bytes;
  if (all % VEC_BYTES == 0) {
    copy_vecs(target, source, num_bytes);
  } else if (all % 4 == 0) {
#pragma unroll 1
    for (i64 at_byte = 4 * lane_id(); at_byte < num_bytes; at_byte += 4 * LANES)
      store_i32(target + at_byte, load_i32(source + at_byte));
  } else {
#pragma unroll 1
    for (i64 at_byte = lane_id(); at_byte < num_bytes; at_byte += LANES)
      store_byte(target + at_byte, load_byte(source + at_byte));
  }
  sync_warp();
}

// Rows to add, LANES at most: `ranks` and `rows` are addresses of int32 lists, `ranks` 0 for the own
// rank.
struct RowList {
  i64 num_rows, ranks, rows, base, row_bytes;
  i64 weights;  // address of float32 weights, 0 for none
};

EP_FN i64 row_address(const RowList& list, i32 index) {
  const i64 rank = list.ranks == 0 ? own_rank() : load_i32(list.ranks + 4ll * index);
  return at(rank, list.base + load_i32(list.rows + 4ll * index) * list.row_bytes);
}

// Eight elements of a row in FP32; the low half of a word comes first in memory.
struct Sums {
  float values[8];
};

// Adds a vector if it is wanted; the first one starts the sums, and is always wanted.
template <bool WEIGHTED>
EP_FN void add_vec(Sums& sums, Vec vec, float weight, bool is_first, bool wanted) {
  const u32 words[4] = {vec.x, vec.y, vec.z, vec.w};
#pragma unroll
  for (int index = 0; index < 8; ++index) {
    const u32 word = words[index / 2];
    const float value = as_float(index % 2 ? word & 0xffff0000u : word << 16);
    float& sum = sums.values[index];
    if (is_first)
      sum = WEIGHTED ? multiply_f32(weight, value) : value;
    else if (WEIGHTED)
      fma_f32_if(wanted, weight, value, sum);
    else
      add_f32_if(wanted, sum, value);
  }
}

EP_FN Vec round_sums(const Sums& sums) {
  const float* v = sums.values;
  return {to_bf16x2(v[0], v[1]), to_bf16x2(v[2], v[3]), to_bf16x2(v[4], v[5]),
          to_bf16x2(v[6], v[7])};
}

// What lane i knows of row i.
struct LaneRow {
  i64 address;
  float weight;
};

template <bool WEIGHTED>
EP_FN LaneRow source_of(const RowList& list, i32 index) {
  LaneRow source = {};
  if (index < static_cast<i32>(list.num_rows)) {
    source.address = row_address(list, index);
    if (WEIGHTED) source.weight = as_float(load_i32(list.weights + 4ll * index));
  }
  return source;
}

// Loads COLUMNS vectors of each of up to ROWS rows from `first` on. What a list or a lane does not
// have is loaded from one place of this GPU, for nothing: a sum needs all its registers, and of
// predicated loads in a loop the compiler keeps the registers of the round before.
template <int ROWS, int COLUMNS>
EP_FN void load_rows(Vec (&values)[ROWS][COLUMNS], LaneRow source, int first, int num_rows,
                     i32 column, i32 left) {
  // All shuffles come first: a load does not begin before the shuffles above it have ended.
  i64 addresses[ROWS];
#pragma unroll
  for (int row = 0; row < ROWS; ++row)
    addresses[row] = shuffle(source.address, first + row) + static_cast<u32>(column);
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
#pragma unroll
    for (int step = 0; step < COLUMNS; ++step) {
      const bool wanted = first + row < num_rows && step * STEP_BYTES < left;
      const i64 address = addresses[row] + step * STEP_BYTES;
      values[row][step] = load_row(wanted ? address : ep_machine.report);
    }
  }
}

// Adds a vector of each of up to ROWS rows from `first` on, of which there is one.
template <bool IS_FIRST, int ROWS, int COLUMNS, bool WEIGHTED>
EP_FN void add_rows(Sums& sums, const Vec (&values)[ROWS][COLUMNS], int step, LaneRow source,
                    int first, int num_rows) {
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    const float weight = WEIGHTED ? shuffle(source.weight, first + row) : 0.f;
    const bool wanted = row == 0 || first + row < num_rows;
    add_vec<WEIGHTED>(sums, values[row][step], weight, IS_FIRST && row == 0, wanted);
  }
}

// Adds rows, one at least, over bytes `begin` to `end`, ROWS at a time; only sums of more than
// IN_FLIGHT rows take several times. All loads come before the first addition, then one column
// after the other is added and stored, so that few sums are live. Addresses and weights come by
// shuffles, which leaves registers for loads in flight.
template <int ROWS, int COLUMNS, bool WEIGHTED>
EP_FN void add_by(i64 out, LaneRow source, int num_rows, i32 begin, i32 end) {
  static_assert(ROWS * COLUMNS == IN_FLIGHT);
  const i32 offset = VEC_BYTES * read_lane_id();
#pragma unroll 1
  for (i32 column = begin + offset; column < end + offset; column += COLUMNS * STEP_BYTES) {
    const i32 left = end - column;
    Vec values[ROWS][COLUMNS];
    load_rows(values, source, 0, num_rows, column, left);
#pragma unroll
    for (int step = 0; step < COLUMNS; ++step) {
      Sums sums;
      add_rows<true, ROWS, COLUMNS, WEIGHTED>(sums, values, step, source, 0, num_rows);
      if (ROWS == IN_FLIGHT) {
#pragma unroll 1
        for (int first = ROWS; first < num_rows; first += ROWS) {
          load_rows(values, source, first, num_rows, column, left);
          add_rows<false, ROWS, COLUMNS, WEIGHTED>(sums, values, step, source, first, num_rows);
        }
      }
      const i32 at_column = column + step * STEP_BYTES;
      store_row_if<0>(left - step * STEP_BYTES, out + static_cast<u32>(at_column),
                      round_sums(sums));
    }
  }
}

// Writes what a sum of no rows is.
EP_FN void clear_columns(i64 out, i32 begin, i32 end) {
#pragma unroll 1
  for (i32 column = begin + VEC_BYTES * read_lane_id(); column < end; column += STEP_BYTES)
    store_row(out + static_cast<u32>(column), {});
}

// Adds rows over bytes `begin` to `end`; lane i knows row i.
template <bool WEIGHTED>
EP_FN void add_columns(i64 out, LaneRow source, int num_rows, i32 begin, i32 end) {
  if (num_rows == 0)
    clear_columns(out, begin, end);
  else if (num_rows <= IN_FLIGHT / 4)
    add_by<IN_FLIGHT / 4, 4, WEIGHTED>(out, source, num_rows, begin, end);
  else if (num_rows <= IN_FLIGHT / 2)
    add_by<IN_FLIGHT / 2, 2, WEIGHTED>(out, source, num_rows, begin, end);
  else
    add_by<IN_FLIGHT, 1, WEIGHTED>(out, source, num_rows, begin, end);
}

template <bool WEIGHTED>
EP_FN void reduce_columns(i64 out, const RowList& list, i32 begin, i32 end) {
  sync_warp();
  const LaneRow source = source_of<WEIGHTED>(list, read_lane_id());
  add_columns<WEIGHTED>(out, source, static_cast<int>(list.num_rows), begin, end);
  sync_warp();
}

// Where part `number` of a row's columns begins: a multiple of 32, or the end of the row.
EP_FN i32 part_begin(i32 row_bytes, i32 number, i32 num_parts) {
  return number == num_parts ? row_bytes : row_bytes / 32 * number / num_parts * 32;
}

}  // namespace ep
