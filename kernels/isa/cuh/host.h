// The functions of `cuda.cuh` on CPUs. kernels/isa/host says what a block is there.
//
// Words and rows are real memory. Words are atomics of the same order and let others run before
// them; rows are plain. Block-shared variables are this thread's: a block is a thread.
#pragma once

#include <cmath>

#include "../host/runtime.h"

#define __device__
#define __global__
#define __launch_bounds__(...)
#define EP_FN inline
#define EP_COLD_FN inline __attribute__((noinline))
#define EP_CONSTANT thread_local
#define EP_SHARED thread_local
#ifndef EP_HOST_SHARED_BYTES
#define EP_HOST_SHARED_BYTES (256 * 1024)
#endif
#define EP_DYNAMIC_SHARED(type, name) thread_local type name[EP_HOST_SHARED_BYTES / sizeof(type)]

namespace ep {

using host::Together;

EP_FN i64 anew(i64 value) { return value; }
EP_FN int lane_id() { return host::lane_id(); }
EP_FN int read_lane_id() { return lane_id(); }
EP_FN int thread_index() { return host::thread_index(); }
EP_FN int num_warps() { return host::num_warps(); }
EP_FN int block_index() { return host::block_index(); }
EP_FN int virtual_rank() {
#ifdef EP_VIRTUAL
  return host::rank_index();
#else
  return 0;
#endif
}

EP_FN float as_float(u32 bits) { return __builtin_bit_cast(float, bits); }
EP_FN u32 as_bits(float value) { return __builtin_bit_cast(u32, value); }

EP_FN void sync_warp() { host::sync_warp(); }
EP_FN void sync_block() { host::sync_block(); }
EP_FN u32 ballot(bool value) {
  host::meet(Together::ballot, value);
  u32 lanes = 0;
  for (int lane = 0; lane < LANES; ++lane)
    if (host::met_lanes() >> lane & 1) lanes |= static_cast<u32>(host::met(lane)) << lane;
  return lanes;
}
EP_FN u32 match(i32 value) {
  host::meet(Together::match, static_cast<u32>(value));
  u32 lanes = 0;
  for (int lane = 0; lane < LANES; ++lane)
    if (host::met_lanes() >> lane & 1)
      lanes |= static_cast<u32>(host::met(lane) == static_cast<u32>(value)) << lane;
  return lanes;
}
EP_FN i64 shuffle(i64 value, int lane) {
  host::meet(Together::shuffle, static_cast<u64>(value));
  return static_cast<i64>(host::met(lane & (LANES - 1)));
}
EP_FN i32 shuffle(i32 value, int lane) {
  return static_cast<i32>(shuffle(static_cast<i64>(value), lane));
}
// All lanes must come, as on a GPU, where it is a shuffle.
EP_FN int warp_index() { return shuffle(host::thread_index() / LANES, 0); }
EP_FN float shuffle(float value, int lane) {
  return as_float(static_cast<u32>(shuffle(static_cast<i64>(as_bits(value)), lane)));
}
EP_FN i32 shuffle_up(i32 value, int distance) {
  host::meet(Together::shuffle_up, static_cast<u32>(value));
  const int lane = lane_id() - distance;
  return lane < 0 ? value : static_cast<i32>(host::met(lane));
}
EP_FN i64 shuffle_xor(i64 value, int mask) {
  host::meet(Together::shuffle_xor, static_cast<u64>(value));
  return static_cast<i64>(host::met(lane_id() ^ mask));
}
EP_FN u32 or_lanes(u32 value) {
  host::meet(Together::reduce, value);
  u32 all = 0;
  for (int lane = 0; lane < LANES; ++lane) all |= static_cast<u32>(host::met(lane));
  return all;
}
EP_FN i32 sum_lanes(i32 value) {
  host::meet(Together::reduce, static_cast<u32>(value));
  u32 sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum += static_cast<u32>(host::met(lane));
  return static_cast<i32>(sum);
}
EP_FN float max_lanes(float value) {
  host::meet(Together::reduce, as_bits(value));
  for (int lane = 0; lane < LANES; ++lane)
    value = std::fmax(value, as_float(static_cast<u32>(host::met(lane))));
  return value;
}
EP_FN u32 multiply_high(u32 a, u32 b) { return static_cast<u64>(a) * b >> 32; }
EP_FN int count_bits(u32 bits) { return __builtin_popcount(bits); }
EP_FN int first_bit(u32 bits) { return __builtin_ffs(static_cast<int>(bits)) - 1; }

template <class Value>
EP_FN Value* host_pointer(i64 address) {
  if (address % static_cast<i64>(alignof(Value)) != 0)
    host::fail("an access of %zu bytes at %#llx", sizeof(Value), address);
  return reinterpret_cast<Value*>(address);
}
// A relaxed write; one that a fence covers is a release for ThreadSanitizer.
template <class Write>
EP_FN auto host_covered(Write write) {
  host::stir();
#ifdef EP_HOST_TSAN
  if (host::begin_covered()) {
    const auto result = write(true);
    host::end_covered();
    return result;
  }
#endif
  return write(false);
}

EP_FN i64 load_relaxed(i64 address) {
  host::poll();
  const i64* word = host_pointer<i64>(address);
  const i64 value = __atomic_load_n(word, __ATOMIC_RELAXED);
#ifdef EP_HOST_TSAN
  host::has_loaded(word);
#endif
  return value;
}
EP_FN i64 load_acquire(i64 address) {
  host::poll();
  return __atomic_load_n(host_pointer<i64>(address), __ATOMIC_ACQUIRE);
}
EP_FN void store_relaxed(i64 address, i64 value) {
  i64* word = host_pointer<i64>(address);
  host_covered([=](bool is_covered) {
    if (is_covered)
      __atomic_store_n(word, value, __ATOMIC_RELEASE);
    else
      __atomic_store_n(word, value, __ATOMIC_RELAXED);
    return 0;
  });
}
EP_FN void store_release(i64 address, i64 value) {
  host::stir();
  __atomic_store_n(host_pointer<i64>(address), value, __ATOMIC_RELEASE);
}
EP_FN i64 fetch_add_relaxed(i64 address, i64 value) {
  i64* word = host_pointer<i64>(address);
  return host_covered([=](bool is_covered) {
    return is_covered ? __atomic_fetch_add(word, value, __ATOMIC_RELEASE)
                      : __atomic_fetch_add(word, value, __ATOMIC_RELAXED);
  });
}
EP_FN void add_relaxed(i64 address, i64 value) { fetch_add_relaxed(address, value); }
EP_FN i64 compare_swap(i64 address, i64 expected, i64 value) {
  host::stir();
  __atomic_compare_exchange_n(host_pointer<i64>(address), &expected, value, false, __ATOMIC_RELAXED,
                              __ATOMIC_RELAXED);
  return expected;
}
EP_FN i64 load_polled(i64 address) { return load_relaxed(address); }
EP_FN void acquire_polled() { host::fence_acquire(); }
EP_FN void release_system() { host::fence_release(); }

EP_FN i32 load_i32(i64 address) { return *host_pointer<i32>(address); }
EP_FN i64 load_i64(i64 address) { return *host_pointer<i64>(address); }
EP_FN void store_i32(i64 address, i32 value) { *host_pointer<i32>(address) = value; }
EP_FN void store_i64(i64 address, i64 value) { *host_pointer<i64>(address) = value; }
EP_FN void store_byte(i64 address, u32 value) {
  *host_pointer<unsigned char>(address) = static_cast<unsigned char>(value);
}
EP_FN u32 load_byte(i64 address) { return *host_pointer<unsigned char>(address); }
EP_FN void add_i32(i64 address, i32 value) {
  host::stir();
  __atomic_fetch_add(host_pointer<i32>(address), value, __ATOMIC_RELAXED);
}

EP_FN u32 arrive_shared(u32* counter) {
  host::stir();
  return __atomic_fetch_add(counter, 1u, __ATOMIC_ACQ_REL);
}
EP_FN u32 load_acquire_shared(const u32* counter) {
  host::poll();
  return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
}

EP_FN i64 divide_wide(i64 a, i64 b) {
  if (b == 0) host::fail("a division by zero");
  // The one quotient that 64 bits do not hold wraps.
  return b == -1 ? static_cast<i64>(-static_cast<u64>(a)) : a / b;
}

EP_FN i64 nanoseconds() { return host::nanoseconds(); }
EP_FN void sleep(u32) { host::poll(); }
[[noreturn]] EP_FN void leave() { host::leave(); }

EP_FN Vec load_row(i64 address) { return *host_pointer<Vec>(address); }
EP_FN void store_row(i64 address, Vec value) { *host_pointer<Vec>(address) = value; }
template <int OFFSET>
EP_FN Vec load_row_if(i32 left, i64 address) {
  return OFFSET < left ? load_row(address + OFFSET) : Vec{};
}
template <int OFFSET>
EP_FN void store_row_if(i32 left, i64 address, Vec value) {
  if (OFFSET < left) store_row(address + OFFSET, value);
}

EP_FN float add_f32(float a, float b) { return a + b; }
EP_FN float multiply_f32(float a, float b) { return a * b; }
EP_FN float divide_f32(float a, float b) { return a / b; }
EP_FN float max_f32(float a, float b) { return std::fmax(a, b); }
EP_FN float fma_f32(float a, float b, float c) { return std::fma(a, b, c); }
EP_FN void add_f32_if(bool wanted, float& sum, float value) {
  if (wanted) sum = add_f32(sum, value);
}
EP_FN void fma_f32_if(bool wanted, float a, float b, float& sum) {
  if (wanted) sum = fma_f32(a, b, sum);
}
EP_FN u32 host_bf16(float value) {
  if (std::isnan(value)) return 0x7fffu;
  const u32 bits = as_bits(value), low = bits & 0xffffu, high = bits >> 16;
  return low > 0x8000u || (low == 0x8000u && high % 2 == 1) ? high + 1 : high;
}
EP_FN u32 to_bf16x2(float low, float high) { return host_bf16(low) | host_bf16(high) << 16; }

}  // namespace ep

#include "host_bulk.h"
#include "host_fp8.h"
