// The instructions under the names and types that compiled kernels call them by: int64 throughout.
//
// kernels/isa/cuda.py declares each of them; what an instruction means is said in
// kernels/isa/__init__.py.
#pragma once

#include "bulk.cuh"
#include "division.cuh"
#include "fp8.cuh"
#include "lanes.cuh"
#include "releases.cuh"
#include "rows.cuh"
#include "waits.cuh"
#include "words.cuh"

// Called instructions keep their code and their registers to themselves; the loops over rows are
// inlined, since what is called takes registers as if it had all of them.
#define EP_CALLED extern "C" EP_COLD_FN
#define EP_INLINED extern "C" __device__

using ep::i64;

EP_INLINED i64 ep_sm_id() { return static_cast<ep::u32>(ep::block_index()); }
EP_INLINED i64 ep_warp_id() { return static_cast<ep::u32>(ep::warp_index()); }

EP_INLINED i64 ep_load(i64 offset) { return ep::load_word(offset); }
EP_CALLED i64 ep_load_acquire(i64 offset) { return ep::load_word_acquire(offset); }
EP_INLINED void ep_store(i64 rank, i64 offset, i64 value) {
  ep::store_word(rank, offset, value);
}
EP_CALLED void ep_store_release(i64 rank, i64 offset, i64 value) {
  ep::store_word_release(rank, offset, value);
}
EP_INLINED void ep_add(i64 rank, i64 offset, i64 value) { ep::add_word(rank, offset, value); }
EP_CALLED i64 ep_fetch_add(i64 rank, i64 offset, i64 value) {
  return ep::fetch_add_word(rank, offset, value);
}
EP_INLINED void ep_fence_release() { ep::fence_release(); }

EP_INLINED i64 ep_wait_ge(i64 offset, i64 value, i64 line) {
  return ep::wait_ge(offset, value, line);
}
EP_INLINED i64 ep_wait_any(i64 offset, i64 stride, i64 values, i64 count, i64 first, i64 line) {
  return ep::wait_any(offset, stride, values, count, first, line);
}
EP_INLINED void ep_wait_all(i64 offset, i64 stride, i64 count, i64 value, i64 line) {
  ep::wait_all(offset, stride, count, value, line);
}
EP_CALLED i64 ep_min_words(i64 offset, i64 stride, i64 count) {
  return ep::min_words(offset, stride, count);
}

EP_INLINED void ep_warp_sync() { ep::sync_warp(); }
EP_INLINED void ep_block_sync() { ep::block_sync(); }
#ifdef EP_GROUPS
EP_CALLED void ep_group_sync(i64 group, i64 num_warps, i64 line) {
  ep::group_sync_all(group, num_warps, line);
}
#endif

EP_INLINED void ep_copy_row(i64 rank, i64 offset, i64 source, i64 num_bytes) {
  ep::copy_row(rank, offset, source, num_bytes);
}
EP_INLINED void ep_copy_row_bulk(i64 rank, i64 offset, i64 source, i64 num_bytes) {
  ep::copy_row_bulk(rank, offset, source, num_bytes);
}
EP_INLINED void ep_copy_bytes(i64 rank, i64 offset, i64 source, i64 num_bytes) {
  ep::copy_bytes(rank, offset, source, num_bytes);
}
EP_CALLED void ep_localize(i64 rank, i64 idx, i64 weights, i64 topk_idx, i64 topk_weights,
                           i64 num_topk, i64 experts_per_rank) {
  ep::sync_warp();
  ep::localize(rank, idx, weights, {topk_idx, topk_weights, num_topk, experts_per_rank, 0});
}
EP_INLINED i64 ep_address(i64 rank, i64 offset) { return ep::at(rank, offset); }
EP_INLINED i64 ep_own_address(i64 offset) { return ep::own(offset); }
EP_INLINED void ep_reduce(i64 out, i64 num_rows, i64 ranks, i64 rows, i64 base, i64 row_bytes) {
  ep::reduce_columns<false>(out, {num_rows, ranks, rows, base, row_bytes, 0}, 0, row_bytes);
}
EP_CALLED void ep_reduce_weighted(i64 out, i64 num_rows, i64 ranks, i64 rows, i64 base,
                                  i64 row_bytes, i64 weights, i64 number, i64 num_parts) {
  ep::reduce_columns<true>(out, {num_rows, ranks, rows, base, row_bytes, weights},
                           ep::part_begin(row_bytes, number, num_parts),
                           ep::part_begin(row_bytes, number + 1, num_parts));
}
EP_INLINED void ep_put_rows(i64 rank, i64 offset, i64 num_rows, i64 rows, i64 base,
                            i64 row_bytes) {
#pragma unroll 1
  for (i64 index = 0; index < num_rows; ++index)
    ep::copy_row(rank, offset + index * row_bytes,
                 ep::own(base + ep::load_i32(rows + 4 * index) * row_bytes), row_bytes);
}
EP_CALLED void ep_put_signal(i64 rank, i64 offset, i64 value) {
  ep::put_signal(rank, offset, value);
}

EP_CALLED void ep_count_ranks(i64 idx, i64 num_topk, i64 experts_per_rank, i64 world_size,
                              i64 num_tokens, i64 counts) {
  ep::count_ranks({idx, 0, num_topk, experts_per_rank, world_size}, num_tokens, counts);
}
EP_CALLED void ep_count_experts(i64 idx, i64 num_topk, i64 experts_per_rank, i64 world_size,
                                i64 num_tokens, i64 counts) {
  ep::count_experts({idx, 0, num_topk, experts_per_rank, world_size}, num_tokens, counts);
}
EP_CALLED i64 ep_rank_mask(i64 idx, i64 num_topk, i64 experts_per_rank, i64 first_rank,
                           i64 num_ranks) {
  return ep::rank_mask({idx, 0, num_topk, experts_per_rank, 0}, first_rank, num_ranks);
}
EP_CALLED i64 ep_select_rank(i64 idx, i64 weights, i64 num_topk, i64 experts_per_rank,
                             i64 num_tokens, i64 rank, i64 entries, i64 counts) {
  return ep::select_rank({idx, weights, num_topk, experts_per_rank, 0}, num_tokens, rank, entries,
                         counts);
}
EP_INLINED void ep_sum_rows(i64 matrix, i64 num_columns, i64 row_bytes, i64 num_rows,
                            i64 initial, i64 sums) {
  ep::sum_rows(matrix, num_columns, row_bytes, num_rows, initial, sums);
}
EP_CALLED i64 ep_route(i64 idx, i64 num_topk, i64 experts_per_rank, i64 cursor, i64 ranks,
                       i64 rows) {
  return ep::route({idx, 0, num_topk, experts_per_rank, 0}, cursor, ranks, rows);
}
EP_CALLED i64 ep_route_experts(i64 idx, i64 weights, i64 num_topk, i64 cursor, i64 experts,
                               i64 rows, i64 out_weights) {
  return ep::route_experts({idx, weights, num_topk, 1, 0}, cursor, experts, rows, out_weights);
}
EP_INLINED void ep_scan(i64 counts, i64 stride, i64 num_counts, i64 begins) {
  ep::scan(counts, stride, num_counts, begins);
}
EP_CALLED i64 ep_floor_div(i64 a, i64 b) { return ep::floor_div(a, b); }
EP_CALLED i64 ep_modulo(i64 a, i64 b) { return ep::modulo(a, b); }
EP_CALLED void ep_pause(i64 length_ns) { ep::pause(length_ns); }

EP_INLINED i64 ep_load_i32(i64 address) { return ep::load_i32(address); }
EP_INLINED void ep_store_i32(i64 address, i64 value) { ep::put_i32(address, value); }
EP_INLINED i64 ep_load_i64(i64 address) { return ep::load_i64(address); }
EP_INLINED void ep_store_i64(i64 address, i64 value) { ep::put_i64(address, value); }
