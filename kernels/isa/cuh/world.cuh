// A world of at most LANES ranks: lane r knows what concerns rank r, and acts towards it.
#pragma once

#include "division.cuh"
#include "lanes.cuh"
#include "waits.cuh"
#include "words.cuh"

namespace ep {

// A rank's place in a world, by the lane that stands for it.
struct Peer {
  bool exists, is_near;
};

EP_FN Peer peer_of_lane(i64 rank, i64 world_size, i64 ranks_per_node) {
  const u32 per_node = static_cast<u32>(ranks_per_node);
  return {lane_id() < world_size, lane_id() / per_node == static_cast<u32>(rank) / per_node};
}

// Sum of the values of the lanes before this one.
EP_FN i32 sum_before(i32 value) {
  i32 sum = value;
#pragma unroll
  for (int distance = 1; distance < LANES; distance *= 2) {
    const i32 before = shuffle_up(sum, distance);
    if (lane_id() >= distance) sum += before;
  }
  return sum - value;
}

// The sum of a column of an int32 matrix over its first rows, a lane for every 32nd row.
EP_FN i32 sum_column(i64 column, i64 row_bytes, i64 num_rows) {
  i32 sum = 0;
#pragma unroll 4
  for (i64 row = lane_id(); row < num_rows; row += LANES) sum += load_i32(column + row * row_bytes);
  return sum_lanes(sum);
}

// Where share `index` of `num_shares` even, contiguous shares begins.
EP_FN i64 share_begin(i64 total, i64 index, i64 num_shares) {
  return floor_div(total * index, num_shares);
}

// Which rank owns an expert, without a division: exact while num_experts is at most 2^15.
struct Owners {
  u32 factor;

  EP_FN explicit Owners(i64 experts_per_rank) {
    const u32 divisor = static_cast<u32>(experts_per_rank);
    factor = ((1u << 31) + divisor - 1) / divisor;
  }
  // An expert of -1 has no owner; callers look first.
  EP_FN u32 of(i32 expert) const { return multiply_high(2 * expert + 1, factor); }
};

// This lane's selection of a token.
struct Selection {
  i32 expert, weight;  // -1 for none; the bits of a float32
};

EP_FN Selection load_selection(i64 idx, i64 weights, i64 first, i64 num_topk) {
  Selection selection = {-1, 0};
  if (has_lane(num_topk)) {
    selection.expert = load_i32(idx + 4 * (first + lane_id()));
    selection.weight = load_i32(weights + 4 * (first + lane_id()));
  }
  return selection;
}

// The ranks that a token goes to, as bits.
EP_FN u32 ranks_of(i32 expert, Owners owners) {
  return or_lanes(expert < 0 ? 0 : 1u << owners.of(expert));
}

// Tells every rank of an epoch's end here, in word 0 of a flag to its own node and word 1 to others,
// and lets block 0 wait for that of all blocks of all ranks; run by one warp of each block.
template <class Params>
EP_FN void end_epoch(const Params& p, i64 flag, i64 epochs, i64 epoch, i64 line) {
  const Peer peer = peer_of_lane(p.rank, p.world_size, p.ranks_per_node);
  release_system();
  if (peer.exists) add_relaxed(at(lane_id(), flag + (peer.is_near ? 0 : 8)), 1);
  store_word(p.rank, epochs + 8 * block_index(), epoch);
  if (block_index() != 0) return;
  wait_ge(flag, epoch * p.ranks_per_node * p.num_sms, line);
  if (p.world_size > p.ranks_per_node)
    wait_ge(flag + 8, epoch * (p.world_size - p.ranks_per_node) * p.num_sms, line);
}

}  // namespace ep
