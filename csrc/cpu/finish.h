// What becomes of a product's sums: bias, rounding, and one of the finishes. Include after product.h.
#pragma once

#include "product.h"

namespace octavo::cpu {
namespace {

template <class T>
inline void finish_panel(const Linear& call, size_t row, size_t panel, F y) {
  const Weight& w = *call.weight;
  if (w.bias) y = y + load(w.bias + panel * kPanel);
  const size_t at = panel * kPanel, n = w.num_out - at;
  if (call.finish == Finish::widen) {
    store_some(static_cast<float*>(call.out) + row * call.out_stride + at, rounded_to<T>(y), n);
    return;
  }
  T* out = static_cast<T*>(call.out) + row * call.out_stride + at;
  if (call.finish == Finish::add) y = rounded_to<T>(y) + load_some(out, n);
  store_some(out, y, n);
}

template <class T>
inline void finish_gate(const Linear& call, size_t row, size_t panel, F gate, F up) {
  const Weight& w = *call.weight;
  if (w.bias) {
    gate = gate + load(w.bias + panel * kPanel);
    up = up + load(w.bias + (panel + 1) * kPanel);
  }
  const size_t at = panel / 2 * kPanel, n = w.num_out / 2 - at;
  T* out = static_cast<T*>(call.out) + row * call.out_stride + at;
  store_some(out, silu<T>(rounded_to<T>(gate)) * rounded_to<T>(up), n);
}

template <class T, int P>
inline void finish(const Linear& call, size_t row, size_t panel, const F (&y)[P]) {
  if (call.finish == Finish::gate) {
    if constexpr (P == 2) finish_gate<T>(call, row, panel, y[0], y[1]);
    return;
  }
  for (int p = 0; p < P; ++p) finish_panel<T>(call, row, panel + p, y[p]);
}

}  // namespace
}  // namespace octavo::cpu
