// Where tiles of keys and values lie in paged memory, and how they come near: gathered from small blocks, asked for ahead
// of time, widened for many rows. Include after product.h.
#pragma once

#include "product.h"

namespace octavo::cpu {
namespace {

// Scratch of one item: queries and sums of its rows, and keys and values of a tile where they must be gathered or
// are unpacked because many rows need them.
struct AttentionScratch {
  float *queries, *sums, *masses, *peaks, *fades, *scores, *keys, *values;
  Bf16* weights;  // scores of each row, rounded: kernels on tiles want them
  char *gathered_keys, *gathered_values;
  size_t bytes;

  AttentionScratch(const Attention& call, size_t num_rows, char* at) {
    const size_t dim = call.kv.padded_dim(), some = num_rows * (call.num_heads / call.kv.num_kv_heads);
    const size_t rows = some + kPanel;  // kernels on tiles always take sixteen
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
    fades = floats(rows);
    scores = floats(rows * kTile);
    weights = reinterpret_cast<Bf16*>(take(rows * kTile * sizeof(Bf16)));
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

// Asks for the next tile while one is read, line for line: what lies `bytes` ahead of panel p.
template <int P>
struct AskNext {
  ptrdiff_t bytes[P];
  OCTAVO_INLINE void operator()(int p, const void* line) const { __builtin_prefetch(static_cast<const char*>(line) + bytes[p]); }
};
inline ptrdiff_t bytes_between(const void* from, const void* to) {
  return to ? static_cast<const char*>(to) - static_cast<const char*>(from) : 0;
}
template <int P, class T>
OCTAVO_INLINE AskNext<P> ask_keys(const Tile<T>& tile, const Tile<T>& next, size_t j) {
  AskNext<P> ask;
  for (int p = 0; p < P; ++p) ask.bytes[p] = bytes_between(tile.keys[j + p], next.keys[j + p]);
  return ask;
}
template <int P, class T>
OCTAVO_INLINE AskNext<P> ask_values(const Tile<T>& tile, const Tile<T>& next, size_t j) {
  AskNext<P> ask;
  for (int p = 0; p < P; ++p) ask.bytes[p] = bytes_between(tile.values[j], next.values[j]);
  return ask;
}
// A tile that was unpacked comes from nearby.
template <int P>
OCTAVO_INLINE AskNothing ask_keys(const Tile<float>&, const Tile<Bf16>&, size_t) { return {}; }
template <int P>
OCTAVO_INLINE AskNothing ask_values(const Tile<float>&, const Tile<Bf16>&, size_t) { return {}; }

// Asks for a whole tile within a number of calls.
template <class T>
struct FetchTile {
  static constexpr size_t kPiece = kPanel * kPanel;  // elements that lie together
  const Tile<T>& tile;
  size_t panels, each, done = 0;

  FetchTile(const Tile<T>& tile, size_t dim, size_t calls)
      : tile(tile), panels(dim / kPanel), each((2 * kTile / kPanel * panels + calls - 1) / calls) {}
  OCTAVO_INLINE void operator()() {
    for (const size_t end = done + each; done < end; ++done) {
      const size_t d = done % panels, side = done / panels % 2, j = done / panels / 2;
      if (j >= kTile / kPanel || !tile.keys[j]) return;
      const T* at = side == 0 ? tile.keys[j] + d * kPiece : tile.values[j] + d * tile.value_step;
      for (size_t line = 0; line < kPiece; line += kLineBytes / sizeof(T)) __builtin_prefetch(at + line);
    }
  }
};

// The same as floats, keys [4][D][16] and values [D / 16][64][16]; widening changes no bit.
inline Tile<float> unpack_tile(const Tile<Bf16>& tile, size_t first, size_t last, size_t dim, const AttentionScratch& scratch) {
  Tile<float> wide{};
  wide.value_step = kTile * kPanel;
  for (size_t j = first / kPanel; j * kPanel < last; ++j) {
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

}  // namespace
}  // namespace octavo::cpu
