// Quantisation of a row as the oracle does it: groups of 128 elements, a scale of each.
#pragma once

#include "machine.cuh"

namespace ep {

constexpr int GROUP_ELEMENTS = 128;
constexpr float MAX_E4M3 = 448.f;
constexpr float LEAST_AMAX = 1e-4f;

#ifndef EP_HAS_FP8
// e4m3 by arithmetic, for GPUs that have no instruction for it: to nearest even, saturating.
EP_FN u32 to_e4m3(float value) {
  const u32 bits = as_bits(value), sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fu;
  if (magnitude >= as_bits(464.f)) return sign | 0x7eu;
  if (magnitude < as_bits(0.015625f)) {
    // Subnormal: adding 2^14 leaves a number of steps of 2^-9 in the last bits, rounded to even.
    const u32 steps = as_bits(add_f32(as_float(magnitude), 16384.f)) - as_bits(16384.f);
    return sign | steps;
  }
  const u32 odd = magnitude >> 20 & 1u;
  const u32 rounded = (magnitude + 0x7ffffu + odd) >> 20;
  return sign | (rounded - ((127u - 7u) << 3));
}
EP_FN u32 to_e4m3x2(float low, float high) { return to_e4m3(low) | to_e4m3(high) << 8; }
#endif

// Quantises one group of a BF16 row by the whole warp, a lane four elements, of which `count`
// exist. The group begins at a multiple of 8 bytes in the row and of 4 in `out`.
EP_FN void quantize_group(i64 out, i64 scale, i64 row, int count) {
  const int first = 4 * lane_id();
  const bool is_whole = first + 4 <= count;
  u64 bits = 0;
  if (is_whole) {
    bits = static_cast<u64>(load_i64(row + 2 * first));
  } else {
    for (int index = first; index < count; ++index) {
      const u64 element = load_byte(row + 2 * index) | load_byte(row + 2 * index + 1) << 8;
      bits |= element << 16 * (index - first);
    }
  }
  float values[4];
  float amax = LEAST_AMAX;
#pragma unroll
  for (int index = 0; index < 4; ++index) {
    values[index] = as_float(static_cast<u32>(bits >> 16 * index) << 16);
    amax = max_f32(amax, as_float(as_bits(values[index]) & 0x7fffffffu));
  }
  amax = max_lanes(amax);
  const float factor = divide_f32(amax, MAX_E4M3), inverse = divide_f32(1.f, factor);
  u32 codes = 0;
#pragma unroll
  for (int index = 0; index < 4; index += 2)
    codes |= to_e4m3x2(multiply_f32(values[index], inverse),
                       multiply_f32(values[index + 1], inverse))
             << 8 * index;
  if (is_whole)
    store_i32(out + first, static_cast<i32>(codes));
  else
    for (int index = first; index < count; ++index)
      store_byte(out + index, codes >> 8 * (index - first) & 0xffu);
  if (lane_id() == 0) store_i32(scale, static_cast<i32>(as_bits(factor)));
}

// Quantises a row: `hidden` BF16 elements to e4m3 at `out`, scales of its groups at `scales`.
EP_FN void quantize_row(i64 out, i64 scales, i64 row, i64 hidden) {
  sync_warp();
  for (i64 group = 0; group * GROUP_ELEMENTS < hidden; ++group) {
    const i64 first = group * GROUP_ELEMENTS, left = hidden - first;
    quantize_group(out + first, scales + 4 * group, row + 2 * first,
                   left < GROUP_ELEMENTS ? static_cast<int>(left) : GROUP_ELEMENTS);
  }
  sync_warp();
}

}  // namespace ep
