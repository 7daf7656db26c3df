// Matrix products of int4 weights with rows of bfloat16, by products of pairs: codes are exact in bfloat16, and a table
// makes two of them at a time. Include after linear_codes.h and product_pairs.h.
#pragma once

#include "linear_codes.h"
#include "product_pairs.h"

namespace octavo::cpu {
namespace {

struct CodesInPairs {
  static constexpr int kMostRows = kPairRows;

  static CodedRow layout(const Weight& w) { return CodedRow(w, sizeof(Bf16)); }

  // A line holds eight inputs; its words, moved by 0, 4, 8 and 12 bits, those of (0, 2), (4, 6), (1, 3), (5, 7).
  static void put(char* out, size_t i, F some) {
    constexpr size_t kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    Bf16 natural[kPanel];
    store(natural, some);
    Bf16* to = reinterpret_cast<Bf16*>(out) + i;
    for (size_t j = 0; j < kPanel; ++j) to[j] = natural[j / 8 * 8 + kOrder[j % 8]];
  }

  template <int M, int P>
  OCTAVO_INLINE static void sums(const Weight& w, const char* x, size_t x_stride, size_t panel, F (&y)[M][P]) {
    const CodedRow row = layout(w);
    const size_t panel_bytes = w.panel_bytes(), group_bytes = (w.group / 8 + 1) * kLineBytes;
    const char* at = w.panel(panel);
    for (size_t g = 0; g < w.num_groups(); ++g, at += group_bytes) {
      F part[M][P];
      repeat<M * P>(OCTAVO_EACH(i) { part[i / P][i % P] = set1(0.0f); });
      const char* end = at + group_bytes;
      const Bf16* from = reinterpret_cast<const Bf16*>(x) + g * w.group;
      for (const char* line = at + kLineBytes; line < end; line += kLineBytes, from += 8) {
        repeat<P>(OCTAVO_EACH(p) { AskAhead()(p, line + p * panel_bytes); });
        repeat<4>(OCTAVO_EACH(step) {
          constexpr int number = decltype(step)::value;
          Pairs codes[P];
          repeat<P>(OCTAVO_EACH(p) { codes[p] = code_pairs<4 * number>(line + p * panel_bytes); });
          repeat<M>(OCTAVO_EACH(m) {
            const Pairs wide = pair_everywhere(from + m * (x_stride / sizeof(Bf16)) + 2 * number);
            repeat<P>(OCTAVO_EACH(p) { part[m][p] = dot_pairs(part[m][p], codes[p], wide); });
          });
        });
      }
      F scale[P], least[P];
      repeat<P>(OCTAVO_EACH(p) {
        const Bf16* head = reinterpret_cast<const Bf16*>(at + p * panel_bytes);
        scale[p] = first_of(head);
        least[p] = second_of(head);
      });
      repeat<M>(OCTAVO_EACH(m) {
        const F sum = set1(row.sums(x + m * x_stride)[g]);
        repeat<P>(OCTAVO_EACH(p) { y[m][p] = fma(sum, least[p], fma(scale[p], part[m][p], y[m][p])); });
      });
    }
  }
};

}  // namespace
}  // namespace octavo::cpu
