// Causal attention over paged keys and values. Include after product.h.
//
// Positions are taken in tiles of 64 counted from 0. A row keeps a running peak of its scores, the mass below it and
// the weighted values, and rescales them when a tile raises the peak (online softmax, arXiv 1805.02867; tiles, arXiv
// 2205.14135). After 1024 positions it starts anew, and the parts are merged in order. All of that depends on the
// row's position alone, so rows may come in any company and parts may be computed by any thread.
#pragma once

#include "kv_tiles.h"

namespace octavo::cpu {
namespace {

// Positions of a tile that a row takes in: first .. last - 1. Both grow from row to row.
struct Span {
  size_t first, last;
};

// Scores of M rows in panels j .. j + P - 1 of a tile.
template <int M, int P, class T, class Next>
OCTAVO_INLINE void add_scores(const Tile<T>& tile, const Tile<Next>& next, size_t j, size_t row, size_t head_dim, const AttentionScratch& s) {
  const size_t dim = round_up(head_dim, kPanel);
  F acc[M][P];
  const T* at[P];
  for (int p = 0; p < P; ++p) at[p] = tile.keys[j + p];
  clear<M, P>(acc);
  product<M, P>(s.queries + row * dim, dim, at, 0, head_dim, acc, ask_keys<P>(tile, next, j));
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < P; ++p) store(s.scores + (row + m) * kTile + (j + p) * kPanel, acc[m][p]);
}

// Scores become weights under the row's peak so far; what the row held before is to fade by `fades`.
inline void weigh(size_t row, const Span& span, size_t from, size_t to, const AttentionScratch& s) {
  const float none = -__builtin_inff();
  float* scores = s.scores + row * kTile;
  F top = set1(none);
  for (size_t j = from; j < to; ++j) {
    const int low = static_cast<int>(span.first) - static_cast<int>(j * kPanel);
    const int high = static_cast<int>(span.last) - static_cast<int>(j * kPanel);
    if (low > 0 || high < static_cast<int>(kPanel)) store(scores + j * kPanel, between(load(scores + j * kPanel), low, high, none));
    top = max(top, load(scores + j * kPanel));
  }
  float& peak = s.peaks[row];
  const float raised = top_of(top), now = raised > peak ? raised : peak;
  float fade[kPanel];
  store(fade, exp(set1(peak - now)));
  s.fades[row] = peak == now ? 1.0f : fade[0];
  peak = now;
  F mass = load(s.masses + row * kPanel) * set1(s.fades[row]);
  for (size_t j = from; j < to; ++j) {
    const F weight = exp(load(scores + j * kPanel) - set1(now));
    store(scores + j * kPanel, weight);
    mass = mass + weight;
  }
  store(s.masses + row * kPanel, mass);
}

// M rows take in values of positions first .. last - 1, in panels d .. d + P - 1 of the head's width.
template <int M, int P, class T, class Next>
OCTAVO_INLINE void add_values(const Tile<T>& tile, const Tile<Next>& next, size_t d, size_t row, size_t first, size_t last,
                              size_t dim, const AttentionScratch& s) {
  F acc[M][P];
  float* sums = s.sums + row * dim + d * kPanel;
  repeat<M * P>(OCTAVO_EACH(i) {
    constexpr int m = decltype(i)::value / P, p = decltype(i)::value % P;
    acc[m][p] = load(sums + m * dim + p * kPanel) * set1(s.fades[row + m]);
  });
  for (size_t j = first / kPanel; j * kPanel < last; ++j) {
    const size_t low = first > j * kPanel ? first - j * kPanel : 0;
    const size_t high = last < (j + 1) * kPanel ? last - j * kPanel : kPanel;
    const T* at[P];
    for (int p = 0; p < P; ++p) at[p] = tile.values[j] + (d + p) * tile.value_step;
    product<M, P>(s.scores + row * kTile + j * kPanel + low, kTile, at, low, high, acc, ask_values<P>(tile, next, j));
  }
  repeat<M * P>(OCTAVO_EACH(i) {
    constexpr int m = decltype(i)::value / P, p = decltype(i)::value % P;
    store(sums + m * dim + p * kPanel, acc[m][p]);
  });
}

// One row, all of the head's width; what it held before has faded afterwards.
template <class T>
inline void add_values_alone(const Tile<T>& tile, size_t row, size_t first, size_t last, size_t dim, const AttentionScratch& s) {
  if (first >= last) return;
  size_t d = 0;
  for (; d + 2 <= dim / kPanel; d += 2) add_values<1, 2>(tile, tile, d, row, first, last, dim, s);
  if (d < dim / kPanel) add_values<1, 1>(tile, tile, d, row, first, last, dim, s);
  s.fades[row] = 1.0f;
}

// Rows row .. end - 1 take in a tile. `span_of` gives each row's positions; a row sees nothing of the others'. `next` is
// the tile after this one.
template <class T, class Next, class SpanOf>
OCTAVO_INLINE void take_rows(const Tile<T>& tile, const Tile<Next>& next, size_t row, size_t end, const SpanOf& span_of,
                             size_t head_dim, const AttentionScratch& s) {
  const size_t dim = round_up(head_dim, kPanel), panels = dim / kPanel;
  const size_t from = span_of(row).first / kPanel, to = (span_of(end - 1).last + kPanel - 1) / kPanel;
  const auto blocks = [&](auto&& run) OCTAVO_INLINED { even_runs(row, end, kRows, run); };
  const bool few = end - row <= kPairRows;
  FetchTile<Next> fetch(next, dim, end - row);
  size_t j = from;
  if (few)
    for (; j + 2 <= to; j += 2) with_rows<kPairRows>(end - row, [&](auto m) { add_scores<m.value, 2>(tile, next, j, row, head_dim, s); });
  for (; j < to; ++j)
    blocks([&](size_t r, size_t rows) { with_rows(rows, [&](auto m) { add_scores<m.value, 1>(tile, next, j, r, head_dim, s); }); });
  for (size_t r = row; r < end; ++r) {
    if constexpr (sizeof(T) != sizeof(Next)) fetch();
    weigh(r, span_of(r), from, to, s);
  }
  // Positions that all rows of a block take in are added for all at once; each row adds those before and after alone.
  const auto common = [&](size_t r, size_t rows) { return Span{span_of(r + rows - 1).first, span_of(r).last}; };
  blocks([&](size_t r, size_t rows) {
    const Span both = common(r, rows);
    for (size_t i = r; i < r + rows; ++i) {
      const Span own = span_of(i);
      add_values_alone(tile, i, own.first, both.first < both.last ? both.first : own.last, dim, s);
    }
  });
  size_t d = 0;
  if (few) {
    const Span both = common(row, end - row);
    if (both.first < both.last)
      for (; d + 2 <= panels; d += 2)
        with_rows<kPairRows>(end - row, [&](auto m) { add_values<m.value, 2>(tile, next, d, row, both.first, both.last, dim, s); });
    else
      d = panels;
  }
  for (; d < panels; ++d)
    blocks([&](size_t r, size_t rows) {
      const Span both = common(r, rows);
      if (both.first < both.last)
        with_rows(rows, [&](auto m) { add_values<m.value, 1>(tile, next, d, r, both.first, both.last, dim, s); });
    });
  blocks([&](size_t r, size_t rows) {
    const Span both = common(r, rows);
    for (size_t i = r; i < r + rows && both.first < both.last; ++i) {
      s.fades[i] = 1.0f;
      add_values_alone(tile, i, both.last, span_of(i).last, dim, s);
    }
  });
}

// How an item's rows meet keys and values: as vectors of any number.
template <class T>
struct AsVectors {
  static void load_queries(const Attention& call, const AttentionItem& item, const AttentionScratch& s) {
    const size_t D = call.kv.head_dim, dim = call.kv.padded_dim(), group = call.num_heads / call.kv.num_kv_heads;
    for (size_t i = 0; i < item.num_rows; ++i)
      for (size_t h = 0; h < group; ++h) {
        const T* q = static_cast<const T*>(call.q) + (item.row + i) * call.q_stride + (item.head * group + h) * D;
        float* out = s.queries + (i * group + h) * dim;
        for (size_t d = 0; d < dim; d += kPanel)
          store(out + d, d < D ? load_some(q + d, D - d) * set1(call.scale) : set1(0.0f));
      }
  }

  // Rows row .. end - 1 take in a tile of which positions first .. last - 1 may be read.
  template <class SpanOf>
  static void take(const Attention& call, const Tile<T>& tile, const Tile<T>& next, size_t first, size_t last, size_t row,
                   size_t end, const SpanOf& span_of, const AttentionScratch& s) {
    const size_t head_dim = call.kv.head_dim;
    if constexpr (sizeof(T) == 2) {
      if (end - row > 2 * kRows) {
        const Tile<float> wide = unpack_tile(tile, first, last, call.kv.padded_dim(), s);
        return take_rows(wide, next, row, end, span_of, head_dim, s);
      }
    }
    take_rows(tile, next, row, end, span_of, head_dim, s);
  }
};

// One row's result: weighted values over mass; what is not finite becomes NaN.
template <class T>
inline void write_row(const Attention& call, const AttentionItem& item, size_t row, const float* sums, float mass) {
  const size_t D = call.kv.head_dim, group = call.num_heads / call.kv.num_kv_heads;
  T* out = static_cast<T*>(call.out) + (item.row + row / group) * call.num_heads * D + (item.head * group + row % group) * D;
  for (size_t d = 0; d < D; d += kPanel) {
    const F y = load(sums + d) / set1(mass);
    store_some(out + d, y + (y - y), D - d);
  }
}

// A finished part joins what came before it.
inline void merge_part(float* sums, float& peak, float& mass, const float* more, float more_peak, float more_mass, size_t dim) {
  const float now = more_peak > peak ? more_peak : peak;
  float fade[kPanel], more_fade[kPanel];
  store(fade, exp(set1(peak - now)));
  store(more_fade, exp(set1(more_peak - now)));
  for (size_t d = 0; d < dim; d += kPanel)
    store(sums + d, load(sums + d) * set1(fade[0]) + load(more + d) * set1(more_fade[0]));
  mass = mass * fade[0] + more_mass * more_fade[0];
  peak = now;
}

template <class T, class Way>
void attention_as(const Attention& call, const AttentionItem& item, char* memory) {
  const AttentionScratch s(call, item.num_rows, memory);
  const size_t dim = call.kv.padded_dim(), group = call.num_heads / call.kv.num_kv_heads;
  const size_t rows = item.num_rows * group, position = static_cast<size_t>(item.position);
  const size_t end = position + item.num_rows, tiles = (end + kTile - 1) / kTile;
  const size_t window = call.window > 0 ? static_cast<size_t>(call.window) : end;
  const auto lowest = [&](size_t p) { return p + 1 > window ? p + 1 - window : 0; };
  Way::load_queries(call, item, s);
  const size_t splits = (tiles * kTile + kSplit - 1) / kSplit;
  const size_t first_split = item.num_splits ? item.split : lowest(position) / kSplit;
  const size_t last_split = item.num_splits ? item.split + 1 : splits;
  // Sums of the parts so far, where one item takes in several parts.
  float* total = item.partial;
  const size_t record = kPartial + dim;
  for (size_t split = first_split; split < last_split; ++split) {
    std::memset(s.sums, 0, rows * dim * sizeof(float));
    std::memset(s.masses, 0, rows * kPanel * sizeof(float));
    for (size_t r = 0; r < rows; ++r) s.peaks[r] = -__builtin_inff();
    const size_t tile_end = (split + 1) * kSplit / kTile < tiles ? (split + 1) * kSplit / kTile : tiles;
    size_t tile = split * kSplit / kTile;
    if (lowest(position) / kTile > tile) tile = lowest(position) / kTile;
    for (; tile < tile_end; ++tile) {
      const size_t start = tile * kTile, stop = start + kTile;
      const size_t read_from = lowest(position) > start ? lowest(position) - start : 0;
      const size_t read_to = end < stop ? end - start : kTile;
      const Tile<T> found = find_tile<T>(call, item, tile, read_from, read_to, s);
      Tile<T> next{};
      if (tile + 1 < tile_end && call.kv.block_tokens >= kPanel)
        next = find_tile<T>(call, item, tile + 1, 0, end - stop < kTile ? end - stop : kTile, s);
      // Rows that take in any of the tile are neighbours: from .. to - 1.
      size_t from = start > position ? start - position : 0;
      size_t to = stop + window > position + 1 ? stop + window - position - 1 : 0;  // p + 1 - window < stop
      if (to > item.num_rows) to = item.num_rows;
      if (to <= from) continue;
      const auto span_of = [&](size_t r) {
        const size_t p = position + r / group;
        return Span{lowest(p) > start ? lowest(p) - start : 0, p + 1 < stop ? p + 1 - start : kTile};
      };
      Way::take(call, found, next, read_from, read_to, from * group, to * group, span_of, s);
    }
    const bool is_only = !item.num_splits && last_split - first_split == 1;
    for (size_t r = 0; r < rows; ++r) {
      const float mass = sum_of(load(s.masses + r * kPanel));
      const float* sums = s.sums + r * dim;
      if (is_only) {
        write_row<T>(call, item, r, sums, mass);
      } else if (item.num_splits) {
        float* part = total + (r * item.num_splits + item.split) * record;
        part[0] = s.peaks[r];
        part[1] = mass;
        std::memcpy(part + kPartial, sums, dim * sizeof(float));
      } else {
        float* whole = total + r * record;
        if (split == first_split) {
          whole[0] = s.peaks[r];
          whole[1] = mass;
          std::memcpy(whole + kPartial, sums, dim * sizeof(float));
        } else {
          merge_part(whole + kPartial, whole[0], whole[1], sums, s.peaks[r], mass, dim);
        }
        if (split + 1 == last_split) write_row<T>(call, item, r, whole + kPartial, whole[1]);
      }
    }
  }
}

void attention(const Attention& call, const AttentionItem& item, char* scratch) {
  if (call.kv.number == Number::bf16)
    attention_as<Bf16, AsVectors<Bf16>>(call, item, scratch);
  else
    attention_as<float, AsVectors<float>>(call, item, scratch);
}

// The parts item.split .. item.num_splits - 1 of its rows, in order.
void merge(const Attention& call, const AttentionItem& item) {
  const size_t dim = call.kv.padded_dim(), group = call.num_heads / call.kv.num_kv_heads, record = kPartial + dim;
  for (size_t r = 0; r < item.num_rows * group; ++r) {
    float* parts = item.partial + r * item.num_splits * record;
    float* whole = parts + item.split * record;
    for (size_t split = item.split + 1; split < item.num_splits; ++split) {
      const float* more = parts + split * record;
      merge_part(whole + kPartial, whole[0], whole[1], more + kPartial, more[0], more[1], dim);
    }
    if (call.kv.number == Number::bf16)
      write_row<Bf16>(call, item, r, whole + kPartial, whole[1]);
    else
      write_row<float>(call, item, r, whole + kPartial, whole[1]);
  }
}

}  // namespace
}  // namespace octavo::cpu
