// `direct` combine by pull on GPUs by hand: the protocol of combine_pull.py, peers' rows added from
// shared memory while the next are on their way.
//
// Grid: `num_sms` blocks; every warp is a worker, which owns an even, contiguous share of the rank's
// tokens. Lane i knows a token's row i. A warp asks for pieces of 2 KiB, as many as its stages hold
// (sums.cuh), and refills a stage when it has added it; no warp is set apart for asking, which is 30
// instructions of the 110 that a piece takes. An SM that pulls 60 GB/s from 1650 ns away needs 99 KB
// under way (bulk.load_ns and nvlink.latency_ns twice, comms/fabrics); 16 warps have 192 KiB. It
// issues 3.2 of the 6.8 billion instructions of a second.
//
// Block 0 adds 1 to `ready[rank]` of every rank (release): the rows `y` of this rank may be read.
// Warp 0 of every block acquires `ready` of all ranks for its block. When a block's warps are done it
// adds 1 to `read` of every rank (release), which block 0 acquires.
//
// It cannot deadlock: `ready` is sent before anything is waited for, `read` after waiting for `ready`
// only; bulk loads wait for nobody.
#include "cuh/releases.cuh"
#include "cuh/sums.cuh"
#include "cuh/world.cuh"

namespace ep {

// A share's tokens in order. What is listed for a token was read when the one before was taken.
class PullSource {
  const Params& p_;
  i64 token_, last_;
  i32 num_rows_ = 0, rank_ = 0, row_ = 0;

  EP_FN void read_lists() {
    if (token_ >= last_) return;
    num_rows_ = load_i32(p_.send_num_addr + 4 * token_);
    if (!has_lane(p_.num_copies)) return;
    const i64 place = 4 * (p_.num_copies * token_ + lane_id());
    rank_ = load_i32(p_.send_ranks_addr + place);
    row_ = load_i32(p_.send_rows_addr + place);
  }

 public:
  EP_FN PullSource(const Params& p, i64 first, i64 last) : p_(p), token_(first), last_(last) {
    read_lists();
  }
  EP_FN bool at_end() const { return token_ >= last_; }
  EP_FN bool take(Rows& rows, Late&) {
    const bool has_row = lane_id() < num_rows_;
    rows.num_rows = num_rows_;
    rows.address = has_row ? at(rank_, p_.y + row_ * p_.y_row_bytes) : 0;
    rows.out = p_.out_addr + token_ * p_.y_row_bytes;
    ++token_;
    read_lists();
    return true;
  }
};

EP_FN void combine_pull(const Params& p) {
  const int sm = block_index(), warp = warp_index();
  const i64 worker = static_cast<i64>(sm) * NUM_WARPS + warp, num_workers = p.num_sms * NUM_WARPS;
  const i64 epoch = load_word(p.combine_epoch + 8 * sm) + 1;
  const bool is_rank = has_lane(p.world_size);
  if (warp == 0) {
    if (sm == 0) {
      release_system();
      if (is_rank) add_relaxed(at(lane_id(), p.ready + 8 * p.rank), 1);
    }
    wait_all(p.ready, 8, p.world_size, epoch, EP_HERE);
  }
  sync_block();

  PullSource tokens(p, share_begin(p.num_tokens, worker, num_workers),
                    share_begin(p.num_tokens, worker + 1, num_workers));
  add_lists<false>(tokens, 0, static_cast<u32>(p.y_row_bytes));

  sync_block();
  if (warp != 0) return;
  release_system();
  if (is_rank) add_relaxed(at(lane_id(), p.read), 1);
  store_word(p.rank, p.combine_epoch + 8 * sm, epoch);
  if (sm == 0) wait_ge(p.read, epoch * p.world_size * p.num_sms, EP_HERE);
}

}  // namespace ep
