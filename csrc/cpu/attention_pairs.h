// Attention over bfloat16 keys and values with bfloat16 queries and weights, by products of pairs: of the width in scores, of
// positions in weighted values. Include after attention.h and product_pairs.h.
//
// A row may see one position of a pair and not the other; what it may not see must not touch it, not even times nought. So
// the pair at either end of a row's positions of which it sees half is added to that row alone, the other half's values
// put to 0. Which pairs these are depends on the row's position alone.
#pragma once

#include "attention.h"
#include "product_pairs.h"

namespace octavo::cpu {
namespace {

struct OnPairs {
  static void load_queries(const Attention& call, const AttentionItem& item, const AttentionScratch& s) {
    const size_t D = call.kv.head_dim, dim = call.kv.padded_dim(), group = call.num_heads / call.kv.num_kv_heads;
    Bf16* to = reinterpret_cast<Bf16*>(s.queries);
    for (size_t i = 0; i < item.num_rows; ++i) {
      const Bf16* q = static_cast<const Bf16*>(call.q) + (item.row + i) * call.q_stride + item.head * group * D;
      for (size_t h = 0; h < group; ++h, q += D, to += dim) std::memcpy(to, q, D * sizeof(Bf16));
    }
  }

  template <class SpanOf>
  static void take(const Attention& call, const Tile<Bf16>& tile, const Tile<Bf16>& next, size_t, size_t, size_t row, size_t end,
                   const SpanOf& span_of, const AttentionScratch& s) {
    const size_t dim = call.kv.padded_dim(), panels = dim / kPanel, pairs = call.kv.head_dim / 2;
    const size_t from = span_of(row).first / kPanel, to = (span_of(end - 1).last + kPanel - 1) / kPanel;
    const auto blocks = [&](auto&& run) OCTAVO_INLINED {
      even_runs(row, end, kPairRows, [&](size_t r, size_t rows) { with_rows<kPairRows>(rows, [&](auto m) { run(m, r); }); });
    };
    // Few rows wait for memory, and ask for the next tile line by line; many ask for it piece by piece meanwhile.
    const bool few = end - row <= kPairRows;
    FetchTile<Bf16> fetch(next, dim, end - row);
    size_t j = from;
    for (; j + 2 <= to; j += 2)
      blocks([&](auto m, size_t r) { scores<m.value, 2>(tile, next, few, j, r, dim, pairs, s); });
    if (j < to) blocks([&](auto m, size_t r) { scores<m.value, 1>(tile, next, few, j, r, dim, pairs, s); });
    with_rows<kTile / kPanel>(to - from, [&](auto n) {
      for (size_t r = row; r < end; ++r) {
        if (!few) fetch();
        weigh<n.value>(r, span_of(r), from, call.scale, s);
      }
    });
    // Pairs that all rows of a block take in whole are added for all at once; each row adds those before and after alone.
    const auto common = [&](size_t r, size_t rows) { return Span{(span_of(r + rows - 1).first + 1) / 2, span_of(r).last / 2}; };
    blocks([&](auto m, size_t r) {
      const Span both = common(r, m.value);
      const bool any = both.first < both.last;
      for (size_t i = r; i < r + m.value; ++i) add_alone(tile, i, span_of(i).first, any ? 2 * both.first : span_of(i).last, dim, s);
      if (!any) return;
      size_t d = 0;
      for (; d + 2 <= panels; d += 2) add_values<m.value, 2>(tile, next, few, d, r, both, dim, s);
      if (d < panels) add_values<m.value, 1>(tile, next, few, d, r, both, dim, s);
      for (size_t i = r; i < r + m.value; ++i) {
        s.fades[i] = 1.0f;
        add_alone(tile, i, 2 * both.last, span_of(i).last, dim, s);
      }
    });
  }

 private:
  template <int M, int P>
  OCTAVO_INLINE static void scores(const Tile<Bf16>& tile, const Tile<Bf16>& next, bool few, size_t j, size_t row, size_t dim,
                                   size_t num_pairs, const AttentionScratch& s) {
    F acc[M][P];
    const Bf16* at[P];
    for (int p = 0; p < P; ++p) at[p] = tile.keys[j + p];
    clear<M, P>(acc);
    const Bf16* queries = reinterpret_cast<const Bf16*>(s.queries) + row * dim;
    if (few)
      pair_product<M, P>(queries, dim, at, num_pairs, acc, ask_keys<P>(tile, next, j));
    else
      pair_product<M, P>(queries, dim, at, num_pairs, acc);
    for (int m = 0; m < M; ++m)
      for (int p = 0; p < P; ++p) store(s.scores + (row + m) * kTile + (j + p) * kPanel, acc[m][p]);
  }

  // Scores of N panels become weights under the row's peak so far; what the row held before is to fade by `fades`.
  template <int N>
  OCTAVO_INLINE static void weigh(size_t row, const Span& span, size_t from, float scale, const AttentionScratch& s) {
    const float none = -__builtin_inff();
    const float* scores = s.scores + row * kTile + from * kPanel;
    F x[N], top = set1(none);
    repeat<N>(OCTAVO_EACH(j) {
      x[j] = load(scores + j * kPanel) * set1(scale);
      const int low = static_cast<int>(span.first) - static_cast<int>((from + j) * kPanel);
      const int high = static_cast<int>(span.last) - static_cast<int>((from + j) * kPanel);
      if (low > 0 || high < static_cast<int>(kPanel)) x[j] = between(x[j], low, high, none);
      top = max(top, x[j]);
    });
    float& peak = s.peaks[row];
    const float raised = top_of(top), now = raised > peak ? raised : peak;
    float fade = 1.0f;
    if (peak != now) {
      float fades[kPanel];
      store(fades, exp(set1(peak - now)));
      fade = fades[0];
    }
    s.fades[row] = fade;
    peak = now;
    F mass = load(s.masses + row * kPanel) * set1(fade);
    Bf16* weights = s.weights + row * kTile + from * kPanel;
    repeat<N>(OCTAVO_EACH(j) {
      x[j] = exp(x[j] - set1(now));
      store_weights(weights + j * kPanel, x[j]);
      mass = mass + x[j];
    });
    store(s.masses + row * kPanel, mass);
  }

  template <int M, int P>
  OCTAVO_INLINE static void load_sums(const float* sums, size_t row, size_t dim, const AttentionScratch& s, F (&acc)[M][P]) {
    repeat<M * P>(OCTAVO_EACH(i) {
      constexpr int m = decltype(i)::value / P, p = decltype(i)::value % P;
      acc[m][p] = load(sums + m * dim + p * kPanel) * set1(s.fades[row + m]);
    });
  }
  template <int M, int P>
  OCTAVO_INLINE static void store_sums(float* sums, size_t dim, const F (&acc)[M][P]) {
    repeat<M * P>(OCTAVO_EACH(i) {
      constexpr int m = decltype(i)::value / P, p = decltype(i)::value % P;
      store(sums + m * dim + p * kPanel, acc[m][p]);
    });
  }

  // M rows take in the values of pairs both.first .. both.last - 1, in panels d .. d + P - 1 of the head's width.
  template <int M, int P>
  OCTAVO_INLINE static void add_values(const Tile<Bf16>& tile, const Tile<Bf16>& next, bool few, size_t d, size_t row,
                                       const Span& both, size_t dim, const AttentionScratch& s) {
    F acc[M][P];
    float* sums = s.sums + row * dim + d * kPanel;
    load_sums<M, P>(sums, row, dim, s, acc);
    constexpr size_t kPanelPairs = kPanel / 2;
    for (size_t j = both.first / kPanelPairs; j * kPanelPairs < both.last; ++j) {
      const size_t low = both.first > j * kPanelPairs ? both.first - j * kPanelPairs : 0;
      const size_t high = both.last < (j + 1) * kPanelPairs ? both.last - j * kPanelPairs : kPanelPairs;
      const Bf16* at[P];
      for (int p = 0; p < P; ++p) at[p] = tile.values[j] + (d + p) * tile.value_step + low * kPairLine;
      const Bf16* weights = s.weights + row * kTile + j * kPanel + 2 * low;
      if (few)
        pair_product<M, P>(weights, kTile, at, high - low, acc, ask_values<P>(tile, next, j));
      else
        pair_product<M, P>(weights, kTile, at, high - low, acc);
    }
    store_sums<M, P>(sums, dim, acc);
  }

  // One row takes in positions first .. last - 1, all of the head's width; what it held before has faded afterwards.
  static void add_alone(const Tile<Bf16>& tile, size_t row, size_t first, size_t last, size_t dim, const AttentionScratch& s) {
    if (first >= last) return;
    size_t d = 0;
    for (; d + 4 <= dim / kPanel; d += 4) add_alone<4>(tile, row, first, last, d, dim, s);
    for (; d < dim / kPanel; ++d) add_alone<1>(tile, row, first, last, d, dim, s);
    s.fades[row] = 1.0f;
  }
  template <int P>
  OCTAVO_INLINE static void add_alone(const Tile<Bf16>& tile, size_t row, size_t first, size_t last, size_t d, size_t dim,
                                      const AttentionScratch& s) {
    F acc[1][P];
    float* sums = s.sums + row * dim + d * kPanel;
    load_sums<1, P>(sums, row, dim, s, acc);
    for (size_t t = first / 2 * 2; t < last; t += 2) {
      const Pairs wide = pair_everywhere(s.weights + row * kTile + t);
      const Bf16* line = tile.values[t / kPanel] + d * tile.value_step + t % kPanel * kPanel;
      repeat<P>(OCTAVO_EACH(p) {
        Pairs values = load_pairs(line + p * tile.value_step);
        if (t < first) values = seconds(values);
        if (t + 1 == last) values = firsts(values);
        acc[0][p] = dot_pairs(acc[0][p], values, wide);
      });
    }
    store_sums<1, P>(sums, dim, acc);
  }
};

void pair_attention(const Attention& call, const AttentionItem& item, char* scratch) {
  if (call.kv.number != Number::bf16) return attention(call, item, scratch);
  attention_as<Bf16, OnPairs>(call, item, scratch);
}

}  // namespace
}  // namespace octavo::cpu
