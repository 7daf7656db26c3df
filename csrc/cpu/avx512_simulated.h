// AVX-512 in terms of narrower instructions, so that lanes_avx512.h can be tested on processors without it: SIMDe's
// (Debian's libsimde-dev), and the few that its releases lack. Built where OCTAVO_SIMDE is on; slow.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace octavo::cpu {
namespace {

// Every lane of x on its own.
template <class To, class From, class Vector, class Each>
inline To simulated(const Vector& x, Each&& each) {
  using Lane = decltype(each(From{}, 0));
  static_assert(sizeof(Vector) == 16 * sizeof(From) && sizeof(To) == 16 * sizeof(Lane), "sixteen lanes");
  From from[16];
  Lane to[16];
  std::memcpy(from, &x, sizeof from);
  for (int i = 0; i < 16; ++i) to[i] = each(from[i], i);
  To made;
  std::memcpy(&made, to, sizeof made);
  return made;
}

// Rounded as the processor is set to, which is to nearest even.
inline __m512i simulated_cvtps_epi32(__m512 x) {
  return simulated<__m512i, float>(x, [](float lane, int) { return static_cast<int32_t>(_mm_cvtss_si32(_mm_set_ss(lane))); });
}
inline __m512 simulated_cvtepi32_ps(__m512i x) {
  return simulated<__m512, int32_t>(x, [](int32_t lane, int) { return static_cast<float>(lane); });
}
inline __m512i simulated_cvtepu16_epi32(__m256i x) {
  return simulated<__m512i, uint16_t>(x, [](uint16_t lane, int) { return static_cast<uint32_t>(lane); });
}
inline __m256i simulated_cvtepi32_epi16(__m512i x) {
  return simulated<__m256i, uint32_t>(x, [](uint32_t lane, int) { return static_cast<uint16_t>(lane); });
}

// Two multiply-adds in every lane, of the second of each pair and then of the first, with numbers below the normal ones
// taken, and given, as 0 (Intel SDM volume 2, VDPBF16PS).
inline __m512 simulated_dpbf16_ps(__m512 sum, __m512i line, __m512i x) {
  float from[16];
  uint32_t pairs[16];
  std::memcpy(from, &sum, sizeof from);
  std::memcpy(pairs, &x, sizeof pairs);
  const auto normal = [](float value) { return std::fabs(value) < std::numeric_limits<float>::min() ? std::copysign(0.0f, value) : value; };
  const auto number = [&](uint32_t upper_half) {
    float value;
    std::memcpy(&value, &upper_half, sizeof value);
    return normal(value);
  };
  return simulated<__m512, uint32_t>(line, [&](uint32_t pair, int i) {
    const float second = normal(std::fma(number(pair & 0xffff0000u), number(pairs[i] & 0xffff0000u), normal(from[i])));
    return normal(std::fma(number(pair << 16), number(pairs[i] << 16), second));
  });
}

#define _mm512_cvtps_epi32 simulated_cvtps_epi32
#define _mm512_cvtepi32_ps simulated_cvtepi32_ps
#define _mm512_cvtepu16_epi32 simulated_cvtepu16_epi32
#define _mm512_cvtepi32_epi16 simulated_cvtepi32_epi16

}  // namespace
}  // namespace octavo::cpu
