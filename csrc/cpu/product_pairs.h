// Sums over panels of bfloat16 whose rows are bfloat16 too, a pair of inputs with every step. Include after product.h and a
// pairs file.
//
// acc[m][p] lane n gathers x[m][k + 1] * w[p][k + 1][n], then x[m][k] * w[p][k][n], for k = 0, 2, 4 ...: its bits depend
// neither on the number of rows nor on how k is cut into calls.
#pragma once

#include "product.h"

namespace octavo::cpu {
namespace {

constexpr size_t kPairLine = 2 * kPanel;  // elements of a line

// x  [M] rows, x_stride elements apart
// w  [P] panels; the first line of each belongs to the first pair of x
template <int M, int P, class Ask = AskNothing>
OCTAVO_INLINE void pair_product(const Bf16* x, size_t x_stride, const Bf16* const (&w)[P], size_t num_pairs, F (&acc)[M][P],
                                const Ask& ask = {}) {
  F sums[M][P];
  repeat<M * P>(OCTAVO_EACH(i) { sums[i / P][i % P] = acc[i / P][i % P]; });
  for (size_t k = 0; k < num_pairs; ++k) {
    Pairs lines[P];
    repeat<P>(OCTAVO_EACH(p) { ask(p, w[p] + k * kPairLine); });
    repeat<P>(OCTAVO_EACH(p) { lines[p] = load_pairs(w[p] + k * kPairLine); });
    repeat<M>(OCTAVO_EACH(m) {
      const Pairs wide = pair_everywhere(x + m * x_stride + 2 * k);
      repeat<P>(OCTAVO_EACH(p) { sums[m][p] = dot_pairs(sums[m][p], lines[p], wide); });
    });
  }
  repeat<M * P>(OCTAVO_EACH(i) { acc[i / P][i % P] = sums[i / P][i % P]; });
}

}  // namespace
}  // namespace octavo::cpu
