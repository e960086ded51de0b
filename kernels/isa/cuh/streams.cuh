// Streams of `low_latency`, as kernels/low_latency/streams.py has them, and the warps of its halves.
#pragma once

#include "copies.cuh"
#include "stages.cuh"

namespace ep {

// What a stream's word grows by in an epoch.
constexpr i64 EPOCH = 1ll << 32;

// The warps of a launch that do one thing, and this warp's place among them.
struct Team {
  int worker, num_workers;  // of the rank
  int member, size;         // of the block
};

EP_FN Team team_of(i64 num_sms, int member, int size) {
  return {block_index() * size + member, static_cast<int>(num_sms) * size, member, size};
}

// What one warp sends to one peer, in order: rows g with g % num_parts == part.
struct Stream {
  int peer, part, num_parts;
};

// A stream's word in an epoch: it grows by `batch` for as many rows, in the end by what is left.
class StreamWord {
  i64 flag_, said_ = 0;
  int batch_, unsaid_ = 0;

 public:
  EP_FN StreamWord(i64 flag, int batch) : flag_(flag), batch_(batch) {}
  EP_FN void before_row(Copies& copies) {
    if (unsaid_ == batch_) {
      copies.tell(flag_, batch_);
      said_ += batch_, unsaid_ = 0;
    }
    ++unsaid_;
  }
  EP_FN void end(Copies& copies) {
    if (unsaid_ == 0)
      tell_now(flag_, EPOCH - said_);
    else
      copies.tell(flag_, EPOCH - said_);
    copies.finish();
  }
};

// How a rank's peers are cut into streams.
struct Cut {
  int rank, world_size, ranks_per_node, near_parts, far_parts;

  template <class Params>
  EP_FN explicit Cut(const Params& p)
      : rank(static_cast<int>(p.rank)),
        world_size(static_cast<int>(p.world_size)),
        ranks_per_node(static_cast<int>(p.ranks_per_node)),
        near_parts(static_cast<int>(p.near_parts)),
        far_parts(static_cast<int>(p.far_parts)) {}

  EP_FN int num_far() const { return world_size - ranks_per_node; }
  EP_FN int num_streams() const { return num_far() * far_parts + ranks_per_node * near_parts; }
  EP_FN bool is_near(int peer) const { return peer / ranks_per_node == rank / ranks_per_node; }
  EP_FN int parts_with(int peer) const { return is_near(peer) ? near_parts : far_parts; }

  EP_FN Stream stream(int index) const {
    const int local = rank % ranks_per_node, first = rank - local;
    if (index < num_far() * far_parts) {
      const int distance = ranks_per_node + (index + local) % num_far();
      return {(first + distance) % world_size, index / num_far(), far_parts};
    }
    const int near = index - num_far() * far_parts;
    return {first + (local + 1 + near) % ranks_per_node, near / ranks_per_node, near_parts};
  }
};

// Counts by a rank's experts, of one warp: in its stages while they are empty, or where there are
// none in local memory.
class ExpertCounts {
#ifdef EP_HAS_BULK
  i32* counts_;

 public:
  EP_FN explicit ExpertCounts(i64) : counts_(reinterpret_cast<i32*>(warp_memory())) {}
  EP_FN i32 get(int expert) const { return counts_[expert]; }
  EP_FN void set(int expert, i32 count) const { counts_[expert] = count; }
#else
  i64 counts_;

 public:
  EP_FN explicit ExpertCounts(i64 counts) : counts_(counts) {}
  EP_FN i32 get(int expert) const { return load_i32(counts_ + 4 * expert); }
  EP_FN void set(int expert, i32 count) const { store_i32(counts_ + 4 * expert, count); }
#endif

  EP_FN void clear(i64 num_experts) const {
    sync_warp();
    for (int expert = lane_id(); expert < num_experts; expert += LANES) set(expert, 0);
    sync_warp();
  }
  // Counts this lane's expert, -1 for none; returns how many of the same came before it.
  EP_FN i32 count(i32 expert) const {
    const u32 same = match(expert);
    i32 before = 0;
    if (expert >= 0) before = get(expert) + count_bits(same & ((1u << lane_id()) - 1));
    sync_warp();
    if (expert >= 0 && same >> lane_id() == 1) set(expert, before + 1);
    sync_warp();
    return before;
  }
};

}  // namespace ep
