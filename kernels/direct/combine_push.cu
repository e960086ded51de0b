// `direct` combine by push on GPUs by hand: the protocol of combine_push.py, with flags that lag
// behind rows and rows added from shared memory.
//
// Grid: `num_sms` blocks; in each the first `push_warps` warps push and the others reduce, at the
// same time: an SM's rows cross NVLink both ways, and neither half waits for the other's latency.
// Pushers send rows by bulk copies, two chunks ahead (copies.cuh); the flag of a chunk of rows is
// added to when they have been written, while the next are under way: 8 pushers of 12 KiB have 96 KiB
// between memory and peers, for 40 GB/s at 900 ns to memory and 1500 ns to the acknowledgement. Of a
// token's rows reducers await all flags at once, lane i that of row i, and ask for pieces while
// earlier tokens are added (sums.cuh); they look again after every piece.
//
// Block 0 adds 1 to `ready[rank]` of every rank (release): the `stage` of this rank is free. Pushers
// acquire `ready[s]` before they first write to s, and add to `progress[rank][m]` of s (release) what
// combine_push.py says. Reducers acquire `progress`. Each block then adds 1 to `taken` of every rank
// (release; word 0 from its own node, word 1 from others), which block 0 acquires.
//
// It cannot deadlock: `ready` is sent before anything is waited for. A pusher waits for `ready` and
// for its own copies; a flag that it still owes while it waits for `ready` is for reducers, on whom
// no `ready` depends. Reducers wait for pushers only, which are resident at the same time; `taken` is
// waited for last.
#include "cuh/copies.cuh"
#include "cuh/releases.cuh"
#include "cuh/sums.cuh"
#include "cuh/world.cuh"

namespace ep {

constexpr i64 EPOCH = 1ll << 32;

// Sends this pusher's chunks of each source's rows, one chunk to each source in turn. Lane s keeps
// what concerns source s.
EP_FN void push_rows(const Params& p, i64 pusher, i64 epoch) {
  const i64 num_pushers = p.num_sms * p.push_warps;
  i32 num_rows = 0, slot = 0, row = 0;
  if (has_lane(p.world_size)) {
    const i64 counts = p.counts_addr + lane_id() * p.counts_row_bytes;
    num_rows = load_i32(counts + 4 * p.rank);
    slot = load_i32(counts + 4 * (p.world_size + p.rank));
    row = load_i32(p.bases_addr + 4 * lane_id());
  }
  Copies copies;
  copies.begin();
  const u32 world = static_cast<u32>(p.world_size);
  bool is_left = true;
  for (i64 step = 0; is_left; ++step) {
    is_left = false;
    const i64 first = (step * num_pushers + pusher) * p.chunk_rows;
    u32 source = static_cast<u32>(p.rank + 1 + pusher) % world;
    for (u32 turn = 0; turn < world; ++turn, source = source + 1 == world ? 0 : source + 1) {
      if (step == 0) {
        wait_ge(p.ready + 8 * source, epoch, EP_HERE);
        copies.acquired();
      }
      const i64 left = shuffle(num_rows, source) - first;
      if (step > 0 && left <= 0) continue;
      const bool goes_on = left > num_pushers * p.chunk_rows;
      const i64 flag = at(source, p.progress + 8 * (p.rank * num_pushers + pusher));
      const i64 value = goes_on ? 1 : EPOCH - step;
      is_left |= goes_on;
      if (left <= 0) {
        tell_now(flag, value);
        continue;
      }
      i64 from = p.y_addr + (shuffle(row, source) + first) * p.y_row_bytes;
      i64 into = at(source, p.stage + (shuffle(slot, source) + first) * p.y_row_bytes);
      for (i64 index = 0; index < p.chunk_rows && index < left; ++index) {
        copies.add(into, from, p.y_row_bytes);
        from += p.y_row_bytes, into += p.y_row_bytes;
      }
      copies.tell(flag, value);
    }
  }
  copies.finish();
}

// Every `num_reducers`-th token. Lane i knows row i and the flag that tells of it.
class PushedSource {
  const Params& p_;
  i64 token_, num_reducers_, wanted_epoch_;
  i32 base_ = 0, begin_ = 0;  // of rank `lane`: our first row there, its first slot here
  i32 num_rows_ = 0;
  i64 address_ = 0, flag_ = 0, wanted_ = 0;

  EP_FN void read_lists() {
    if (at_end()) return;
    num_rows_ = load_i32(p_.send_num_addr + 4 * token_);
    const bool has_row = lane_id() < num_rows_;
    const i64 place = 4 * (p_.num_copies * token_ + lane_id());
    const i32 rank = has_row ? load_i32(p_.send_ranks_addr + place) : 0;
    const i32 row = has_row ? load_i32(p_.send_rows_addr + place) : 0;
    const i32 index = row - shuffle(base_, rank);
    const i32 slot = shuffle(begin_, rank) + index;
    const u32 num_pushers = static_cast<u32>(p_.num_sms * p_.push_warps);
    const u32 chunk = static_cast<u32>(index) / static_cast<u32>(p_.chunk_rows);
    address_ = own(p_.stage + slot * p_.y_row_bytes);
    flag_ = p_.progress + 8 * (static_cast<i64>(rank) * num_pushers + chunk % num_pushers);
    wanted_ = wanted_epoch_ + chunk / num_pushers + 1;
  }

 public:
  EP_FN PushedSource(const Params& p, i64 reducer, i64 num_reducers, i64 epoch)
      : p_(p), token_(reducer), num_reducers_(num_reducers), wanted_epoch_((epoch - 1) * EPOCH) {
    if (has_lane(p.world_size)) {
      base_ = load_i32(p.bases_addr + 4 * (p.world_size + lane_id()));
      begin_ = load_i32(p.counts_addr + p.rank * p.counts_row_bytes +
                        4 * (p.world_size + lane_id()));
    }
    read_lists();
  }
  EP_FN bool at_end() const { return token_ >= p_.num_tokens; }
  EP_FN bool take(Rows& rows, Late& late) {
    if (is_any_late(lane_id() < num_rows_, flag_, wanted_, late)) return false;
    rows.num_rows = num_rows_;
    rows.address = address_;
    rows.out = p_.out_addr + token_ * p_.y_row_bytes;
    token_ += num_reducers_;
    read_lists();
    return true;
  }
};

EP_FN void reduce_tokens(const Params& p, i64 reducer, i64 num_reducers, i64 epoch) {
  PushedSource tokens(p, reducer, num_reducers, epoch);
  add_lists<false>(tokens, 0, static_cast<u32>(p.y_row_bytes));
}

EP_FN void combine_push(const Params& p) {
  const int sm = block_index(), warp = warp_index();
  const i64 epoch = load_word(p.combine_epoch + 8 * sm) + 1;
  if (sm == 0 && warp == 0) {
    release_system();
    if (has_lane(p.world_size)) add_relaxed(at(lane_id(), p.ready + 8 * p.rank), 1);
  }
  const i64 num_reducers = NUM_WARPS - p.push_warps;
  if (warp < p.push_warps)
    push_rows(p, sm * p.push_warps + warp, epoch);
  else
    reduce_tokens(p, sm * num_reducers + warp - p.push_warps, p.num_sms * num_reducers, epoch);
  sync_block();
  if (warp == 0) end_epoch(p, p.taken, p.combine_epoch, epoch, EP_HERE);
}

}  // namespace ep
