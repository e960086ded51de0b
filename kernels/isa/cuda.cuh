// What the instruction set needs of a GPU that C++ has no words for: all PTX of the project.
//
// `cuh/*.cuh` and the CUDA C++ kernels are written against these functions. With EP_HOST defined,
// `cuh/host.h` defines the same names for threads of a CPU, 32 of them a warp.
//
// Scopes: words that ranks share are system scope, barriers inside a block are CTA scope. Rows are
// read by plain loads, never through the read-only path (`.nc`): a peer or this launch may have
// written them. L1 keeps no rows: they are read once.
#pragma once

namespace ep {

using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

constexpr int LANES = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

// 16 bytes, the widest access of a lane.
struct alignas(16) Vec {
  u32 x, y, z, w;
};

}  // namespace ep

#ifdef EP_HOST
#include "cuh/host.h"
#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && \
    (__CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 8))
#define EP_HAS_ONE_WAY_FENCES 1
#endif

#define EP_FN __device__ __forceinline__
// What runs seldom is called, not inlined: its registers and its code are not the loops'.
#define EP_COLD_FN __device__ __noinline__
#define EP_CONSTANT __constant__
#define EP_SHARED __shared__
// Shared memory whose size a launch gives.
#define EP_DYNAMIC_SHARED(type, name) extern __shared__ type name[]

namespace ep {

// A parameter of the entry, by its name in PTX; read anew each time.
#define EP_PARAM(name)                                          \
  ([] {                                                         \
    ep::i64 value;                                              \
    asm volatile("ld.param.u64 %0, [" name "];" : "=l"(value)); \
    return value;                                               \
  }())

// Where this lane is. With EP_READS_ANEW, which kernels of Python have, each call reads it again, so
// that what a kernel computes from it takes no register until it is needed.
EP_FN int lane_id() { return threadIdx.x & (LANES - 1); }
EP_FN int thread_index() { return threadIdx.x; }
EP_FN int num_warps() { return blockDim.x / LANES; }
EP_FN int read_lane_id() {
  u32 lane;
  asm volatile("mov.u32 %0, %laneid;" : "=r"(lane));
  return lane;
}
#ifdef EP_READS_ANEW
EP_FN int warp_index() {
  u32 thread;
  asm volatile("mov.u32 %0, %tid.x;" : "=r"(thread));
  return thread / LANES;
}
EP_FN int block_index() {
  u32 block;
  asm volatile("mov.u32 %0, %ctaid.x;" : "=r"(block));
  return block;
}
EP_FN int block_row() {
  u32 row;
  asm volatile("mov.u32 %0, %ctaid.y;" : "=r"(row));
  return row;
}
EP_FN i64 anew(i64 value) {
  asm volatile("" : "+l"(value));
  return value;
}
#else
// By a shuffle, so that the compiler knows that it is the same for all lanes.
EP_FN int warp_index() { return __shfl_sync(ALL_LANES, threadIdx.x / LANES, 0); }
EP_FN int block_index() { return blockIdx.x; }
EP_FN int block_row() { return blockIdx.y; }
EP_FN i64 anew(i64 value) { return value; }
#endif
EP_FN int virtual_rank() {
#ifdef EP_VIRTUAL
  return block_row();
#else
  return 0;
#endif
}

// Lanes of a warp together: all of them must come.
EP_FN void sync_warp() { __syncwarp(); }
EP_FN void sync_block() { __syncthreads(); }
EP_FN u32 ballot(bool value) { return __ballot_sync(ALL_LANES, value); }
EP_FN u32 match(i32 value) { return __match_any_sync(ALL_LANES, value); }
EP_FN i32 shuffle(i32 value, int lane) { return __shfl_sync(ALL_LANES, value, lane); }
EP_FN i64 shuffle(i64 value, int lane) { return __shfl_sync(ALL_LANES, value, lane); }
EP_FN float shuffle(float value, int lane) { return __shfl_sync(ALL_LANES, value, lane); }
EP_FN i32 shuffle_up(i32 value, int distance) { return __shfl_up_sync(ALL_LANES, value, distance); }
EP_FN i64 shuffle_xor(i64 value, int mask) { return __shfl_xor_sync(ALL_LANES, value, mask); }
EP_FN u32 or_lanes(u32 value) { return __reduce_or_sync(ALL_LANES, value); }
EP_FN i32 sum_lanes(i32 value) { return __reduce_add_sync(ALL_LANES, value); }
EP_FN float max_lanes(float value) {
  for (int mask = LANES / 2; mask > 0; mask /= 2)
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, mask));
  return value;
}
EP_FN int count_bits(u32 bits) { return __popc(bits); }
EP_FN int first_bit(u32 bits) { return __ffs(bits) - 1; }
EP_FN u32 multiply_high(u32 a, u32 b) { return __umulhi(a, b); }

// Words that ranks share.
EP_FN i64 load_relaxed(i64 address) {
  i64 value;
  asm volatile("ld.relaxed.sys.global.s64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
}
EP_FN i64 load_acquire(i64 address) {
  i64 value;
  asm volatile("ld.acquire.sys.global.s64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
}
EP_FN void store_relaxed(i64 address, i64 value) {
  asm volatile("st.relaxed.sys.global.s64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}
EP_FN void store_release(i64 address, i64 value) {
  asm volatile("st.release.sys.global.s64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}
EP_FN void add_relaxed(i64 address, i64 value) {
  asm volatile("red.relaxed.sys.global.add.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}
EP_FN i64 fetch_add_relaxed(i64 address, i64 value) {
  i64 before;
  asm volatile("atom.relaxed.sys.global.add.u64 %0, [%1], %2;"
               : "=l"(before)
               : "l"(address), "l"(value)
               : "memory");
  return before;
}
EP_FN i64 compare_swap(i64 address, i64 expected, i64 value) {
  i64 before;
  asm volatile("atom.relaxed.sys.global.cas.b64 %0, [%1], %2, %3;"
               : "=l"(before)
               : "l"(address), "l"(expected), "l"(value)
               : "memory");
  return before;
}
// Words that are loaded until they are what is wanted, and the acquire once they are: L1 is emptied
// then, and not by every look.
EP_FN i64 load_polled(i64 address) {
#ifdef EP_HAS_ONE_WAY_FENCES
  return load_relaxed(address);
#else
  return load_acquire(address);
#endif
}
EP_FN void acquire_polled() {
#ifdef EP_HAS_ONE_WAY_FENCES
  asm volatile("fence.acquire.sys;" ::: "memory");
#endif
}
// A release for the relaxed writes of words that follow. One that is no acquire as well, where there
// is such a fence, leaves L1 what it has.
EP_FN void release_system() {
#ifdef EP_HAS_ONE_WAY_FENCES
  asm volatile("fence.release.sys;" ::: "memory");
#else
  asm volatile("fence.acq_rel.sys;" ::: "memory");
#endif
}

// Memory that this rank's lanes alone use during a launch, or that they have acquired.
EP_FN i32 load_i32(i64 address) {
  i32 value;
  asm volatile("ld.global.s32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
EP_FN i64 load_i64(i64 address) {
  i64 value;
  asm volatile("ld.global.s64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
}
EP_FN void store_i32(i64 address, i32 value) {
  asm volatile("st.global.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
EP_FN void store_i64(i64 address, i64 value) {
  asm volatile("st.global.s64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}
EP_FN void store_byte(i64 address, u32 value) {
  asm volatile("st.global.u8 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
EP_FN u32 load_byte(i64 address) {
  u32 value;
  asm volatile("ld.global.u8 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
// A count that several lanes add to.
EP_FN void add_i32(i64 address, i32 value) {
  asm volatile("red.relaxed.gpu.global.add.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// Counters in shared memory that warps of a block meet at.
EP_FN u32 shared_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}
EP_FN u32 arrive_shared(u32* counter) {
  u32 before;
  asm volatile("atom.acq_rel.cta.shared.add.u32 %0, [%1], 1;"
               : "=r"(before)
               : "r"(shared_address(counter))
               : "memory");
  return before;
}
EP_FN u32 load_acquire_shared(const u32* counter) {
  u32 value;
  asm volatile("ld.acquire.cta.shared.u32 %0, [%1];"
               : "=r"(value)
               : "r"(shared_address(counter))
               : "memory");
  return value;
}

// Division of what 32 bits do not hold: a subroutine of the assembler, which needs no stack.
EP_FN i64 divide_wide(i64 a, i64 b) {
  i64 quotient;
  asm("div.s64 %0, %1, %2;" : "=l"(quotient) : "l"(a), "l"(b));
  return quotient;
}

// Time and endings.
EP_FN i64 nanoseconds() {
  i64 value;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(value));
  return value;
}
EP_FN void sleep(u32 nanoseconds) { asm volatile("nanosleep.u32 %0;" ::"r"(nanoseconds)); }
[[noreturn]] EP_FN void leave() {
  asm volatile("exit;");
  __builtin_unreachable();
}

// Rows, 16 bytes a lane.
EP_FN Vec load_row(i64 address) {
  Vec value;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address)
               : "memory");
  return value;
}
EP_FN void store_row(i64 address, Vec value) {
  asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address),
               "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}
// Rows OFFSET bytes from an address, if more than that is left: one register serves all loads of a
// round. Else a load gives zeros. The predicate is the access's own: after a branch, a load would
// wait for the one before.
template <int OFFSET>
EP_FN Vec load_row_if(i32 left, i64 address) {
  Vec value;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.gt.s32 p, %6, %5;\n"
      "mov.u32 %0, 0;\n"
      "mov.u32 %1, 0;\n"
      "mov.u32 %2, 0;\n"
      "mov.u32 %3, 0;\n"
      "@p ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4 + %5];\n"
      "}\n"
      : "=&r"(value.x), "=&r"(value.y), "=&r"(value.z), "=&r"(value.w)
      : "l"(address), "n"(OFFSET), "r"(left)
      : "memory");
  return value;
}
template <int OFFSET>
EP_FN void store_row_if(i32 left, i64 address, Vec value) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.gt.s32 p, %6, %5;\n"
      "@p st.global.L1::no_allocate.v4.u32 [%0 + %5], {%1, %2, %3, %4};\n"
      "}\n" ::"l"(address),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "n"(OFFSET),
      "r"(left)
      : "memory");
}

// Arithmetic, rounded as the oracle rounds: to nearest even, subnormals kept, any NaN 0x7FFF.
EP_FN float as_float(u32 bits) { return __uint_as_float(bits); }
EP_FN u32 as_bits(float value) { return __float_as_uint(value); }
EP_FN float add_f32(float a, float b) { return __fadd_rn(a, b); }
EP_FN float multiply_f32(float a, float b) { return __fmul_rn(a, b); }
EP_FN float divide_f32(float a, float b) { return __fdiv_rn(a, b); }
EP_FN float max_f32(float a, float b) { return fmaxf(a, b); }
EP_FN float fma_f32(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// If wanted, by a predicate: after a branch, the load of what is added would wait for it.
EP_FN void add_f32_if(bool wanted, float& sum, float value) {
  asm("{\n"
      ".reg .pred p;\n"
      "setp.ne.u32 p, %2, 0;\n"
      "@p add.rn.f32 %0, %0, %1;\n"
      "}\n"
      : "+f"(sum)
      : "f"(value), "r"(static_cast<u32>(wanted)));
}
EP_FN void fma_f32_if(bool wanted, float a, float b, float& sum) {
  asm("{\n"
      ".reg .pred p;\n"
      "setp.ne.u32 p, %3, 0;\n"
      "@p fma.rn.f32 %0, %1, %2, %0;\n"
      "}\n"
      : "+f"(sum)
      : "f"(a), "f"(b), "r"(static_cast<u32>(wanted)));
}
EP_FN u32 to_bf16x2(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define EP_HAS_FP8 1
EP_FN u32 to_e4m3x2(float low, float high) {
  unsigned short pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define EP_HAS_BULK 1
// Bulk copies: one lane asks, the copy engine of the SM moves rows through shared memory. A load
// ends on an mbarrier; stores are awaited by the lane that asked for them.
//
// True for one lane, always the same; all lanes must come. A bulk copy has its operands in registers
// of the warp: where more lanes than one might ask, it is in a loop over them.
EP_FN bool is_elected() {
  u32 elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(elected)::"memory");
  return elected != 0;
}
EP_FN void init_barrier(u64* barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}
// Makes initialised barriers known to the copy engine; a block barrier must follow.
EP_FN void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
EP_FN void expect_bytes(u64* barrier, u32 num_bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(num_bytes)
               : "memory");
}
EP_FN void arrive_barrier(u64* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
// Waits for a bounded time; true when the phase of this parity is over.
EP_FN bool try_barrier(u64* barrier, u32 parity) {
  u32 done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}
EP_FN void bulk_load(void* stage, i64 source, u32 num_bytes, u64* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(stage)),
      "l"(source), "r"(num_bytes), "r"(shared_address(barrier))
      : "memory");
}
EP_FN void bulk_store(i64 target, const void* stage, u32 num_bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(target),
               "r"(shared_address(stage)), "r"(num_bytes)
               : "memory");
}
EP_FN void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most `PENDING` groups of this lane still read their stages.
template <int PENDING>
EP_FN void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}
// Waits until at most `PENDING` groups of this lane have not been written, and visible to it.
template <int PENDING>
EP_FN void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}
EP_FN void bulk_wait_all() { bulk_wait<0>(); }
// Orders what loads, stores and acquires have done to global memory before what the copy engine
// does there. Without `.global` it would wait for this lane's stores, too.
EP_FN void fence_to_bulk() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
// The same for what was done to stages.
EP_FN void fence_stages_to_bulk() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
#endif

}  // namespace ep

#endif  // EP_HOST
