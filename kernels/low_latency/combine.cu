// `low_latency` combine on GPUs by hand: the protocol of combine.py.
//
// Grid: as in dispatch.cu. Senders send their streams' rows back by bulk copies, 32 places read at
// once; a stream's word is added to when rows have been written, while the next are under way
// (copies.cuh). Each block reduces tokens sm, sm + num_sms, ..., each of its warps a part of the
// columns: lane k awaits the row of selection k, all of them at once, and knows its address and its
// weight, so warps need not meet. Pieces of rows pass through the warp's stages (sums.cuh): with 8
// reducers of 12 KiB, 96 KiB are under way, more than the 54 KB that 60 GB/s from 900 ns away need.
//
// Send: the warp that has a stream adds to `returned[rank][part]` of the source (release), after
// every `near_batch` or `far_batch` rows and to make up 2^32 at the end. Every reducing warp acquires
// `returned` for each row that it adds, and in the end for whole streams of some sources, so that a
// block has seen the end of all.
//
// It cannot deadlock: senders wait for their own copies only, and reducers for senders only.
#include "cuh/copies.cuh"
#include "cuh/releases.cuh"
#include "cuh/streams.cuh"
#include "cuh/sums.cuh"
#include "cuh/words.cuh"

namespace ep {

EP_FN i64 first_slot(const Params& p, i64 epoch) {
  return p.combine_slots + (epoch & 1) * p.max_tokens * p.num_topk * p.y_row_bytes;
}

EP_FN void send_stream(const Params& p, Stream stream, int batch, i64 epoch, Copies& copies) {
  const i64 slots = at(stream.peer, first_slot(p, epoch));
  StreamWord word(at(stream.peer, p.returned + 8 * (p.rank * p.num_parts + stream.part)), batch);
  const i32 count = load_i32(p.totals_addr + block_index() * p.totals_bytes + 4 * stream.peer);
  const i64 lists = 4 * stream.peer * p.peer_rows;
  for (int begin = stream.part; begin < count; begin += LANES * stream.num_parts) {
    const int row = begin + lane_id() * stream.num_parts;
    i32 from = 0, into = 0;
    if (row < count) {
      from = load_i32(p.back_rows_addr + lists + 4 * row);
      into = load_i32(p.back_slots_addr + lists + 4 * row);
    }
    for (u32 left = ballot(row < count); left != 0; left &= left - 1) {
      word.before_row(copies);
      const int lane = first_bit(left);
      copies.add(slots + shuffle(into, lane) * p.y_row_bytes,
                 p.y_addr + shuffle(from, lane) * p.y_row_bytes, p.y_row_bytes);
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
    const i64 batch = cut.is_near(stream.peer) ? p.near_batch : p.far_batch;
    send_stream(p, stream, static_cast<int>(batch), epoch, copies);
  }
}

// A block's tokens. Lane i knows the i-th selection that names an expert, and the flag that tells of
// its row.
class ReturnedSource {
  const Params& p_;
  const Cut& cut_;
  i64 token_, epoch_;
  i32 num_rows_ = 0;
  i64 slot_ = 0, flag_ = 0, wanted_ = 0;
  float weight_ = 0.f;

  EP_FN void read_selections() {
    if (at_end()) return;
    const i64 first = token_ * p_.num_topk;
    const bool selects = lane_id() < p_.num_topk;
    const i32 listed = selects ? load_i32(p_.topk_idx_addr + 4 * (first + lane_id())) : -1;
    const u32 rows = ballot(listed >= 0);
    num_rows_ = count_bits(rows);
    int k = 0;
    for (u32 left = rows, place = 0; left != 0; left &= left - 1, ++place)
      if (static_cast<u32>(lane_id()) == place) k = first_bit(left);
    const i32 expert = shuffle(listed, k);
    if (lane_id() >= num_rows_) return;
    slot_ = first + k;
    weight_ = as_float(load_i32(p_.topk_weights_addr + 4 * slot_));
    const u32 row = load_i32(p_.send_index_addr + 4 * slot_);
    const int owner = expert / static_cast<int>(p_.experts_per_rank);
    const u32 parts = cut_.parts_with(owner), place = row / parts;
    flag_ = p_.returned + 8 * (owner * p_.num_parts + (row - place * parts));
    wanted_ = (epoch_ - 1) * EPOCH + place + 1;
  }

 public:
  EP_FN ReturnedSource(const Params& p, const Cut& cut, i64 epoch)
      : p_(p), cut_(cut), token_(block_index()), epoch_(epoch) {
    read_selections();
  }
  EP_FN bool at_end() const { return token_ >= p_.num_tokens; }
  EP_FN bool take(Rows& rows, Late& late) {
    if (is_any_late(lane_id() < num_rows_, flag_, wanted_, late)) return false;
    rows.num_rows = num_rows_;
    rows.address = own(first_slot(p_, epoch_) + slot_ * p_.y_row_bytes);
    rows.weight = weight_;
    rows.out = p_.out_addr + token_ * p_.y_row_bytes;
    token_ += p_.num_sms;
    read_selections();
    return true;
  }
};

EP_FN void reduce(const Params& p, Team team, i64 epoch) {
  const Cut cut(p);
  ReturnedSource tokens(p, cut, epoch);
  add_lists<true>(tokens, static_cast<u32>(part_begin(p.y_row_bytes, team.member, team.size)),
                  static_cast<u32>(part_begin(p.y_row_bytes, team.member + 1, team.size)));
  for (int source = team.worker; source < cut.world_size; source += team.num_workers)
    wait_all(p.returned + 8 * source * p.num_parts, 8, cut.parts_with(source), epoch * EPOCH,
             EP_HERE);
}

EP_FN i64 begin_epoch(const Params& p) {
  return load_word(p.combine_epoch + 8 * block_index()) + 1;
}

EP_FN void end_epoch(const Params& p, i64 epoch) {
  sync_block();
  if (warp_index() == 0) store_word(p.rank, p.combine_epoch + 8 * block_index(), epoch);
}

EP_FN void combine(const Params& p) {
  const i64 epoch = begin_epoch(p);
  const int warp = warp_index(), num_senders = static_cast<int>(p.send_warps);
  if (warp < num_senders)
    send_rows(p, team_of(p.num_sms, warp, num_senders), epoch);
  else
    reduce(p, team_of(p.num_sms, warp - num_senders, NUM_WARPS - num_senders), epoch);
  end_epoch(p, epoch);
}

EP_FN void combine_send(const Params& p) {
  send_rows(p, team_of(p.num_sms, warp_index(), NUM_WARPS), begin_epoch(p));
}

EP_FN void combine_recv(const Params& p) {
  const i64 epoch = begin_epoch(p);
  reduce(p, team_of(p.num_sms, warp_index(), NUM_WARPS), epoch);
  end_epoch(p, epoch);
}

}  // namespace ep
