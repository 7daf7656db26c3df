// Matrix products of int4 weights with rows of bfloat16: in every group the codes times the row are summed in float32, then
// scaled, and the minimum times the sum of the row's group is added; groups in order. Include after finish.h.
#pragma once

#include "finish.h"

namespace octavo::cpu {
namespace {

inline bool in_codes(const Weight& w) { return w.format == Format::int4 && !w.whole_rows; }

// A prepared row: elements of `item` bytes, then the sum of each group.
struct CodedRow {
  size_t elements_bytes, bytes;
  CodedRow(const Weight& w, size_t item) : elements_bytes(w.padded_in() * item) {
    // One line more: rows must not all fall on the same cache set.
    bytes = round_up(elements_bytes + w.num_groups() * sizeof(float), kLineBytes) + kLineBytes;
  }
  const float* sums(const char* row) const { return reinterpret_cast<const float*>(row + elements_bytes); }
};

// Rows rounded to bfloat16; `put(out, i, some)` stores sixteen of them, from input i on.
template <class T, class Put>
inline void prepare_coded(const Weight& w, const CodedRow& layout, const T* x, size_t x_stride, char* out, size_t out_stride,
                          size_t num_rows, const Put& put) {
  for (size_t t = 0; t < num_rows; ++t, x += x_stride, out += out_stride) {
    float* sums = reinterpret_cast<float*>(out + layout.elements_bytes);
    for (size_t g = 0; g < w.num_groups(); ++g) {
      F sum = set1(0.0f);
      for (size_t i = g * w.group; i < (g + 1) * w.group; i += kPanel) {
        const F some = i < w.num_in ? rounded_to<Bf16>(load_some(x + i, w.num_in - i)) : set1(0.0f);
        put(out, i, some);
        sum = sum + some;
      }
      sums[g] = sum_of(sum);
    }
  }
}

// Rows as floats, and codes made floats on the way.
struct CodesAsFloats {
  static constexpr int kMostRows = kUnpackingRows;

  static CodedRow layout(const Weight& w) { return CodedRow(w, sizeof(float)); }
  static void put(char* out, size_t i, F some) { store(reinterpret_cast<float*>(out) + i, some); }

  template <int M, int P>
  OCTAVO_INLINE static void sums(const Weight& w, const char* x, size_t x_stride, size_t panel, F (&y)[M][P]) {
    const CodedRow row = layout(w);
    repeat<P>(OCTAVO_EACH(p) {
      const char* at = w.panel(panel + p);
      for (size_t g = 0; g < w.num_groups(); ++g, at += (w.group / 8 + 1) * kLineBytes) {
        F part[M];
        repeat<M>(OCTAVO_EACH(m) { part[m] = set1(0.0f); });
        for (size_t k = 0; k < w.group; k += 8) {
          const uint8_t* line = reinterpret_cast<const uint8_t*>(at) + (k / 8 + 1) * kLineBytes;
          AskAhead()(0, line);
          const float* from = reinterpret_cast<const float*>(x) + g * w.group + k;
          repeat<8>(OCTAVO_EACH(j) {
            constexpr int number = decltype(j)::value;
            const F codes = nibbles<number < 4 ? 8 * number : 8 * number - 28>(line);
            repeat<M>(OCTAVO_EACH(m) { part[m] = fma(from[m * (x_stride / sizeof(float)) + number], codes, part[m]); });
          });
        }
        const F scale = first_of(reinterpret_cast<const Bf16*>(at)), least = second_of(reinterpret_cast<const Bf16*>(at));
        repeat<M>(OCTAVO_EACH(m) {
          y[m][p] = fma(scale, part[m], y[m][p]);
          y[m][p] = fma(row.sums(x + m * x_stride)[g], least, y[m][p]);
        });
      }
    });
  }
};

template <class Way>
void coded_prepare(const Weight& w, Number number, const void* x, size_t x_stride, char* out, size_t out_stride, size_t num_rows) {
  if (number == Number::bf16)
    prepare_coded(w, Way::layout(w), static_cast<const Bf16*>(x), x_stride, out, out_stride, num_rows, Way::put);
  else
    prepare_coded(w, Way::layout(w), static_cast<const float*>(x), x_stride, out, out_stride, num_rows, Way::put);
}

template <class T, class Way, int M, int P>
inline void coded_sums(const Linear& call, size_t row, size_t panel) {
  F y[M][P];
  clear<M, P>(y);
  Way::template sums<M, P>(*call.weight, call.x + row * call.x_stride, call.x_stride, panel, y);
  for (int m = 0; m < M; ++m) finish<T, P>(call, row + m, panel, y[m]);
}

template <class T, class Way>
void coded_linear_as(const Linear& call, size_t first, size_t last, size_t first_row, size_t last_row) {
  for (size_t panel = first; panel < last; panel += 2)
    even_runs(first_row, last_row, Way::kMostRows, [&](size_t row, size_t rows) {
      with_rows<Way::kMostRows>(rows, [&](auto m) {
        if (panel + 1 < last)
          coded_sums<T, Way, m.value, 2>(call, row, panel);
        else
          coded_sums<T, Way, m.value, 1>(call, row, panel);
      });
    });
}

template <class Way>
void coded_linear(const Linear& call, size_t first, size_t last, size_t first_row, size_t last_row) {
  if (call.number == Number::bf16)
    coded_linear_as<Bf16, Way>(call, first, last, first_row, last_row);
  else
    coded_linear_as<float, Way>(call, first, last, first_row, last_row);
}

}  // namespace
}  // namespace octavo::cpu
