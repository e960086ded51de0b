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

// Loads a lane's STEPS vectors, as far as they lie before `left` bytes. Zeros stand for the rest, so
// that registers of the round before need not be kept.
template <int STEPS, int STEP = 0>
EP_FN void load_steps(Vec (&values)[STEPS], i64 source, i64 left) {
  if constexpr (STEP < STEPS) {
    values[STEP] = {};
    if (STEP * STEP_BYTES < left) values[STEP] = load_row<STEP * STEP_BYTES>(source);
    load_steps<STEPS, STEP + 1>(values, source, left);
  }
}
template <int STEPS, int STEP = 0>
EP_FN void store_steps(const Vec (&values)[STEPS], i64 target, i64 left) {
  if constexpr (STEP < STEPS) {
    if (STEP * STEP_BYTES < left) store_row<STEP * STEP_BYTES>(target, values[STEP]);
    store_steps<STEPS, STEP + 1>(values, target, left);
  }
}

EP_FN void copy_vecs(i64 target, i64 source, i64 num_bytes) {
  const i64 first = VEC_BYTES * lane_id();
  Vec values[IN_FLIGHT];
  target += first, source += first;
  i64 left = num_bytes - first;
#pragma unroll 1
  for (i64 round = num_bytes / ROUND_BYTES; round > 0; --round) {
    load_steps(values, source, ROUND_BYTES);
    store_steps(values, target, ROUND_BYTES);
    target += ROUND_BYTES, source += ROUND_BYTES, left -= ROUND_BYTES;
  }
  if (num_bytes % ROUND_BYTES == 0) return;
  load_steps(values, source, left);
  store_steps(values, target, left);
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
    for (i64 at_byte = 4 * lane_id(); at_byte < num_bytes; at_byte += 4 * LANES)
      store_i32(target + at_byte, load_i32(source + at_byte));
  } else {
    for (i64 at_byte = lane_id(); at_byte < num_bytes; at_byte += LANES)
      store_byte(target + at_byte, load_byte(source + at_byte));
  }
  sync_warp();
}

// Rows to add: `ranks` and `rows` are addresses of int32 lists, `ranks` 0 for the own rank.
struct RowList {
  i64 num_rows, ranks, rows, base, row_bytes;
  i64 weights;  // address of float32 weights, 0 for none
};

EP_FN i64 row_address(const RowList& list, i64 index) {
  const i64 rank = list.ranks == 0 ? own_rank() : load_i32(list.ranks + 4 * index);
  return at(rank, list.base + load_i32(list.rows + 4 * index) * list.row_bytes);
}

// Eight elements of a row in FP32; the low half of a word comes first in memory.
struct Sums {
  float values[8];
};

template <bool WEIGHTED>
EP_FN void add_vec(Sums& sums, Vec vec, float weight, bool is_first) {
  const u32 words[4] = {vec.x, vec.y, vec.z, vec.w};
#pragma unroll
  for (int index = 0; index < 8; ++index) {
    const u32 word = words[index / 2];
    const float value = as_float(index % 2 ? word & 0xffff0000u : word << 16);
    float& sum = sums.values[index];
    if (WEIGHTED)
      sum = is_first ? multiply_f32(weight, value) : fma_f32(weight, value, sum);
    else
      sum = is_first ? value : add_f32(sum, value);
  }
}

EP_FN Vec round_sums(const Sums& sums) {
  const float* v = sums.values;
  return {to_bf16x2(v[0], v[1]), to_bf16x2(v[2], v[3]), to_bf16x2(v[4], v[5]),
          to_bf16x2(v[6], v[7])};
}

// What lane i knows of the i-th of ROWS rows from `batch` on.
struct Source {
  i64 address;
  float weight;
};

template <bool WEIGHTED>
EP_FN Source source_of(const RowList& list, i64 index) {
  Source source = {};
  if (index < list.num_rows) {
    source.address = row_address(list, index);
    if (WEIGHTED) source.weight = as_float(load_i32(list.weights + 4 * index));
  }
  return source;
}

// Adds up to ROWS rows from `batch` on to the sums of COLUMNS vectors, all loads before the first
// addition. Addresses come by shuffles, which leaves registers for loads in flight.
template <int ROWS, int COLUMNS, bool WEIGHTED>
EP_FN void add_rows(Sums (&sums)[COLUMNS], Source source, int batch, int num_rows, i64 column,
                    i64 left) {
  Vec values[ROWS][COLUMNS];
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    const i64 address = shuffle(source.address, row) + column;
    load_steps(values[row], address, batch + row < num_rows ? left : 0);
  }
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    const float weight = WEIGHTED ? shuffle(source.weight, row) : 0.f;
    if (batch + row < num_rows)
#pragma unroll
      for (int step = 0; step < COLUMNS; ++step)
        add_vec<WEIGHTED>(sums[step], values[row][step], weight, batch + row == 0);
  }
}

// Adds a list of rows over bytes `begin` to `end`, ROWS at a time; only lists of more than
// IN_FLIGHT rows take several times.
template <int ROWS, int COLUMNS, bool WEIGHTED>
EP_FN void reduce_by(i64 out, const RowList& list, i64 begin, i64 end) {
  static_assert(ROWS * COLUMNS == IN_FLIGHT);
  const int num_rows = static_cast<int>(list.num_rows), mine = lane_id() % ROWS;
  const Source source = source_of<WEIGHTED>(list, mine);
#pragma unroll 1
  for (i64 round = begin; round < end; round += COLUMNS * STEP_BYTES) {
    const i64 column = round + VEC_BYTES * lane_id(), left = end - column;
    Sums sums[COLUMNS] = {};
    add_rows<ROWS, COLUMNS, WEIGHTED>(sums, source, 0, num_rows, column, left);
    if (ROWS == IN_FLIGHT) {
#pragma unroll 1
      for (int batch = ROWS; batch < num_rows; batch += ROWS)
        add_rows<ROWS, COLUMNS, WEIGHTED>(sums, source_of<WEIGHTED>(list, batch + mine), batch,
                                          num_rows, column, left);
    }
    Vec rounded[COLUMNS];
#pragma unroll
    for (int step = 0; step < COLUMNS; ++step) rounded[step] = round_sums(sums[step]);
    store_steps(rounded, out + column, left);
  }
}

template <bool WEIGHTED>
EP_FN void reduce_columns(i64 out, const RowList& list, i64 begin, i64 end) {
  sync_warp();
  if (list.num_rows <= IN_FLIGHT / 4)
    reduce_by<IN_FLIGHT / 4, 4, WEIGHTED>(out, list, begin, end);
  else if (list.num_rows <= IN_FLIGHT / 2)
    reduce_by<IN_FLIGHT / 2, 2, WEIGHTED>(out, list, begin, end);
  else
    reduce_by<IN_FLIGHT, 1, WEIGHTED>(out, list, begin, end);
  sync_warp();
}

// Where part `number` of a row's columns begins: a multiple of 32, or the end of the row.
EP_FN i64 part_begin(i64 row_bytes, i64 number, i64 num_parts) {
  return number == num_parts ? row_bytes : row_bytes / 32 * number / num_parts * 32;
}

}  // namespace ep
