// Sixteen lanes as two 256-bit vectors.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "bf16.h"

namespace octavo::cpu {
namespace {

constexpr int kRows = 6;      // rows whose sums over one panel stay in registers
constexpr int kPairRows = 2;  // rows whose sums over two panels do
constexpr int kUnpackingRows = 5;  // rows at a time where lines are unpacked anew for each of them
constexpr bool kVnni = false;

struct F {
  __m256 lo, hi;
};
struct I {
  __m256i lo, hi;
};

inline F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
inline F operator+(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F operator-(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F operator*(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F operator/(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline F fma(float a, F b, F c) {
  const __m256 wide = _mm256_set1_ps(a);
  return {_mm256_fmadd_ps(wide, b.lo, c.lo), _mm256_fmadd_ps(wide, b.hi, c.hi)};
}
// The second where either is NaN.
inline F max(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F min(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F abs(F a) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask)};
}
inline F round(F a) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, nearest), _mm256_round_ps(a.hi, nearest)};
}
inline bool any_nan(F a) {
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(a.lo, a.lo, _CMP_UNORD_Q), _mm256_cmp_ps(a.hi, a.hi, _CMP_UNORD_Q)));
}
// x in lanes first .. last - 1, `other` elsewhere.
inline F between(F x, int first, int last, float other) {
  const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
  const __m256i from = _mm256_set1_epi32(first - 1), to = _mm256_set1_epi32(last);
  const auto pick = [&](__m256 v, __m256i lane) {
    const __m256i in = _mm256_and_si256(_mm256_cmpgt_epi32(lane, from), _mm256_cmpgt_epi32(to, lane));
    return _mm256_blendv_ps(_mm256_set1_ps(other), v, _mm256_castsi256_ps(in));
  };
  return {pick(x.lo, low), pick(x.hi, high)};
}
// x * 2^n for whole n with normal results; n below -126 gives 0.
inline F scale_by_power(F x, F n) {
  const auto scaled = [](__m256 v, __m256 e) {
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(e), _mm256_set1_epi32(127)), 23);
    const __m256 kept = _mm256_cmp_ps(e, _mm256_set1_ps(-126.0f), _CMP_GE_OQ);
    return _mm256_mul_ps(v, _mm256_and_ps(kept, _mm256_castsi256_ps(power)));
  };
  return {scaled(x.lo, n.lo), scaled(x.hi, n.hi)};
}
inline float top_of(F a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline I izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I iload(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
inline void istore(int32_t* p, I x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.hi);
}
inline I operator+(I a, I b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline F to_float(I a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline I to_int(F a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }

inline F widen_line(__m256i halves) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(halves)), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(halves, 1)), 16))};
}
inline F load(const Bf16* p) { return widen_line(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

// The upper halves of eight floats, rounded to nearest even, a NaN made quiet; in the low half of each lane.
inline __m256i rounded(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(near, quiet, nan), 16);
}
inline void store(Bf16* p, F x) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded(x.lo), rounded(x.hi)), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
}

// A line of sixteen pairs of bfloat16: the first of each pair, and the second.
inline F first_of(const Bf16* line) {
  const I both = iload(reinterpret_cast<const int32_t*>(line));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(both.lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(both.hi, 16))};
}
inline F second_of(const Bf16* line) {
  const I both = iload(reinterpret_cast<const int32_t*>(line));
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(both.lo, mask)), _mm256_castsi256_ps(_mm256_and_si256(both.hi, mask))};
}

// --- whole numbers -------------------------------------------------------------------------------------------

// Activations of a product with int8 weights: four neighbours k0 k1 k2 k3 lie as k0 k2 k1 k3, sixteen bits each.
using Quant = int16_t;
inline size_t quant_place(size_t k) { return (k & ~size_t{3}) + ((k & 1) << 1) + ((k >> 1) & 1); }
inline Quant to_quant(int value) { return static_cast<Quant>(value); }

// Half of sixteen fours of int8, widened: k0 and k2 of each four (half 0), or k1 and k3.
inline I half_of(const int8_t* line, int half) {
  I both = iload(reinterpret_cast<const int32_t*>(line));
  if (half == 0) both = {_mm256_slli_epi16(both.lo, 8), _mm256_slli_epi16(both.hi, 8)};
  return {_mm256_srai_epi16(both.lo, 8), _mm256_srai_epi16(both.hi, 8)};
}
inline I dot_half(I sum, I weights, const Quant* x) {
  int32_t pair;
  std::memcpy(&pair, x, sizeof pair);
  const __m256i wide = _mm256_set1_epi32(pair);
  return {_mm256_add_epi32(sum.lo, _mm256_madd_epi16(weights.lo, wide)),
          _mm256_add_epi32(sum.hi, _mm256_madd_epi16(weights.hi, wide))};
}

// Products with int4 weights: sums of four products in sixteen bits, two to a lane, for up to eight fours.
struct Shorts {
  __m256i lo, hi;
};
inline Shorts shorts_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I low_nibbles(const uint8_t* line) {
  const I both = iload(reinterpret_cast<const int32_t*>(line));
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(both.lo, mask), _mm256_and_si256(both.hi, mask)};
}
inline I high_nibbles(const uint8_t* line) {
  const I both = iload(reinterpret_cast<const int32_t*>(line));
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(both.lo, 4), mask), _mm256_and_si256(_mm256_srli_epi16(both.hi, 4), mask)};
}
// Four bits of every lane, from bit `shift` on.
template <int shift>
inline F nibbles(const uint8_t* line) {
  const I both = iload(reinterpret_cast<const int32_t*>(line));
  const __m256i mask = _mm256_set1_epi32(15);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(both.lo, shift), mask)),
          _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(both.hi, shift), mask))};
}
inline Shorts dot_nibbles(Shorts sum, I codes, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  const __m256i wide = _mm256_set1_epi32(four);
  return {_mm256_add_epi16(sum.lo, _mm256_maddubs_epi16(codes.lo, wide)),
          _mm256_add_epi16(sum.hi, _mm256_maddubs_epi16(codes.hi, wide))};
}
inline I widen(Shorts sum) {
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_madd_epi16(sum.lo, ones), _mm256_madd_epi16(sum.hi, ones)};
}


}  // namespace
}  // namespace octavo::cpu
