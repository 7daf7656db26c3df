// Sixteen pairs of bfloat16 as one 512-bit vector, and their products; needs AVX512_BF16 besides what lanes_avx512.h does.
// Include after that.
#pragma once

#include "bf16.h"

namespace octavo::cpu {
namespace {

struct Pairs {
  __m512i v;
};

inline Pairs load_pairs(const Bf16* line) { return {_mm512_loadu_si512(line)}; }
inline Pairs pair_everywhere(const Bf16* x) { return {four_everywhere(x)}; }
// Only the first of each pair, or the second; the other is 0.
inline Pairs firsts(Pairs line) { return {_mm512_and_si512(line.v, _mm512_set1_epi32(0xffff))}; }
inline Pairs seconds(Pairs line) { return {_mm512_and_si512(line.v, _mm512_set1_epi32(static_cast<int>(0xffff0000u)))}; }

// The four bits from bit `shift` on of every sixteen, as bfloat16.
template <int shift>
inline Pairs code_pairs(const char* line) {
  // Of a word's five lowest bits, which choose, the fifth belongs to another code.
  alignas(64) static constexpr uint16_t kCodes[32] = {
      0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170,
      0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
  const __m512i moved = _mm512_srli_epi32(_mm512_loadu_si512(line), shift);
  return {_mm512_permutexvar_epi16(moved, _mm512_loadu_si512(kCodes))};
}

#ifdef OCTAVO_SIMDE
inline F dot_pairs(F sum, Pairs line, Pairs x) { return {simulated_dpbf16_ps(sum.v, line.v, x.v)}; }
inline void store_weights(Bf16* p, F x) { store(p, x); }
#else
// sum + second * second, then + first * first: two multiply-adds, each rounded to nearest even, with numbers below the
// normal ones taken, and given, as 0 (Intel SDM volume 2, VDPBF16PS).
inline F dot_pairs(F sum, Pairs line, Pairs x) {
  return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(line.v), reinterpret_cast<__m512bh>(x.v))};
}
// Rounded to nearest even; numbers below the normal ones become 0, as products would take them anyway.
inline void store_weights(Bf16* p, F x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v)));
}
#endif

}  // namespace
}  // namespace octavo::cpu
