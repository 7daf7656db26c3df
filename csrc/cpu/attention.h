// Causal attention over paged keys and values. Include after product.h.
//
// Positions are taken in tiles of 64 counted from 0. A row keeps a running peak of its scores, the mass below it and
// the weighted values, and rescales them when a tile raises the peak (online softmax, arXiv 1805.02867; tiles, arXiv
// 2205.14135). After 1024 positions it starts anew, and the parts are merged in order. All of that depends on the
// row's position alone, so rows may come in any company and parts may be computed by any thread.
#pragma once

#include "product.h"

namespace octavo::cpu {
namespace {

// Scratch of one item: queries and sums of its rows, and keys and values of a tile where they must be gathered or
// are unpacked because many rows need them.
struct AttentionScratch {
  float *queries, *sums, *masses, *peaks, *scores, *keys, *values;
  char *gathered_keys, *gathered_values;
  size_t bytes;

  AttentionScratch(const Attention& call, size_t num_rows, char* at) {
    const size_t dim = call.kv.padded_dim(), rows = num_rows * (call.num_heads / call.kv.num_kv_heads);
    char* const start = at;
    const auto take = [&](size_t n) {
      char* taken = at;
      at += round_up(n, kLineBytes);
      return taken;
    };
    const auto floats = [&](size_t n) { return reinterpret_cast<float*>(take(n * sizeof(float))); };
    queries = floats(rows * dim);
    sums = floats(rows * dim);
    masses = floats(rows * kPanel);
    peaks = floats(rows);
    scores = floats(kRows * kTile);
    keys = floats(dim * kTile);
    values = floats(dim * kTile);
    gathered_keys = take(dim * kTile * call.kv.item());
    gathered_values = take(dim * kTile * call.kv.item());
    bytes = static_cast<size_t>(at - start);
  }
};

size_t attention_scratch(const Attention& call, size_t num_rows) {
  return AttentionScratch(call, num_rows, nullptr).bytes;
}

// Where a tile's keys and values lie: four panels of 16 positions; of values each with `value_step` elements from one
// panel of the head's width to the next.
template <class T>
struct Tile {
  const T* keys[kTile / kPanel];
  const T* values[kTile / kPanel];
  size_t value_step;
};

// Positions first .. last - 1 of `tile` will be read; others may belong to nobody.
template <class T>
Tile<T> find_tile(const Attention& call, const AttentionItem& item, size_t tile, size_t first, size_t last,
                  const AttentionScratch& scratch) {
  const KvLayout& kv = call.kv;
  const size_t P = kv.block_tokens, dim = kv.padded_dim(), pair = kv.pair();
  const int32_t* table = call.tables + item.seq * call.table_width;
  const T* blocks = static_cast<const T*>(call.blocks);
  Tile<T> found{};
  const size_t from = first / kPanel, to = (last + kPanel - 1) / kPanel;
  if (P >= kPanel) {
    found.value_step = kPanel * kv.padded_tokens();
    for (size_t j = from; j < to; ++j) {
      const size_t position = tile * kTile + j * kPanel;
      const T* block = blocks + static_cast<size_t>(table[position / P]) * kv.block_items();
      found.keys[j] = block + kv.key(item.head, position % P, 0);
      found.values[j] = block + kv.value(item.head, position % P, 0);
    }
    return found;
  }
  found.value_step = kPanel * kPanel;
  T* keys = reinterpret_cast<T*>(scratch.gathered_keys);
  T* values = reinterpret_cast<T*>(scratch.gathered_values);
  for (size_t j = from; j < to; ++j, keys += dim * kPanel, values += dim * kPanel) {
    found.keys[j] = keys;
    found.values[j] = values;
    for (size_t lane = 0; lane < kPanel; ++lane) {
      const size_t in_tile = j * kPanel + lane, position = tile * kTile + in_tile;
      const bool is_read = in_tile >= first && in_tile < last;
      const T* block = is_read ? blocks + static_cast<size_t>(table[position / P]) * kv.block_items() : nullptr;
      for (size_t d = 0; d < dim; ++d) {
        const T zero{};
        keys[(d / pair * kPanel + lane) * pair + d % pair] = block ? block[kv.key(item.head, position % P, d)] : zero;
        values[d / kPanel * found.value_step + (lane / pair * kPanel + d % kPanel) * pair + lane % pair] =
            block ? block[kv.value(item.head, position % P, d)] : zero;
      }
    }
  }
  return found;
}

// The same as floats, keys [4][D][16] and values [D / 16][64][16]; widening changes no bit.
inline Tile<float> unpack_tile(const Tile<Bf16>& tile, size_t dim, const AttentionScratch& scratch) {
  Tile<float> wide{};
  wide.value_step = kTile * kPanel;
  for (size_t j = 0; j < kTile / kPanel; ++j) {
    float* keys = scratch.keys + j * dim * kPanel;
    wide.keys[j] = keys;
    for (size_t d = 0; d < dim; d += 2) {
      store(keys + d * kPanel, first_of(tile.keys[j] + d * kPanel));
      store(keys + (d + 1) * kPanel, second_of(tile.keys[j] + d * kPanel));
    }
    wide.values[j] = scratch.values + j * kPanel * kPanel;
    for (size_t d = 0; d < dim; d += kPanel)
      for (size_t t = 0; t < kPanel; t += 2) {
        const Bf16* line = tile.values[j] + d / kPanel * tile.value_step + t * kPanel;
        float* to = scratch.values + d / kPanel * wide.value_step + (j * kPanel + t) * kPanel;
        store(to, first_of(line));
        store(to + kPanel, second_of(line));
      }
  }
  return wide;
}

// M rows of the item, from `row` on, take in positions first .. last - 1 of a tile.
template <int M, class T>
OCTAVO_INLINE void take_tile(const Tile<T>& tile, size_t row, size_t first, size_t last, size_t head_dim,
                      const AttentionScratch& s) {
  const size_t dim = round_up(head_dim, kPanel);
  const float* q = s.queries + row * dim;
  const size_t from = first / kPanel, to = (last + kPanel - 1) / kPanel;
  size_t j = from;
  if constexpr (M <= kPairRows)
    for (; j + 2 <= to; j += 2) {
      F acc[M][2];
      clear<M, 2>(acc);
      const T* const at[2] = {tile.keys[j], tile.keys[j + 1]};
      product<M, 2>(q, dim, at, 0, head_dim, acc);
      for (int m = 0; m < M; ++m)
        for (int p = 0; p < 2; ++p) store(s.scores + m * kTile + (j + p) * kPanel, acc[m][p]);
    }
  for (; j < to; ++j) {
    F acc[M][1];
    clear<M, 1>(acc);
    const T* const at[1] = {tile.keys[j]};
    product<M, 1>(q, dim, at, 0, head_dim, acc);
    for (int m = 0; m < M; ++m) store(s.scores + m * kTile + j * kPanel, acc[m][0]);
  }
  const float none = -__builtin_inff();
  float fading[M];
  for (int m = 0; m < M; ++m) {
    float* scores = s.scores + m * kTile;
    F top = set1(none);
    for (j = from; j < to; ++j) {
      const int low = static_cast<int>(first) - static_cast<int>(j * kPanel);
      const int high = static_cast<int>(last) - static_cast<int>(j * kPanel);
      if (low > 0 || high < static_cast<int>(kPanel)) {
        const F seen = between(load(scores + j * kPanel), low, high, none);
        store(scores + j * kPanel, seen);
      }
      top = max(top, load(scores + j * kPanel));
    }
    float& peak = s.peaks[row + m];
    const float raised = top_of(top), now = raised > peak ? raised : peak;
    float fade[kPanel];
    store(fade, exp(set1(peak - now)));
    fading[m] = peak == now ? 1.0f : fade[0];
    peak = now;
    F mass = load(s.masses + (row + m) * kPanel) * set1(fading[m]);
    for (j = from; j < to; ++j) {
      const F weight = exp(load(scores + j * kPanel) - set1(now));
      store(scores + j * kPanel, weight);
      mass = mass + weight;
    }
    store(s.masses + (row + m) * kPanel, mass);
  }
  for (size_t d = 0; d < dim / kPanel; ++d) {
    F acc[M][1];
    float* sums = s.sums + row * dim + d * kPanel;
    repeat<M>(OCTAVO_EACH(m) { acc[m][0] = load(sums + m * dim) * set1(fading[m]); });
    for (j = from; j < to; ++j) {
      const size_t low = first > j * kPanel ? first - j * kPanel : 0;
      const size_t high = last < (j + 1) * kPanel ? last - j * kPanel : kPanel;
      const T* const at[1] = {tile.values[j] + d * tile.value_step};
      product<M, 1>(s.scores + j * kPanel + low, kTile, at, low, high, acc);
    }
    repeat<M>(OCTAVO_EACH(m) { store(sums + m * dim, acc[m][0]); });
  }
}

template <class T>
inline void take_rows(const Tile<T>& tile, size_t row, size_t end, size_t first, size_t last, size_t head_dim,
                      const AttentionScratch& s) {
  for (; row < end; row += kRows) {
    const size_t rows = end - row < kRows ? end - row : kRows;
    with_rows(rows, [&](auto m) { take_tile<m.value>(tile, row, first, last, head_dim, s); });
  }
}

template <class T>
void load_queries(const Attention& call, const AttentionItem& item, const AttentionScratch& s) {
  const size_t D = call.kv.head_dim, dim = call.kv.padded_dim(), group = call.num_heads / call.kv.num_kv_heads;
  for (size_t i = 0; i < item.num_rows; ++i)
    for (size_t h = 0; h < group; ++h) {
      const T* q = static_cast<const T*>(call.q) + (item.row + i) * call.q_stride + (item.head * group + h) * D;
      float* out = s.queries + (i * group + h) * dim;
      for (size_t d = 0; d < dim; d += kPanel)
        store(out + d, d < D ? load_some(q + d, D - d) * set1(call.scale) : set1(0.0f));
    }
}

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

template <class T>
void attention_as(const Attention& call, const AttentionItem& item, char* memory) {
  const AttentionScratch s(call, item.num_rows, memory);
  const size_t dim = call.kv.padded_dim(), group = call.num_heads / call.kv.num_kv_heads;
  const size_t rows = item.num_rows * group, position = static_cast<size_t>(item.position);
  const size_t end = position + item.num_rows, tiles = (end + kTile - 1) / kTile;
  const size_t window = call.window > 0 ? static_cast<size_t>(call.window) : end;
  const auto lowest = [&](size_t p) { return p + 1 > window ? p + 1 - window : 0; };
  load_queries<T>(call, item, s);
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
      // Rows whose windows and positions take in the whole tile are neighbours: whole_from .. whole_to - 1.
      size_t whole_from = stop - 1 > position ? stop - 1 - position : 0;
      size_t whole_to = start + window > position ? start + window - position : 0;  // p - window < start
      if (whole_from > item.num_rows) whole_from = item.num_rows;
      if (whole_to > item.num_rows) whole_to = item.num_rows;
      if (whole_to < whole_from) whole_to = whole_from;
      const auto apart = [&](size_t i) {
        const size_t p = position + i;
        if (p < start || lowest(p) >= stop) return;
        const size_t first = lowest(p) > start ? lowest(p) - start : 0, last = p + 1 < stop ? p + 1 - start : kTile;
        take_rows(found, i * group, (i + 1) * group, first, last, call.kv.head_dim, s);
      };
      for (size_t i = 0; i < whole_from; ++i) apart(i);
      if (whole_to > whole_from) {
        if constexpr (sizeof(T) == 2) {
          if ((whole_to - whole_from) * group > 2 * kRows)
            take_rows(unpack_tile(found, dim, s), whole_from * group, whole_to * group, 0, kTile, call.kv.head_dim, s);
          else
            take_rows(found, whole_from * group, whole_to * group, 0, kTile, call.kv.head_dim, s);
        } else {
          take_rows(found, whole_from * group, whole_to * group, 0, kTile, call.kv.head_dim, s);
        }
      }
      for (size_t i = whole_to; i < item.num_rows; ++i) apart(i);
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
    attention_as<Bf16>(call, item, scratch);
  else
    attention_as<float>(call, item, scratch);
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
