// Words: lane 0 acts for the warp. What the other lanes did before comes first, by `sync_warp`.
#pragma once

#include "machine.cuh"

namespace ep {

EP_FN i64 load_word(i64 offset) {
  sync_warp();
  i64 value = 0;
  if (lane_id() == 0) value = load_relaxed(own(offset));
  return shuffle(value, 0);
}

EP_FN i64 load_word_acquire(i64 offset) {
  sync_warp();
  i64 value = 0;
  if (lane_id() == 0) value = load_acquire(own(offset));
  value = shuffle(value, 0);
  sync_warp();
  return value;
}

EP_FN void store_word(i64 rank, i64 offset, i64 value) {
  sync_warp();
  if (lane_id() == 0) store_relaxed(at(rank, offset), value);
}

EP_FN void add_word(i64 rank, i64 offset, i64 value) {
  sync_warp();
  if (lane_id() == 0) add_relaxed(at(rank, offset), value);
}

EP_FN i64 fetch_add_word(i64 rank, i64 offset, i64 value) {
  sync_warp();
  i64 before = 0;
  if (lane_id() == 0) before = fetch_add_relaxed(at(rank, offset), value);
  return shuffle(before, 0);
}

// Least of several words, each loaded with acquire.
EP_FN i64 min_words(i64 offset, i64 stride, i64 count) {
  sync_warp();
  const i64 flags = own(offset);
  i64 least = 0x7fffffffffffffff;
#pragma unroll 1
  for (i64 index = lane_id(); index < count; index += LANES) {
    const i64 value = load_acquire(flags + index * stride);
    least = value < least ? value : least;
  }
  for (int mask = LANES / 2; mask > 0; mask /= 2) {
    const i64 other = shuffle_xor(least, mask);
    least = other < least ? other : least;
  }
  sync_warp();
  return least;
}

// A number in local memory. The first barrier lets every lane finish its loads of what was there.
EP_FN void put_i32(i64 address, i64 value) {
  sync_warp();
  if (lane_id() == 0) store_i32(address, static_cast<i32>(value));
  sync_warp();
}
EP_FN void put_i64(i64 address, i64 value) {
  sync_warp();
  if (lane_id() == 0) store_i64(address, value);
  sync_warp();
}

// `nanosleep` takes a millisecond at most.
EP_FN void pause(i64 length_ns) {
  const i64 end = nanoseconds() + length_ns;
#pragma unroll 1
  for (i64 left = length_ns; left > 0; left = end - nanoseconds())
    sleep(left < 1000000 ? static_cast<u32>(left) : 1000000u);
  sync_warp();
}

}  // namespace ep
