// `low_latency` dispatch on GPUs by hand: the protocol of dispatch.py.
//
// Grid: `num_sms` blocks; in the fused launch the first `send_warps` warps of a block send and the
// others receive, at the same time: what a rank sends leaves by NVLink while what it gets is copied
// in its memory. Launched apart, both halves have all warps. At decode sizes a warp has a stream of
// a few rows, so what counts is the length of a chain, not the rate: the list of a stream is made
// with counters in shared memory and four loads under way (a batch of 32 selections in 60 cycles
// instead of a round trip to L2); entries are written by a lane each; a row's flag is added to
// when its bulk copies have been written, while the next rows are under way (copies.cuh). A receiver
// polls for 32 rows at once and takes those that are there. 16 warps have 192 KiB of stages, more
// than the 72 KB under way that 80 GB/s from 900 ns away need.
//
// Send: the warp that has a stream lists its rows and sends entries and rows; then it adds to
// `arrived[rank][part]` of the peer (release), after every `near_batch` or `far_batch` rows and to
// make up 2^32 at the end. Receivers first add to `counted` of every rank: the words are the counts
// themselves, which is all that is read of them. Each receiver of a block awaits `counted` of a share
// of the pairs; together they make the block's `begins` and `totals`, and meet by `group_sync` in
// between. Each then acquires `arrived` for its rows and copies them to their places.
//
// It cannot deadlock: senders wait for their own copies only; receivers wait for `counted`, which
// receivers send before they wait, for those of their block, and for `arrived`.
// Launched apart, `dispatch_send` sends both.
#include "cuh/copies.cuh"
#include "cuh/releases.cuh"
#include "cuh/streams.cuh"
#include "cuh/world.cuh"

namespace ep {

constexpr int ENTRY_BYTES = 16;
constexpr int BATCHES = 4;  // of 32 selections that are loaded at once

EP_FN i64 first_slot(const Params& p, i64 source, i64 epoch) {
  return ((epoch & 1) * p.world_size + source) * p.peer_rows;
}

// Calls `visit(index, local expert or -1)` for all selections, 32 at a time: local to `peer`.
template <class Visit>
EP_FN void visit_selections(const Params& p, int peer, Visit visit) {
  const i32 num_experts = static_cast<i32>(p.experts_per_rank), first = peer * num_experts;
  const int total = static_cast<int>(p.num_tokens * p.num_topk);
#pragma unroll 1
  for (int begin = 0; begin < total; begin += BATCHES * LANES) {
    i32 experts[BATCHES];
#pragma unroll
    for (int batch = 0; batch < BATCHES; ++batch) {
      const int index = begin + batch * LANES + lane_id();
      experts[batch] = index < total ? load_i32(p.topk_idx_addr + 4ll * index) : -1;
    }
#pragma unroll
    for (int batch = 0; batch < BATCHES; ++batch) {
      const i32 local = experts[batch] - first;
      const bool owned = experts[batch] >= 0 && local >= 0 && local < num_experts;
      visit(begin + batch * LANES + lane_id(), owned ? local : -1);
    }
  }
}

// Lists the entries of a stream's rows; returns how many.
EP_FN int list_stream(const Params& p, Stream stream, i64 entries, ExpertCounts counts) {
  counts.clear(p.experts_per_rank);
  int num_owned = 0;
  visit_selections(p, stream.peer, [&](int index, i32 local) {
    const u32 owning = ballot(local >= 0);
    if (owning == 0) return;
    const i32 earlier = counts.count(local);
    const u32 row = num_owned + count_bits(owning & lanes_below());
    const u32 place = row / static_cast<u32>(stream.num_parts);
    if (local >= 0 && row - place * stream.num_parts == static_cast<u32>(stream.part)) {
      const u32 weight = load_i32(p.topk_weights_addr + 4ll * index);
      store_row(entries + ENTRY_BYTES * static_cast<i64>(place),
                {static_cast<u32>(index), weight, static_cast<u32>(local),
                 static_cast<u32>(earlier)});
    }
    num_owned += count_bits(owning);
  });
  sync_warp();
  return (num_owned - stream.part + stream.num_parts - 1) / stream.num_parts;
}

EP_FN void send_stream(const Params& p, Stream stream, i64 entries, int num_rows, int batch,
                       i64 epoch, Copies& copies) {
  const i64 place = first_slot(p, p.rank, epoch);
  StreamWord word(at(stream.peer, p.arrived + 8 * (p.rank * p.num_parts + stream.part)), batch);
  const i64 slot_entries = at(stream.peer, p.slot_entries), slots = at(stream.peer, p.slots);
  for (int begin = 0; begin < num_rows; begin += LANES) {
    i32 token = 0;
    if (begin + lane_id() < num_rows) {
      const i64 own_place = begin + lane_id();
      const i64 row = own_place * stream.num_parts + stream.part;
      const Vec entry = load_row(entries + ENTRY_BYTES * own_place);
      store_row(slot_entries + ENTRY_BYTES * (place + row), entry);
      store_i32(p.send_index_addr + 4ll * entry.x, static_cast<i32>(row));
      token = entry.x / static_cast<u32>(p.num_topk);
    }
    for (int index = 0; index < LANES && begin + index < num_rows; ++index) {
      word.before_row(copies);
      const i64 row = static_cast<i64>(begin + index) * stream.num_parts + stream.part;
      copies.add(slots + (place + row) * p.x_row_bytes,
                 p.x_addr + shuffle(token, index) * p.x_row_bytes, p.x_row_bytes);
    }
  }
  word.end(copies);
}

EP_FN void send_rows(const Params& p, Team team, i64 epoch) {
  const Cut cut(p);
  Copies copies;
  copies.begin();
  for (int index = team.worker; index < cut.num_streams(); index += team.num_workers) {
    const Stream stream = cut.stream(index);
    const i64 entries = p.entries_addr + index * p.peer_rows * ENTRY_BYTES;
    const ExpertCounts counts(p.counts_addr + index * p.counts_bytes);
    const int num_rows = list_stream(p, stream, entries, counts);
    // The counters were where stages are.
    copies.stages_used();
    const i64 batch = cut.is_near(stream.peer) ? p.near_batch : p.far_batch;
    send_stream(p, stream, entries, num_rows, static_cast<int>(batch), epoch, copies);
  }
}

// Tells every rank how many rows it gets from this one for each of its experts.
EP_FN void send_counts(const Params& p, Team team, i64 epoch) {
  const i64 num_experts = p.experts_per_rank * p.world_size, buffer = epoch & 1;
  for (int turn = team.worker; turn < p.world_size; turn += team.num_workers) {
    const int peer = static_cast<int>(p.rank + 1 + turn) % static_cast<int>(p.world_size);
    const ExpertCounts counts(p.counts_addr + (Cut(p).num_streams() + peer) * p.counts_bytes);
    counts.clear(p.experts_per_rank);
    visit_selections(p, peer, [&](int, i32 local) {
      if (ballot(local >= 0) != 0) counts.count(local);
    });
    for (int local = lane_id(); local < p.experts_per_rank; local += LANES) {
      const i32 count = counts.get(local);
      const i64 place = 4 * (buffer * num_experts + peer * p.experts_per_rank + local);
      const i64 value = EPOCH + count - load_i32(p.sent_counts_addr + place);
      store_i32(p.sent_counts_addr + place, count);
      add_relaxed(at(peer, p.counted + 8 * (buffer * num_experts + local * p.world_size + p.rank)),
                  value);
    }
    sync_warp();
  }
}

// Rows of the pairs that each warp of a block has seen counts of.
EP_SHARED i32 seen_rows[NUM_WARPS];

// Waits for this warp's share of the counts of all (expert, source) pairs, and writes where the rows
// of each begin, after those of the share's first.
EP_FN void await_counts(const Params& p, Team team, i64 first, i64 last, i64 begins, i64 epoch) {
  const i64 wanted = ((epoch + 1) >> 1) * EPOCH;
  const i64 counted = p.counted + 8 * (epoch & 1) * p.experts_per_rank * p.world_size;
  i32 total = 0;
  for (i64 begin = first; begin < last; begin += LANES) {
    const i64 flag = counted + 8 * (begin + lane_id());
    const bool exists = begin + lane_id() < last;
    i64 word = wanted;
    Patience patience;
    while (true) {
      if (exists) word = load_polled(own(flag));
      const u32 late = ballot(word < wanted);
      if (late == 0) break;
      leave_if_spent(patience, late, flag, word, wanted, EP_HERE);
    }
    acquire_polled();
    const i32 count = static_cast<i32>(word);
    const i32 before = sum_before(count);
    if (exists) store_i32(begins + 4 * (begin + lane_id()), total + before);
    total += sum_lanes(count);
  }
  if (lane_id() == 0) seen_rows[team.member] = total;
}

// Waits for all counts; writes where rows begin, how many each source sends, and `recv_counts`.
EP_FN void lay_out(const Params& p, Team team, i64 epoch) {
  const i64 num_pairs = p.experts_per_rank * p.world_size;
  const i64 begins = p.begins_addr + block_index() * p.begins_bytes;
  const i64 share = (num_pairs + team.size - 1) / team.size;
  const i64 first = team.member * share, end = first + share;
  const i64 last = end < num_pairs ? end : num_pairs;
  await_counts(p, team, first, last, begins, epoch);
  group_sync(1, team.size, EP_HERE);
  const i32 seen = lane_id() < team.size ? seen_rows[lane_id()] : 0;
  const i32 before = shuffle(sum_before(seen), team.member), total = sum_lanes(seen);
  for (i64 pair = first + lane_id(); pair < last; pair += LANES)
    store_i32(begins + 4 * pair, before + load_i32(begins + 4 * pair));
  if (team.member == 0 && lane_id() == 0) store_i32(begins + 4 * num_pairs, total);
  group_sync(1, team.size, EP_HERE);
  for (i64 source = team.member; source < p.world_size; source += team.size) {
    i32 sum = 0;
    for (i64 local = lane_id(); local < p.experts_per_rank; local += LANES) {
      const i64 pair = begins + 4 * (local * p.world_size + source);
      const i32 count = load_i32(pair + 4) - load_i32(pair);
      sum += count;
      if (block_index() == 0)
        store_i32(p.recv_counts_addr + 4 * (source * p.experts_per_rank + local), count);
    }
    sum = sum_lanes(sum);
    if (lane_id() == 0)
      store_i32(p.totals_addr + block_index() * p.totals_bytes + 4 * source, sum);
  }
  group_sync(1, team.size, EP_HERE);
}

// Takes up to 32 rows of a source, a lane each, as they arrive.
EP_FN void receive_batch(const Params& p, int source, i64 row, bool exists, int parts, i64 epoch,
                         SilentCopies& copies) {
  const u32 place_in_part = static_cast<u32>(row) / static_cast<u32>(parts);
  const i64 part = row - static_cast<i64>(place_in_part) * parts;
  const i64 flag = p.arrived + 8 * (source * p.num_parts + part);
  const i64 wanted = (epoch - 1) * EPOCH + place_in_part + 1;
  const i64 slot = first_slot(p, source, epoch) + row;
  const i64 begins = p.begins_addr + block_index() * p.begins_bytes;
  Patience patience;
  for (u32 left = ballot(exists); left != 0;) {
    const bool awaits = left >> lane_id() & 1;
    const i64 seen = awaits ? load_polled(own(flag)) : 0;
    const bool is_here = awaits && seen >= wanted;
    const u32 here = ballot(is_here);
    if (here == 0) {
      leave_if_spent(patience, left, flag, seen, wanted, EP_HERE);
      continue;
    }
    acquire_polled();
    patience = {};
    left &= ~here;
    i32 place = 0;
    if (is_here) {
      const Vec entry = load_row(p.slot_entries_addr + ENTRY_BYTES * slot);
      const i64 pair = static_cast<i64>(entry.z) * p.world_size + source;
      place = load_i32(begins + 4 * pair) + static_cast<i32>(entry.w);
      store_i32(p.recv_topk_idx_addr + 4ll * place, static_cast<i32>(entry.z));
      store_i32(p.recv_topk_weights_addr + 4ll * place, static_cast<i32>(entry.y));
      const i64 back = 4 * (source * p.peer_rows + row);
      store_i32(p.back_rows_addr + back, place);
      store_i32(p.back_slots_addr + back, static_cast<i32>(entry.x));
    }
    copies.acquired();
    const i64 from = p.slots_addr + slot * p.x_row_bytes;
    const i64 into = own(p.recv_x + place * p.x_row_bytes);
    for (u32 rest = here; rest != 0; rest &= rest - 1) {
      const int lane = first_bit(rest);
      copies.add(shuffle(into, lane), shuffle(from, lane), p.x_row_bytes);
    }
  }
}

EP_FN void receive(const Params& p, Team team, i64 epoch) {
  lay_out(p, team, epoch);
  const Cut cut(p);
  const i64 totals = p.totals_addr + block_index() * p.totals_bytes;
  const int world = cut.world_size;
  const int recv_parts = team.num_workers < world ? 1 : team.num_workers / world;
  SilentCopies copies;
  copies.begin();
  for (int item = team.worker; item < world * recv_parts; item += team.num_workers) {
    const int source = (cut.rank + item) % world;
    const i32 total = load_i32(totals + 4 * source);
    for (i64 first = item / world; first < total; first += LANES * recv_parts) {
      const i64 row = first + lane_id() * recv_parts;
      receive_batch(p, source, row, row < total, cut.parts_with(source), epoch, copies);
    }
  }
  copies.finish();
}

EP_FN i64 begin_epoch(const Params& p) {
  init_groups();
  sync_block();
  return load_word(p.dispatch_epoch + 8 * block_index()) + 1;
}

EP_FN void end_epoch(const Params& p, i64 epoch) {
  sync_block();
  if (warp_index() == 0) store_word(p.rank, p.dispatch_epoch + 8 * block_index(), epoch);
}

EP_FN void dispatch(const Params& p) {
  const i64 epoch = begin_epoch(p);
  const int warp = warp_index(), num_senders = static_cast<int>(p.send_warps);
  if (warp < num_senders) {
    send_rows(p, team_of(p.num_sms, warp, num_senders), epoch);
  } else {
    const Team team = team_of(p.num_sms, warp - num_senders, NUM_WARPS - num_senders);
    send_counts(p, team, epoch);
    receive(p, team, epoch);
  }
  end_epoch(p, epoch);
}

EP_FN void dispatch_send(const Params& p) {
  const i64 epoch = begin_epoch(p);
  const Team team = team_of(p.num_sms, warp_index(), NUM_WARPS);
  send_rows(p, team, epoch);
  send_counts(p, team, epoch);
}

EP_FN void dispatch_recv(const Params& p) {
  const i64 epoch = begin_epoch(p);
  receive(p, team_of(p.num_sms, warp_index(), NUM_WARPS), epoch);
  end_epoch(p, epoch);
}

}  // namespace ep
