// Sixteen lanes as one 512-bit vector; needs AVX-512 F, BW, DQ, VL and VNNI.
#pragma once

#ifdef OCTAVO_SIMDE
#include "avx512_simulated.h"
#else
#include <immintrin.h>
#endif

#include <cstring>

#include "bf16.h"

namespace octavo::cpu {
namespace {

constexpr int kRows = 12;      // rows whose sums over one panel stay in registers
constexpr int kPairRows = 12;  // rows whose sums over two panels do
constexpr int kUnpackingRows = 12;  // rows at a time where lines are unpacked anew for each of them
constexpr bool kVnni = true;

struct F {
  __m512 v;
};
struct I {
  __m512i v;
};

inline F set1(float x) { return {_mm512_set1_ps(x)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x.v); }
inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F fma(float a, F b, F c) { return {_mm512_fmadd_ps(_mm512_set1_ps(a), b.v, c.v)}; }
// The second where either is NaN.
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline bool any_nan(F a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q); }
// x in lanes first .. last - 1, `other` elsewhere; either may lie outside 0 .. 16.
inline unsigned lanes_below(int end) { return end <= 0 ? 0u : end >= 16 ? 0xffffu : (1u << end) - 1; }
inline F between(F x, int first, int last, float other) {
  const unsigned kept = lanes_below(last) & ~lanes_below(first);
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(kept), _mm512_set1_ps(other), x.v)};
}
// x * 2^n for whole n with normal results; n below -126 gives 0.
inline F scale_by_power(F x, F n) {
  const __mmask16 kept = _mm512_cmp_ps_mask(n.v, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  return {_mm512_maskz_scalef_ps(kept, x.v, n.v)};
}
inline float top_of(F a) {
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline I izero() { return {_mm512_setzero_si512()}; }
inline I iload(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void istore(int32_t* p, I x) { _mm512_storeu_si512(p, x.v); }
inline I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }

inline F load(const Bf16* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}
// Rounded to nearest even, a NaN made quiet.
inline void store(Bf16* p, F x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i near = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_blend_epi32(nan, near, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

// A line of sixteen pairs of bfloat16: the first of each pair, and the second.
inline F first_of(const Bf16* line) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(line), 16))}; }
inline F second_of(const Bf16* line) {
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(line), mask))};
}

// --- whole numbers -------------------------------------------------------------------------------------------

// Activations of a product with int8 weights: one byte each, 128 above their value, because the instruction
// multiplies unsigned by signed; 128 times the sum of a weight's column is taken off the result.
using Quant = uint8_t;
inline size_t quant_place(size_t k) { return k; }
inline Quant to_quant(int value) { return static_cast<Quant>(value + 128); }

inline __m512i four_everywhere(const void* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}
inline I four_of(const Quant* x) { return {four_everywhere(x)}; }
inline I dot_four(I sum, I line, I four) {
#if defined(__GNUC__) && !defined(__clang__) && !defined(OCTAVO_SIMDE)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(four.v), "v"(line.v));  // GCC copies the sums of its intrinsic to and fro
  return sum;
#else
  return {_mm512_dpbusd_epi32(sum.v, four.v, line.v)};
#endif
}

// Products with int4 weights.
using Shorts = I;
inline Shorts shorts_zero() { return izero(); }
inline I low_nibbles(const uint8_t* line) {
  return {_mm512_and_si512(_mm512_loadu_si512(line), _mm512_set1_epi8(15))};
}
inline I high_nibbles(const uint8_t* line) {
  return {_mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(line), 4), _mm512_set1_epi8(15))};
}
// Four bits of every lane, from bit `shift` on.
template <int shift>
inline F nibbles(const uint8_t* line) {
  const __m512i moved = _mm512_srli_epi32(_mm512_loadu_si512(line), shift);
  return {_mm512_cvtepi32_ps(_mm512_and_si512(moved, _mm512_set1_epi32(15)))};
}
inline Shorts dot_nibbles(Shorts sum, I codes, const int8_t* x) {
  return {_mm512_dpbusd_epi32(sum.v, codes.v, four_everywhere(x))};
}
inline I widen(Shorts sum) { return sum; }

}  // namespace
}  // namespace octavo::cpu
