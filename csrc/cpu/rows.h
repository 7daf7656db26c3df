// What happens to rows between products: norms, rotary positions with the KV write, the peak of a row of logits.
// Include after product.h.
#pragma once

#include "product.h"

namespace octavo::cpu {
namespace {

// Element i always goes to lane i % 16.
template <class T>
inline float sum_of_squares(const T* x, size_t width) {
  F sums = set1(0.0f);
  for (size_t i = 0; i < width; i += kPanel) {
    const F some = load_some(x + i, width - i);
    sums = sums + some * some;
  }
  return sum_of(sums);
}

template <class T>
inline void norm_row(const T* x, const T* weight, T* out, size_t width, float eps) {
  const float mean = sum_of_squares(x, width) / static_cast<float>(width);
  const F scale = set1(1.0f / __builtin_sqrtf(mean + eps));
  for (size_t i = 0; i < width; i += kPanel) {
    const F normed = rounded_to<T>(load_some(x + i, width - i) * scale);
    store_some(out + i, normed * load_some(weight + i, width - i), width - i);
  }
}

template <class T>
void norm_as(const Norm& call, size_t first_row, size_t last_row) {
  for (size_t t = first_row; t < last_row; ++t)
    norm_row(static_cast<const T*>(call.x) + t * call.width, static_cast<const T*>(call.weight),
             static_cast<T*>(call.out) + t * call.width, call.width, call.eps);
}

void norm(const Norm& call, size_t first_row, size_t last_row) {
  if (call.number == Number::bf16)
    norm_as<Bf16>(call, first_row, last_row);
  else
    norm_as<float>(call, first_row, last_row);
}

// Pairs (i, i + D / 2) of one head, in place, in float32, rounded once.
template <class T>
inline void rotate(T* x, const float* cos, const float* sin, size_t half) {
  for (size_t i = 0; i < half; i += kPanel) {
    const size_t n = half - i;
    const F c = load_some(cos + i, n), s = load_some(sin + i, n);
    const F first = load_some(x + i, n), second = load_some(x + half + i, n);
    store_some(x + i, first * c - second * s, n);
    store_some(x + half + i, second * c + first * s, n);
  }
}

template <class T>
void rope_as(const Rope& call, size_t first_row, size_t last_row) {
  const KvLayout& kv = call.kv;
  const size_t D = kv.head_dim, H = call.num_heads, K = kv.num_kv_heads, width = (H + 2 * K) * D;
  for (size_t t = first_row; t < last_row; ++t) {
    T* row = static_cast<T*>(call.qkv) + t * width;
    const size_t at = static_cast<size_t>(call.positions[t]) * (D / 2);
    for (size_t h = 0; h < H + K; ++h) {
      T* head = row + h * D;
      const void* weight = h < H ? call.q_norm : call.k_norm;
      if (weight) norm_row(head, static_cast<const T*>(weight), head, D, call.eps);
      rotate(head, call.cos + at, call.sin + at, D / 2);
    }
    const size_t slot = static_cast<size_t>(call.slots[t]), token = slot % kv.block_tokens;
    T* block = static_cast<T*>(call.blocks) + slot / kv.block_tokens * kv.block_items();
    const size_t pair = kv.pair(), key_step = kv.lanes() * pair, value_step = kPanel * kv.padded_tokens();
    for (size_t h = 0; h < K; ++h) {
      const T* k = row + (H + h) * D;
      T* keys = block + kv.key(h, token, 0);
      for (size_t d = 0; d + pair <= D; d += pair, keys += key_step)
        for (size_t i = 0; i < pair; ++i) keys[i] = k[d + i];
      const T* v = row + (H + K + h) * D;
      T* values = block + kv.value(h, token, 0);
      for (size_t d = 0; d < D; d += kPanel, values += value_step) {
        const size_t n = D - d < kPanel ? D - d : kPanel;
        for (size_t i = 0; i < n; ++i) values[i * pair] = v[d + i];
      }
    }
  }
}

void rope(const Rope& call, size_t first_row, size_t last_row) {
  if (call.kv.number == Number::bf16)
    rope_as<Bf16>(call, first_row, last_row);
  else
    rope_as<float>(call, first_row, last_row);
}

// One pass for the top, one for the mass below it. `at` is the lowest index of the top; 0 where there is none.
Peak peak(const float* x, size_t n) {
  F tops = set1(-__builtin_inff()), odd = set1(0.0f);
  for (size_t i = 0; i < n; i += kPanel) {
    const F some = n - i >= kPanel ? load(x + i) : between(load_some(x + i, n - i), 0, static_cast<int>(n - i), x[i]);
    tops = max(tops, some);
    odd = fma(some, set1(0.0f), odd);  // NaN for NaN and for infinities
  }
  Peak found{top_of(tops), 0, 0.0};
  const float spoilt = sum_of(odd);
  if (spoilt != spoilt)
    for (size_t i = 0; i < n; ++i)
      if (x[i] != x[i]) return {x[i], static_cast<int32_t>(i), 0.0};
  for (size_t i = 0; i < n; ++i)
    if (x[i] == found.top) {
      found.at = static_cast<int32_t>(i);
      break;
    }
  if (found.top - found.top != 0.0f) return found;  // infinite: no mass can be named
  F mass = set1(0.0f);
  const F top = set1(found.top);
  for (size_t i = 0; i < n; i += kPanel) {
    const size_t left = n - i;
    const F e = exp(load_some(x + i, left) - top);
    mass = mass + (left >= kPanel ? e : between(e, 0, static_cast<int>(left), 0.0f));
  }
  found.mass = sum_of(mass);
  return found;
}

}  // namespace
}  // namespace octavo::cpu
