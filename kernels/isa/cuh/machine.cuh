// What the host tells a module once: where windows are, and how long a wait may take.
#pragma once

#include "../cuda.cuh"

namespace ep {

constexpr int MAX_RANKS = 1024;

// All int64, so that a host can write it as one array; kernels.isa.cuda_kernel names the fields.
struct Machine {
  i64 bases[MAX_RANKS];  // each rank's window as this process addresses it, 0 if it cannot
  i64 first_rank;        // rank of virtual rank 0
  i64 world_size;
  i64 ranks_per_node;
  i64 abort_offset;  // word of each window: not 0 ends its rank's kernels
  i64 limit_ns;      // longest that a wait may take
  i64 report;        // address of a Report in this GPU's memory
};

// The first wait that failed on this GPU since the host cleared it. What rows do not have is loaded
// from here, 16 bytes of it.
struct alignas(16) Report {
  i64 cause;  // 0 nothing, TIMED_OUT or ABORTED
  i64 rank, sm, warp;
  i64 offset, seen, wanted;
  i64 line;
};
constexpr i32 TIMED_OUT = 1;
constexpr i32 ABORTED = 2;
constexpr i64 NO_FLAG = -1;  // offset of a wait that is for other warps or a copy

}  // namespace ep

extern "C" {
EP_CONSTANT ep::Machine ep_machine;
}

namespace ep {

EP_FN i64 own_rank() { return anew(ep_machine.first_rank) + virtual_rank(); }
EP_FN i64 at(i64 rank, i64 offset) { return ep_machine.bases[rank] + offset; }
EP_FN i64 own(i64 offset) { return at(own_rank(), offset); }

}  // namespace ep
