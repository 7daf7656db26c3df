// Matrix products of bfloat16 and int4 weights with rows of bfloat16; the other formats go the way of linear.h. Include
// after linear.h and product_pairs.h.
#pragma once

#include "linear.h"
#include "linear_pair_codes.h"

namespace octavo::cpu {
namespace {

inline bool in_pairs(const Weight& w) { return w.format == Format::bf16; }

size_t pair_row_bytes(const Weight& w) {
  if (in_codes(w)) return CodesInPairs::layout(w).bytes;
  // One line more: rows must not all fall on the same cache set.
  return in_pairs(w) ? round_up(w.padded_in() * sizeof(Bf16), kLineBytes) + kLineBytes : row_bytes(w);
}

void pair_prepare(const Weight& w, Number number, const void* x, size_t x_stride, char* out, size_t out_stride, size_t num_rows) {
  if (in_codes(w)) return coded_prepare<CodesInPairs>(w, number, x, x_stride, out, out_stride, num_rows);
  if (!in_pairs(w)) return prepare(w, number, x, x_stride, out, out_stride, num_rows);
  for (size_t t = 0; t < num_rows; ++t, out += out_stride) {
    Bf16* to = reinterpret_cast<Bf16*>(out);
    if (number == Number::bf16) {
      std::memcpy(to, static_cast<const Bf16*>(x) + t * x_stride, w.num_in * sizeof(Bf16));
    } else {
      const float* from = static_cast<const float*>(x) + t * x_stride;
      for (size_t i = 0; i < w.num_in; i += kPanel) store_some(to + i, load_some(from + i, w.num_in - i), w.num_in - i);
    }
    std::memset(to + w.num_in, 0, (w.padded_in() - w.num_in) * sizeof(Bf16));
  }
}

template <class T, int M, int P, class Ask>
inline void pair_sums(const Linear& call, size_t row, size_t panel, const Ask& ask) {
  const Weight& w = *call.weight;
  const Bf16* lines[P];
  for (int p = 0; p < P; ++p) lines[p] = reinterpret_cast<const Bf16*>(w.panel(panel + p));
  F y[M][P];
  clear<M, P>(y);
  pair_product<M, P>(reinterpret_cast<const Bf16*>(call.x + row * call.x_stride), call.x_stride / sizeof(Bf16), lines,
                     w.padded_in() / 2, y, ask);
  for (int m = 0; m < M; ++m) finish<T, P>(call, row + m, panel, y[m]);
}

template <class T>
void pair_linear_as(const Linear& call, size_t first, size_t last, size_t first_row, size_t last_row) {
  const Weight& w = *call.weight;
  const size_t runs = num_runs(last_row - first_row, kPairRows);
  const bool in_parts = runs > 1 && runs <= AskPart::kMostRuns;
  // Two panels at a time, so that they stay near while rows pass.
  for (size_t panel = first; panel < last; panel += 2) {
    const size_t end = panel + 2 < last ? panel + 2 : last;
    size_t run = 0;
    even_runs(first_row, last_row, kPairRows, [&](size_t row, size_t rows) {
      with_rows<kPairRows>(rows, [&](auto m) {
        const auto sums = [&](const auto& ask) {
          if (end - panel == 2)
            pair_sums<T, m.value, 2>(call, row, panel, ask);
          else
            pair_sums<T, m.value, 1>(call, row, panel, ask);
        };
        if (in_parts)
          sums(AskPart(w.panel(panel), (end - panel) * w.panel_bytes(), run, runs));
        else
          sums(AskAhead());
      });
      ++run;
    });
  }
}

void pair_linear(const Linear& call, size_t first, size_t last, size_t first_row, size_t last_row, char* scratch) {
  if (in_codes(*call.weight))
    coded_linear<CodesInPairs>(call, first, last, first_row, last_row);
  else if (!in_pairs(*call.weight))
    linear(call, first, last, first_row, last_row, scratch);
  else if (call.number == Number::bf16)
    pair_linear_as<Bf16>(call, first, last, first_row, last_row);
  else
    pair_linear_as<float>(call, first, last, first_row, last_row);
}

}  // namespace
}  // namespace octavo::cpu
