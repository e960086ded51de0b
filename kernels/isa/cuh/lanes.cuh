// Routing and counting, a lane for each selection, column or count.
//
// Tables are int32 in local memory. At most LANES selections a token: hosts refuse more.
#pragma once

#include "words.cuh"

namespace ep {

// A token's selections.
struct TopkRow {
  i64 idx, weights, num_topk, experts_per_rank, world_size;
};

constexpr i32 NO_RANK = 0x7fffffff;

EP_FN bool has_lane(i64 count) { return lane_id() < count; }
EP_FN u32 lanes_below() { return (1u << lane_id()) - 1; }

EP_FN i32 owner_of(i32 expert, i64 experts_per_rank) {
  return expert < 0 ? NO_RANK : expert / static_cast<i32>(experts_per_rank);
}

// The rank of this lane's selection, NO_RANK without one.
EP_FN i32 rank_of_lane(const TopkRow& topk) {
  const i32 expert = has_lane(topk.num_topk) ? load_i32(topk.idx + 4 * lane_id()) : -1;
  return owner_of(expert, topk.experts_per_rank);
}

EP_FN void localize(i64 rank, i64 idx, i64 weights, const TopkRow& topk) {
  if (has_lane(topk.num_topk)) {
    const i64 place = 4 * lane_id();
    const i32 expert = load_i32(topk.idx + place);
    const i32 first = static_cast<i32>(rank * topk.experts_per_rank);
    const bool owned = expert >= first && expert < first + topk.experts_per_rank;
    store_i32(idx + place, owned ? expert - first : -1);
    store_i32(weights + place, owned ? load_i32(topk.weights + place) : 0);
  }
  sync_warp();
}

// The distinct ranks of a token, ascending, and this rank's next row at each.
EP_FN i64 route(const TopkRow& topk, i64 cursor, i64 ranks, i64 rows) {
  sync_warp();
  const i32 rank = rank_of_lane(topk);
  const bool leads = first_bit(match(rank)) == lane_id() && rank != NO_RANK;
  const u32 leaders = ballot(leads);
  int place = 0;
#pragma unroll 1
  for (u32 left = leaders; left != 0; left &= left - 1)
    place += shuffle(rank, first_bit(left)) < rank;
  if (leads) {
    const i32 row = load_i32(cursor + 4 * rank);
    store_i32(ranks + 4 * place, rank);
    store_i32(rows + 4 * place, row);
    store_i32(cursor + 4 * rank, row + 1);
  }
  sync_warp();
  return count_bits(leaders);
}

// A token's next row at each of its experts, in the order of its selections.
EP_FN i64 route_experts(const TopkRow& topk, i64 cursor, i64 experts, i64 rows, i64 weights) {
  sync_warp();
  const bool has_one = has_lane(topk.num_topk);
  const i32 expert = has_one ? load_i32(topk.idx + 4 * lane_id()) : -1;
  const bool counts = expert >= 0;
  const u32 counting = ballot(counts), same = match(expert);
  i32 row = 0;
  if (counts) row = load_i32(cursor + 4 * expert) + count_bits(same & lanes_below());
  sync_warp();
  if (counts) {
    const i64 place = 4 * count_bits(counting & lanes_below());
    store_i32(experts + place, expert);
    store_i32(rows + place, row);
    store_i32(weights + place, load_i32(topk.weights + 4 * lane_id()));
    if ((same >> lane_id()) == 1u) store_i32(cursor + 4 * expert, row + 1);
  }
  sync_warp();
  return count_bits(counting);
}

EP_FN i64 rank_mask(const TopkRow& topk, i64 first_rank, i64 num_ranks) {
  sync_warp();
  const i32 rank = rank_of_lane(topk);
  const i64 place = rank - first_rank;
  const bool marks = rank != NO_RANK && place >= 0 && place < num_ranks;
  const u64 bit = marks ? 1ull << place : 0;
  const u32 low = or_lanes(static_cast<u32>(bit));
  const u32 high = num_ranks > 32 ? or_lanes(static_cast<u32>(bit >> 32)) : 0;
  return static_cast<i64>(static_cast<u64>(high) << 32 | low);
}

EP_COLD_FN void clear(i64 counts, i64 num_counts) {
  sync_warp();
#pragma unroll 1
  for (i64 index = lane_id(); index < num_counts; index += LANES) store_i32(counts + 4 * index, 0);
  sync_warp();
}

// A lane for each token: a rank counts once, whichever of its experts are selected.
EP_FN void count_ranks(const TopkRow& topk, i64 num_tokens, i64 counts) {
  clear(counts, topk.world_size);
#pragma unroll 1
  for (i64 token = lane_id(); token < num_tokens; token += LANES) {
    const i64 idx = topk.idx + 4 * topk.num_topk * token;
#pragma unroll 1
    for (i64 k = 0; k < topk.num_topk; ++k) {
      const i32 rank = owner_of(load_i32(idx + 4 * k), topk.experts_per_rank);
      bool is_new = rank != NO_RANK;
#pragma unroll 1
      for (i64 before = 0; is_new && before < k; ++before)
        is_new = owner_of(load_i32(idx + 4 * before), topk.experts_per_rank) != rank;
      if (is_new) add_i32(counts + 4 * rank, 1);
    }
  }
  sync_warp();
}

EP_FN void count_experts(const TopkRow& topk, i64 num_tokens, i64 counts) {
  clear(counts, topk.world_size * topk.experts_per_rank);
#pragma unroll 1
  for (i64 index = lane_id(); index < num_tokens * topk.num_topk; index += LANES) {
    const i32 expert = load_i32(topk.idx + 4 * index);
    if (expert >= 0) add_i32(counts + 4 * expert, 1);
  }
  sync_warp();
}

// The selections that one rank owns, in order, each with the number of earlier ones of its expert.
EP_FN i64 select_rank(const TopkRow& topk, i64 num_tokens, i64 rank, i64 entries, i64 counts) {
  clear(counts, topk.experts_per_rank);
  const i32 first = static_cast<i32>(rank * topk.experts_per_rank);
  const i64 total = num_tokens * topk.num_topk;
  i64 num_entries = 0;
#pragma unroll 1
  for (i64 begin = 0; begin < total; begin += LANES) {
    const i64 index = begin + lane_id();
    const i32 expert = index < total ? load_i32(topk.idx + 4 * index) : -1;
    const i32 local = expert - first;
    const bool owned = expert >= 0 && local >= 0 && local < topk.experts_per_rank;
    const u32 owning = ballot(owned), same = match(owned ? local : -1);
    i32 earlier = 0;
    if (owned) earlier = load_i32(counts + 4 * local) + count_bits(same & lanes_below());
    sync_warp();
    if (owned) {
      const i64 entry = entries + 16 * (num_entries + count_bits(owning & lanes_below()));
      store_i32(entry, static_cast<i32>(index));
      store_i32(entry + 4, load_i32(topk.weights + 4 * index));
      store_i32(entry + 8, local);
      store_i32(entry + 12, earlier);
      if ((same >> lane_id()) == 1u) store_i32(counts + 4 * local, earlier + 1);
    }
    sync_warp();
    num_entries += count_bits(owning);
  }
  return num_entries;
}

// A lane for each column; four rows are loaded before the first is added.
EP_COLD_FN void sum_rows(i64 matrix, i64 num_columns, i64 row_bytes, i64 num_rows, i64 initial,
                    i64 sums) {
  sync_warp();
#pragma unroll 1
  for (i64 column = lane_id(); column < num_columns; column += LANES) {
    i32 sum = initial == 0 ? 0 : load_i32(initial + 4 * column);
    i64 place = matrix + 4 * column;
    i64 row = 0;
#pragma unroll 1
    for (; row + 4 <= num_rows; row += 4, place += 4 * row_bytes) {
      const i32 a = load_i32(place), b = load_i32(place + row_bytes);
      const i32 c = load_i32(place + 2 * row_bytes), d = load_i32(place + 3 * row_bytes);
      sum += a + b + c + d;
    }
#pragma unroll 1
    for (; row < num_rows; ++row, place += row_bytes) sum += load_i32(place);
    store_i32(sums + 4 * column, sum);
  }
  sync_warp();
}

// Sums of the counts before each, and of all; counts are `stride` bytes apart.
EP_COLD_FN void scan(i64 counts, i64 stride, i64 num_counts, i64 begins) {
  sync_warp();
  i32 total = 0;
#pragma unroll 1
  for (i64 begin = 0; begin < num_counts; begin += LANES) {
    const i64 index = begin + lane_id();
    const i32 count = index < num_counts ? load_i32(counts + stride * index) : 0;
    i32 sum = count;
#pragma unroll 1
    for (int distance = 1; distance < LANES; distance *= 2) {
      const i32 before = shuffle_up(sum, distance);
      if (lane_id() >= distance) sum += before;
    }
    if (index < num_counts) store_i32(begins + 4 * index, total + sum - count);
    total += shuffle(sum, LANES - 1);
  }
  if (lane_id() == 0) store_i32(begins + 4 * num_counts, total);
  sync_warp();
}

}  // namespace ep
