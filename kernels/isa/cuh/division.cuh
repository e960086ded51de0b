// Division of int64 as Python has it, rounded down. A GPU has none in hardware: what fits in 31 bits,
// as nearly all does, is divided by a few 32-bit instructions.
#pragma once

#include "machine.cuh"

namespace ep {

EP_FN bool is_narrow(i64 a, i64 b) { return static_cast<u64>(a | b) >> 31 == 0; }

EP_FN i64 floor_div(i64 a, i64 b) {
  if (is_narrow(a, b)) return static_cast<u32>(a) / static_cast<u32>(b);
  const i64 quotient = divide_wide(a, b);
  return quotient * b != a && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

EP_FN i64 modulo(i64 a, i64 b) {
  if (is_narrow(a, b)) return static_cast<u32>(a) % static_cast<u32>(b);
  const i64 rest = a - divide_wide(a, b) * b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

}  // namespace ep
