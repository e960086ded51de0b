// Bulk copies on CPUs: kernels/isa/host/bulk.cpp says when they happen.
#pragma once

#ifndef EP_HOST_NO_BULK
#define EP_HAS_BULK 1

namespace ep {

// GPUs elect which lane they like: here it is one that nothing else is done by. All must come.
EP_FN bool is_elected() {
  ballot(true);
  return lane_id() == LANES - 1;
}
EP_FN void init_barrier(u64* barrier, u32 count) { host::init_barrier(barrier, count); }
EP_FN void publish_barriers() { host::publish_barriers(); }
EP_FN void expect_bytes(u64* barrier, u32 num_bytes) { host::arrive_barrier(barrier, num_bytes); }
EP_FN void arrive_barrier(u64* barrier) { host::arrive_barrier(barrier, 0); }
EP_FN bool try_barrier(u64* barrier, u32 parity) { return host::try_barrier(barrier, parity); }
EP_FN void bulk_load(void* stage, i64 source, u32 num_bytes, u64* barrier) {
  host::bulk_load(stage, source, num_bytes, barrier);
}
EP_FN void bulk_store(i64 target, const void* stage, u32 num_bytes) {
  host::bulk_store(target, stage, num_bytes);
}
EP_FN void bulk_commit() { host::bulk_commit(); }
template <int PENDING>
EP_FN void bulk_wait_read() {
  host::bulk_wait_read(PENDING);
}
template <int PENDING>
EP_FN void bulk_wait() {
  host::bulk_wait(PENDING);
}
EP_FN void bulk_wait_all() { host::bulk_wait(0); }
EP_FN void fence_to_bulk() { host::fence_to_bulk(); }
EP_FN void fence_stages_to_bulk() { host::fence_to_bulk(); }

}  // namespace ep

#endif
