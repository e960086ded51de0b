// e4m3 as GPUs convert to it, by looking for the nearest code; `fp8.cuh` computes it.
#pragma once

#ifdef EP_HOST_FP8
#define EP_HAS_FP8 1

namespace ep {

EP_FN double host_e4m3_value(int code) {
  const int exponent = code >> 3, mantissa = code & 7;
  return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
}
EP_FN u32 host_e4m3(float value) {
  constexpr int LARGEST = 0x7e;
  if (std::isnan(value)) return 0x7fu;
  const double size = std::fabs(static_cast<double>(value));
  // Codes are in order of their values; the value lies between `below` and the next.
  int below = 0, above = LARGEST;
  if (size >= host_e4m3_value(LARGEST)) below = LARGEST;
  while (above - below > 1) {
    const int middle = (below + above) / 2;
    (host_e4m3_value(middle) <= size ? below : above) = middle;
  }
  u32 code = static_cast<u32>(below);
  if (below < above) {
    const double left = size - host_e4m3_value(below), right = host_e4m3_value(above) - size;
    if (right < left || (right == left && below % 2 == 1)) code = static_cast<u32>(above);
  }
  return code | (std::signbit(value) ? 0x80u : 0u);
}
EP_FN u32 to_e4m3x2(float low, float high) { return host_e4m3(low) | host_e4m3(high) << 8; }

}  // namespace ep

#endif
