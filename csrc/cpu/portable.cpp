// Kernels for any processor, in plain C++ that compilers turn into vectors by themselves.

#include <cmath>

#include "kernels.h"

namespace octavo::cpu {
namespace {

constexpr size_t kLanes = 16;

// Sum of squares over 16 interleaved lanes, folded pairwise: element i always goes to lane i % 16.
template <class T>
float sum_of_squares(const T* row, size_t width) {
  float lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= width; i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float x = widen(row[i + lane]);
      lanes[lane] += x * x;
    }
  for (size_t lane = 0; i + lane < width; ++lane) {
    const float x = widen(row[i + lane]);
    lanes[lane] += x * x;
  }
  for (size_t half = kLanes / 2; half > 0; half /= 2)
    for (size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

}  // namespace

template <class T>
void rms_norm(const T* x, const T* weight, float eps, T* out, size_t num_rows, size_t width) {
  for (size_t t = 0; t < num_rows; ++t, x += width, out += width) {
    const float mean = sum_of_squares(x, width) / static_cast<float>(width);
    const float scale = 1.0f / std::sqrt(mean + eps);
    for (size_t i = 0; i < width; ++i) {
      const float normed = widen(narrow<T>(widen(x[i]) * scale));
      out[i] = narrow<T>(normed * widen(weight[i]));
    }
  }
}

template void rms_norm<float>(const float*, const float*, float, float*, size_t, size_t);
template void rms_norm<Bf16>(const Bf16*, const Bf16*, float, Bf16*, size_t, size_t);

}  // namespace octavo::cpu
