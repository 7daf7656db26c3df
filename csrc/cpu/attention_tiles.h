// Attention on tile registers: heads of a multiple of 32 bfloat16 numbers; others go the way of attention.h. Include
// after attention.h and a tiles file.
//
// Sixteen rows meet sixteen positions at a time: scores take in 32 numbers of the width with each product, weighted values
// the sixteen positions of a panel, weights rounded to bfloat16. Rows of one tile may see different positions, and what a
// row may not see must not touch it, not even times nought. So a panel is added only to rows that take in all of it; the
// one panel at either end of a row's positions that it sees in part goes the way of vectors. Which is which depends on
// the row's position alone.
#pragma once

#include "attention.h"

namespace octavo::cpu {
namespace {

constexpr size_t kTileInputs = 32;  // of the width, in one product of scores

inline bool in_tiles(const Attention& call) { return call.kv.number == Number::bf16 && call.kv.head_dim % kTileInputs == 0; }

// Registers: 0 to 3 sums; 4 queries and 6 keys, whole; 5 weights and 7 values, of sixteen positions.
inline TileShapes attention_shapes() {
  TileShapes shapes;
  shapes.row_bytes[5] = kPanel * sizeof(Bf16);
  shapes.rows[7] = kPanel / 2;
  return shapes;
}

// Scores of sixteen rows in panels from .. to - 1, four at most.
inline void tile_scores(const Tile<Bf16>& tile, size_t row, size_t from, size_t to, size_t dim, const AttentionScratch& s) {
  const Bf16* queries = reinterpret_cast<const Bf16*>(s.queries) + row * dim;
  const size_t num = to - from;
  OCTAVO_TILE_ZERO(0);
  OCTAVO_TILE_ZERO(1);
  OCTAVO_TILE_ZERO(2);
  OCTAVO_TILE_ZERO(3);
  for (size_t d = 0; d < dim; d += kTileInputs) {
    const auto keys = [&](size_t j) { return tile.keys[from + j] + d * kPanel; };
    OCTAVO_TILE_LOAD(4, queries + d, dim * sizeof(Bf16));
    OCTAVO_TILE_LOAD(6, keys(0), kLineBytes);
    OCTAVO_TILE_BF16(0, 4, 6);
    if (num < 2) continue;
    OCTAVO_TILE_LOAD(6, keys(1), kLineBytes);
    OCTAVO_TILE_BF16(1, 4, 6);
    if (num < 3) continue;
    OCTAVO_TILE_LOAD(6, keys(2), kLineBytes);
    OCTAVO_TILE_BF16(2, 4, 6);
    if (num < 4) continue;
    OCTAVO_TILE_LOAD(6, keys(3), kLineBytes);
    OCTAVO_TILE_BF16(3, 4, 6);
  }
  float* scores = s.scores + row * kTile + from * kPanel;
  OCTAVO_TILE_STORE(0, scores, kTile * sizeof(float));
  if (num > 1) OCTAVO_TILE_STORE(1, scores + kPanel, kTile * sizeof(float));
  if (num > 2) OCTAVO_TILE_STORE(2, scores + 2 * kPanel, kTile * sizeof(float));
  if (num > 3) OCTAVO_TILE_STORE(3, scores + 3 * kPanel, kTile * sizeof(float));
}

// Rows first .. last - 1 of the sixteen from `row` on take in all of panels from .. to - 1.
inline void tile_values(const Tile<Bf16>& tile, size_t row, size_t first, size_t last, size_t from, size_t to, size_t dim,
                        const AttentionScratch& s) {
  const Bf16* weights = s.weights + row * kTile;
  const bool all = first == row && last == row + kPanel;
  alignas(64) float aside[kPanel][4 * kPanel];
  for (size_t d = 0; d < dim; d += 4 * kPanel) {
    const bool wide = d + 4 * kPanel <= dim;  // else half of that: dim is a multiple of 32
    float* sums = s.sums + row * dim + d;
    OCTAVO_TILE_LOAD(0, sums, dim * sizeof(float));
    OCTAVO_TILE_LOAD(1, sums + kPanel, dim * sizeof(float));
    if (wide) {
      OCTAVO_TILE_LOAD(2, sums + 2 * kPanel, dim * sizeof(float));
      OCTAVO_TILE_LOAD(3, sums + 3 * kPanel, dim * sizeof(float));
    }
    for (size_t j = from; j < to; ++j) {
      const auto values = [&](size_t p) { return tile.values[j] + (d / kPanel + p) * tile.value_step; };
      OCTAVO_TILE_LOAD(5, weights + j * kPanel, kTile * sizeof(Bf16));
      OCTAVO_TILE_LOAD(7, values(0), kLineBytes);
      OCTAVO_TILE_BF16(0, 5, 7);
      OCTAVO_TILE_LOAD(7, values(1), kLineBytes);
      OCTAVO_TILE_BF16(1, 5, 7);
      if (!wide) continue;
      OCTAVO_TILE_LOAD(7, values(2), kLineBytes);
      OCTAVO_TILE_BF16(2, 5, 7);
      OCTAVO_TILE_LOAD(7, values(3), kLineBytes);
      OCTAVO_TILE_BF16(3, 5, 7);
    }
    float* to_sums = all ? sums : aside[0];
    const size_t stride = (all ? dim : 4 * kPanel) * sizeof(float);
    OCTAVO_TILE_STORE(0, to_sums, stride);
    OCTAVO_TILE_STORE(1, to_sums + kPanel, stride);
    if (wide) {
      OCTAVO_TILE_STORE(2, to_sums + 2 * kPanel, stride);
      OCTAVO_TILE_STORE(3, to_sums + 3 * kPanel, stride);
    }
    if (!all)
      for (size_t r = first; r < last; ++r)
        std::memcpy(s.sums + r * dim + d, aside[r - row], (wide ? 4 : 2) * kPanel * sizeof(float));
  }
}

struct OnTiles {
  static void load_queries(const Attention& call, const AttentionItem& item, const AttentionScratch& s) {
    const size_t D = call.kv.head_dim, group = call.num_heads / call.kv.num_kv_heads;
    Bf16* queries = reinterpret_cast<Bf16*>(s.queries);
    for (size_t i = 0; i < item.num_rows; ++i)  // the heads of a group are neighbours
      std::memcpy(queries + i * group * D, static_cast<const Bf16*>(call.q) + (item.row + i) * call.q_stride + item.head * group * D,
                  group * D * sizeof(Bf16));
  }

  template <class SpanOf>
  static void take(const Attention& call, const Tile<Bf16>& tile, const Tile<Bf16>& next, size_t, size_t, size_t row, size_t end,
                   const SpanOf& span_of, const AttentionScratch& s) {
    const size_t dim = call.kv.head_dim;
    const size_t from = span_of(row).first / kPanel, to = (span_of(end - 1).last + kPanel - 1) / kPanel;
    const F scale = set1(call.scale);
    FetchTile<Bf16> fetch(next, dim, end - row);
    for (size_t r = row; r < end; r += kPanel) tile_scores(tile, r, from, to, dim, s);
    for (size_t r = row; r < end; ++r) {
      fetch();
      float* scores = s.scores + r * kTile;
      for (size_t j = from; j < to; ++j) store(scores + j * kPanel, load(scores + j * kPanel) * scale);
      weigh(r, span_of(r), from, to, s);
      for (size_t j = from; j < to; ++j) store(s.weights + r * kTile + j * kPanel, load(scores + j * kPanel));
      const Whole whole(span_of(r));
      if (whole.from < whole.to) {
        add_values_alone(tile, r, whole.own.first, whole.from * kPanel, dim, s);
        fade(r, dim, s);
      } else {
        add_values_alone(tile, r, whole.own.first, whole.own.last, dim, s);
      }
    }
    for (size_t r = row; r < end; r += kPanel) add_whole_panels(tile, r, r + kPanel < end ? r + kPanel : end, span_of, dim, s);
    for (size_t r = row; r < end; ++r) {
      const Whole whole(span_of(r));
      if (whole.from < whole.to) add_values_alone(tile, r, whole.to * kPanel, whole.own.last, dim, s);
    }
  }

 private:
  // Panels that a row takes in whole: from .. to - 1.
  struct Whole {
    Span own;
    size_t from, to;
    explicit Whole(const Span& own) : own(own), from((own.first + kPanel - 1) / kPanel), to(own.last / kPanel) {}
    bool has(size_t j) const { return j >= from && j < to; }
  };

  // What a row held before fades, if it has not yet.
  static void fade(size_t row, size_t dim, const AttentionScratch& s) {
    if (s.fades[row] == 1.0f) return;
    const F by = set1(s.fades[row]);
    for (size_t d = 0; d < dim; d += kPanel) store(s.sums + row * dim + d, load(s.sums + row * dim + d) * by);
    s.fades[row] = 1.0f;
  }

  // Both ends of what rows take in grow from row to row, so rows that share a panel are neighbours.
  template <class SpanOf>
  static void add_whole_panels(const Tile<Bf16>& tile, size_t row, size_t end, const SpanOf& span_of, size_t dim,
                               const AttentionScratch& s) {
    const auto sharing = [&](size_t j) {
      size_t first = row;
      while (first < end && !Whole(span_of(first)).has(j)) ++first;
      size_t last = first;
      while (last < end && Whole(span_of(last)).has(j)) ++last;
      return Span{first, last};
    };
    const size_t to = span_of(end - 1).last / kPanel;
    for (size_t j = span_of(row).first / kPanel; j < to;) {
      const Span rows = sharing(j);
      const size_t from = j++;
      const auto same = [&](const Span& other) { return other.first == rows.first && other.last == rows.last; };
      while (j < to && same(sharing(j))) ++j;
      if (rows.first < rows.last) tile_values(tile, row, rows.first, rows.last, from, j, dim, s);
    }
  }
};

void tile_attention(const Attention& call, const AttentionItem& item, char* scratch) {
  if (!in_tiles(call)) return attention(call, item, scratch);
  const Tiles in_use(attention_shapes());
  attention_as<Bf16, OnTiles>(call, item, scratch);
}

}  // namespace
}  // namespace octavo::cpu
