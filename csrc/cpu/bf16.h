// bfloat16 as storage: the upper half of a float32.
#pragma once

#include <cstdint>
#include <cstring>

namespace octavo::cpu {

struct Bf16 {
  uint16_t bits;
};

// Of each file its own copy: files are compiled for different instruction sets.
namespace {

inline float widen(float x) { return x; }

inline float widen(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

template <class T>
T narrow(float x);

template <>
inline float narrow<float>(float x) {
  return x;
}

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
template <>
inline Bf16 narrow<Bf16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(is_nan ? quiet : rounded)};
}

}  // namespace
}  // namespace octavo::cpu
