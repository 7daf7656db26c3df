// Sixteen lanes in plain C++, for processors without a file of their own. Compilers make vectors of the loops.
#pragma once

#include <cmath>
#include <cstring>

#include "bf16.h"

namespace octavo::cpu {
namespace {

constexpr int kRows = 4;      // rows whose sums over one panel are kept together
constexpr int kPairRows = 2;  // rows whose sums over two panels are
constexpr int kUnpackingRows = 4;  // rows at a time where lines are unpacked anew for each of them
constexpr bool kVnni = false;

struct F {
  float v[16];
};
struct I {
  int32_t v[16];
};

template <class Function>
inline F each(Function&& value) {
  F out;
  for (int lane = 0; lane < 16; ++lane) out.v[lane] = value(lane);
  return out;
}
template <class Function>
inline I each_int(Function&& value) {
  I out;
  for (int lane = 0; lane < 16; ++lane) out.v[lane] = value(lane);
  return out;
}

inline F set1(float x) {
  return each([&](int) { return x; });
}
inline F load(const float* p) {
  F out;
  std::memcpy(&out, p, sizeof out);
  return out;
}
inline void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
inline F operator+(F a, F b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline F operator-(F a, F b) {
  return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline F operator*(F a, F b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline F operator/(F a, F b) {
  return each([&](int i) { return a.v[i] / b.v[i]; });
}
inline F fma(F a, F b, F c) {
  return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline F fma(float a, F b, F c) {
  return each([&](int i) { return a * b.v[i] + c.v[i]; });
}
// The second where either is NaN.
inline F max(F a, F b) {
  return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F min(F a, F b) {
  return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F abs(F a) {
  return each([&](int i) { return std::fabs(a.v[i]); });
}
inline F round(F a) {
  return each([&](int i) { return std::nearbyint(a.v[i]); });
}
inline bool any_nan(F a) {
  bool found = false;
  for (float x : a.v) found |= x != x;
  return found;
}
// x in lanes first .. last - 1, `other` elsewhere.
inline F between(F x, int first, int last, float other) {
  return each([&](int i) { return i >= first && i < last ? x.v[i] : other; });
}
// x * 2^n for whole n with normal results; n below -126 gives 0.
inline F scale_by_power(F x, F n) {
  return each([&](int i) {
    if (!(n.v[i] >= -126.0f)) return 0.0f * x.v[i];
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return x.v[i] * power;
  });
}
inline float top_of(F a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  return a.v[0];
}

inline I izero() { return I{}; }
inline I iload(const int32_t* p) {
  I out;
  std::memcpy(&out, p, sizeof out);
  return out;
}
inline void istore(int32_t* p, I x) { std::memcpy(p, &x, sizeof x); }
inline I operator+(I a, I b) {
  return each_int([&](int i) { return a.v[i] + b.v[i]; });
}
inline F to_float(I a) {
  return each([&](int i) { return static_cast<float>(a.v[i]); });
}
inline I to_int(F a) {
  return each_int([&](int i) { return static_cast<int32_t>(a.v[i]); });
}

inline F load(const Bf16* p) {
  return each([&](int i) { return widen(p[i]); });
}
inline void store(Bf16* p, F x) {
  for (int lane = 0; lane < 16; ++lane) p[lane] = narrow<Bf16>(x.v[lane]);
}

// A line of sixteen pairs of bfloat16: the first of each pair, and the second.
inline F first_of(const Bf16* line) {
  return each([&](int i) { return widen(line[2 * i]); });
}
inline F second_of(const Bf16* line) {
  return each([&](int i) { return widen(line[2 * i + 1]); });
}

// --- whole numbers -------------------------------------------------------------------------------------------

// Activations of a product with int8 weights: four neighbours k0 k1 k2 k3 lie as k0 k2 k1 k3, sixteen bits each.
using Quant = int16_t;
inline size_t quant_place(size_t k) { return (k & ~size_t{3}) + ((k & 1) << 1) + ((k >> 1) & 1); }
inline Quant to_quant(int value) { return static_cast<Quant>(value); }

// Half of sixteen fours of int8, two to a lane: k0 and k2 of each four (half 0), or k1 and k3.
inline I half_of(const int8_t* line, int half) {
  return each_int([&](int i) {
    const auto low = static_cast<uint16_t>(line[4 * i + half]);
    return static_cast<int32_t>(low | static_cast<uint32_t>(static_cast<uint16_t>(line[4 * i + half + 2])) << 16);
  });
}
inline I dot_half(I sum, I weights, const Quant* x) {
  return each_int([&](int i) {
    const int32_t both = weights.v[i];
    return sum.v[i] + static_cast<int16_t>(both & 0xffff) * x[0] + (both >> 16) * x[1];
  });
}

// Products with int4 weights: sums of four products to a lane.
using Shorts = I;
inline Shorts shorts_zero() { return izero(); }
inline I low_nibbles(const uint8_t* line) {
  return each_int([&](int i) {
    uint32_t four;
    std::memcpy(&four, line + 4 * i, sizeof four);
    return static_cast<int32_t>(four & 0x0f0f0f0fu);
  });
}
inline I high_nibbles(const uint8_t* line) {
  return each_int([&](int i) {
    uint32_t four;
    std::memcpy(&four, line + 4 * i, sizeof four);
    return static_cast<int32_t>(four >> 4 & 0x0f0f0f0fu);
  });
}
// Four bits of every lane, from bit `shift` on.
template <int shift>
inline F nibbles(const uint8_t* line) {
  return each([&](int i) {
    uint32_t four;
    std::memcpy(&four, line + 4 * i, sizeof four);
    return static_cast<float>(four >> shift & 15u);
  });
}
inline Shorts dot_nibbles(Shorts sum, I codes, const int8_t* x) {
  return each_int([&](int i) {
    const auto four = static_cast<uint32_t>(codes.v[i]);
    int32_t total = sum.v[i];
    for (int j = 0; j < 4; ++j) total += static_cast<int32_t>(four >> (8 * j) & 15u) * x[j];
    return total;
  });
}
inline I widen(Shorts sum) { return sum; }

}  // namespace
}  // namespace octavo::cpu
