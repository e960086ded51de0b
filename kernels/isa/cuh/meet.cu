// Kernels of the harness: where ranks meet before an operation, and the clock after it.
#include "waits.cuh"

using ep::i64;

// Waits for the host of each rank to open the gate, then for all ranks whose memory this one reaches,
// which reach its own, too; then notes the time.
//
// `meet` is the offset of two words of each window: arrivals of all ranks, and how often this rank
// has met. `gate` is a word of the host, at least that number when all launches are queued.
extern "C" __global__ void __launch_bounds__(ep::LANES, 1)
epbench_meet(i64 meet, i64 gate, i64 stamps) {
  using namespace ep;
  const i64 epoch = load_i64(own(meet + 8)) + 1;
  sync_warp();
  i64 seen = 0, cause = 0;
  if (lane_id() == 0) {
    store_i64(own(meet + 8), epoch);
    Patience patience;
    while ((seen = load_acquire(gate)) < epoch && (cause = patience.spent()) == 0) {
    }
  }
  leave_if(cause, NO_FLAG, seen, epoch, 0);
  i32 num_reached = 0;
  for (i64 peer = lane_id(); peer < ep_machine.world_size; peer += LANES) {
    if (ep_machine.bases[peer] == 0) continue;
    add_relaxed(at(peer, meet), 1);
    ++num_reached;
  }
  wait_ge(meet, epoch * sum_lanes(num_reached), 0);
  if (lane_id() == 0) store_i64(stamps + 16 * virtual_rank(), nanoseconds());
}

// Notes the time when everything before it on the stream has ended.
extern "C" __global__ void __launch_bounds__(ep::LANES, 1) epbench_stamp(i64 stamps) {
  using namespace ep;
  if (lane_id() == 0) store_i64(stamps + 16 * virtual_rank() + 8, nanoseconds());
}
