// `direct` dispatch on GPUs by hand: the protocol of dispatch.py, a row of `x` read once for all of
// its ranks.
//
// Grid: `num_sms` blocks; every warp is a worker, which owns an even, contiguous share of the rank's
// tokens: counts them, places them and sends them. Lane r stands for rank r (at most 32 ranks): it
// counts the tokens that go there, keeps the next row there in a register, writes the bulk copies to
// it and its flags. No warp is set apart for loading: a share's rows lie together, so a warp asks for
// them without knowing where they go, two stages ahead (fanout.cuh), and begins before counts are
// exchanged. A token costs about 200 instructions of its warp and 60 a destination; an SM that stores
// 80 GB/s of FP8 rows of 7392 B to 5 ranks begins one every 460 ns, in which its four schedulers
// issue 3200.
//
// Fresh: block 0 acquires `counted` of its own rank, which every block adds to (release) when its
// warps have written `worker_counts`; then each of its warps gives some ranks this rank's row of
// `counts` and adds 1 to `hello[rank]` there (release), which is the grant, too. Warp 0 of every
// block acquires `hello` of all ranks for its block. The places of a block's workers are
// `counts[s]` of the ranks s below, `worker_counts` of the blocks before, and a scan over its own.
// Cached: places are those of the last fresh run.
//
// Each block ends, when the bulk copies of its warps have been written, by adding 1 to `done` of
// every rank (release; word 0 from its own node, word 1 from others), which block 0 acquires.
//
// It cannot deadlock: `counted` is added before anything is waited for but bulk loads of `x`, `hello`
// after `counted` of the own rank, `done` after `hello`. Blocks must be resident together.
#include "cuh/fanout.cuh"
#include "cuh/releases.cuh"
#include "cuh/world.cuh"

namespace ep {

// What the warps of a block tell each other.
EP_SHARED i32 next_rows[NUM_WARPS][LANES];  // a worker's first row at each rank
EP_SHARED i32 rank_counts[LANES];           // the tokens of all workers by rank

// Counts a share's tokens by rank, four of them under way; lane r returns those that go to rank r.
EP_FN i32 count_share(const Params& p, i64 first, i64 last, Owners owners) {
  i32 count = 0;
  const i64 idx = p.topk_idx_addr + 4 * lane_id();
  const bool selects = has_lane(p.num_topk);
  for (i64 token = first; token < last; token += 4) {
    i32 experts[4];
#pragma unroll
    for (int step = 0; step < 4; ++step)
      experts[step] = selects && token + step < last ? load_i32(idx + 4 * p.num_topk * (token + step))
                                                     : -1;
#pragma unroll
    for (int step = 0; step < 4; ++step) count += ranks_of(experts[step], owners) >> lane_id() & 1;
  }
  return count;
}

// Tells every rank this rank's counts and that it may write; run by all warps of block 0.
EP_FN void say_hello(const Params& p, int warp, i64 epoch) {
  if (!p.cached) {
    if (warp == 0) wait_ge(p.counted, epoch * p.num_sms, EP_HERE);
    sync_block();
    for (int rank = warp; rank < p.world_size; rank += NUM_WARPS) {
      const i32 count = sum_column(p.worker_counts_addr + 4 * rank, p.counts_row_bytes,
                                   p.num_sms * NUM_WARPS);
      if (lane_id() == 0) rank_counts[rank] = count;
    }
    sync_block();
    const i32 count = has_lane(p.world_size) ? rank_counts[lane_id()] : 0;
    const i32 begin = sum_before(count);
    for (int rank = warp; rank < p.world_size; rank += NUM_WARPS) {
      const i64 row = at(rank, p.counts + p.rank * p.counts_row_bytes) + 4 * lane_id();
      if (has_lane(p.world_size)) store_i32(row, count);
      if (lane_id() <= p.world_size) store_i32(row + 4 * p.world_size, begin);
    }
  }
  fence_release();
  for (int rank = warp; rank < p.world_size; rank += NUM_WARPS)
    if (lane_id() == 0) add_relaxed(at(rank, p.hello + 8 * p.rank), 1);
}

// Writes `recv_counts`, and where each source's rows begin here and ours at each peer.
EP_FN void write_bases(const Params& p) {
  const i64 own_column = p.counts_addr + 4 * p.rank;
  const bool exists = has_lane(p.world_size);
  const i32 count = exists ? load_i32(own_column + lane_id() * p.counts_row_bytes) : 0;
  const i32 begin = sum_before(count);
  if (!exists) return;
  i32 ours = 0;
  for (i64 source = 0; source < p.rank; ++source)
    ours += load_i32(p.counts_addr + source * p.counts_row_bytes + 4 * lane_id());
  store_i32(p.recv_counts_addr + 4 * lane_id(), count);
  store_i32(p.bases_addr + 4 * lane_id(), begin);
  store_i32(p.bases_addr + 4 * (p.world_size + lane_id()), ours);
}

// Finds the first row of each worker of this block at every rank; a warp for each rank.
EP_FN void place_block(const Params& p, int sm, int warp) {
  const i64 first = static_cast<i64>(sm) * NUM_WARPS;
  for (int rank = warp; rank < p.world_size; rank += NUM_WARPS) {
    const i64 workers = p.worker_counts_addr + 4 * rank;
    const i32 before = sum_column(p.counts_addr + 4 * rank, p.counts_row_bytes, p.rank) +
                       sum_column(workers, p.counts_row_bytes, first);
    i32 count = 0;
    if (has_lane(NUM_WARPS)) count = load_i32(workers + (first + lane_id()) * p.counts_row_bytes);
    const i32 place = before + sum_before(count);
    if (has_lane(NUM_WARPS)) next_rows[lane_id()][rank] = place;
  }
}

// Where a token goes: ranks as bits, and for lane r its row at rank r.
struct Routed {
  u32 ranks;
  i32 row;
};

// Takes a token's next row at each of its ranks and keeps them for combine and for cached runs.
EP_FN Routed route_fresh(const Params& p, i64 token, i32 expert, Owners owners, i32& next_row) {
  const u32 ranks = ranks_of(expert, owners);
  const i32 row = next_row;
  if (ranks >> lane_id() & 1) {
    const i64 place = 4 * (p.num_copies * token + count_bits(ranks & lanes_below()));
    store_i32(p.send_ranks_addr + place, lane_id());
    store_i32(p.send_rows_addr + place, row);
    ++next_row;
  }
  if (lane_id() == 0) store_i32(p.send_num_addr + 4 * token, count_bits(ranks));
  return {ranks, row};
}

// Reads what a fresh run has kept: ascending ranks, so a rank's row is at the number of those below.
EP_FN Routed route_cached(const Params& p, i64 token) {
  const bool is_one = lane_id() < load_i32(p.send_num_addr + 4 * token);
  const i64 place = 4 * (p.num_copies * token + lane_id());
  const u32 bit = is_one ? 1u << load_i32(p.send_ranks_addr + place) : 0;
  const i32 listed = is_one ? load_i32(p.send_rows_addr + place) : 0;
  const u32 ranks = or_lanes(bit);
  return {ranks, shuffle(listed, count_bits(ranks & lanes_below()))};
}

// Writes a token's ids, made local, and weights to each of its ranks.
EP_FN void send_topk(const Params& p, Routed routed, Selection selection, i64 base) {
#pragma unroll 1
  for (u32 left = routed.ranks; left != 0; left &= left - 1) {
    const int rank = first_bit(left);
    const i64 place = 4 * (p.num_topk * shuffle(routed.row, rank) + lane_id());
    const i64 window = shuffle(base, rank) + place;
    const i32 local = selection.expert - rank * static_cast<i32>(p.experts_per_rank);
    const bool owned = static_cast<u32>(local) < static_cast<u32>(p.experts_per_rank);
    if (has_lane(p.num_topk)) {
      store_i32(window + p.recv_topk_idx, owned ? local : -1);
      store_i32(window + p.recv_topk_weights, owned ? selection.weight : 0);
    }
  }
}

EP_FN void send_share(const Params& p, i64 first, i64 last, Owners owners, i32 next_row,
                      Fanout& rows) {
  const i64 base = has_lane(p.world_size) ? at(lane_id(), 0) : 0;
  Selection next = {-1, 0};
  if (first < last)
    next = load_selection(p.topk_idx_addr, p.topk_weights_addr, p.num_topk * first, p.num_topk);
#pragma unroll 1
  for (i64 token = first; token < last; ++token) {
    const Selection selection = next;
    if (token + 1 < last)
      next = load_selection(p.topk_idx_addr, p.topk_weights_addr, p.num_topk * (token + 1),
                            p.num_topk);
    const Routed routed = p.cached ? route_cached(p, token)
                                   : route_fresh(p, token, selection.expert, owners, next_row);
    send_topk(p, routed, selection, base);
    rows.send(routed.ranks >> lane_id() & 1, base + p.recv_x + routed.row * p.x_row_bytes);
  }
}

EP_FN void dispatch(const Params& p) {
  const int sm = block_index(), warp = warp_index();
  const i64 worker = static_cast<i64>(sm) * NUM_WARPS + warp, num_workers = p.num_sms * NUM_WARPS;
  const i64 epoch = load_word(p.dispatch_epoch + 8 * sm) + 1;
  const i64 first = share_begin(p.num_tokens, worker, num_workers);
  const i64 last = share_begin(p.num_tokens, worker + 1, num_workers);
  const Owners owners(p.experts_per_rank);

  Fanout rows;
  rows.begin(p.x_addr + first * p.x_row_bytes, last - first, p.x_row_bytes);
  if (!p.cached) {
    const i32 count = count_share(p, first, last, owners);
    if (has_lane(p.world_size))
      store_i32(p.worker_counts_addr + worker * p.counts_row_bytes + 4 * lane_id(), count);
  }
  sync_block();
  if (warp == 0) put_signal(p.rank, p.counted, 1);
  if (sm == 0) say_hello(p, warp, epoch);
  if (warp == 0) wait_all(p.hello, 8, p.world_size, epoch, EP_HERE);
  sync_block();
  if (sm == 0 && warp == 0) write_bases(p);
  i32 next_row = 0;
  if (!p.cached) {
    place_block(p, sm, warp);
    sync_block();
    next_row = next_rows[warp][lane_id()];
  }
  rows.acquired();
  send_share(p, first, last, owners, next_row, rows);
  rows.finish();
  sync_block();
  if (warp == 0) end_epoch(p, p.done, p.dispatch_epoch, epoch, EP_HERE);
}

}  // namespace ep
