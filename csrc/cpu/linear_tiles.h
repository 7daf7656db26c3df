// Matrix products on tile registers, for bfloat16 and int8 weights; the other formats go the way of linear.h. Include
// after linear.h and a tiles file.
//
// A tile of sixteen rows takes the same time whatever is in it, and decoding waits for memory anyway: one row runs
// through the same instructions as sixteen, which is why its bits never depend on company. Rows past the last are
// whatever the buffer holds, and their sums are dropped.
#pragma once

#include "linear.h"

namespace octavo::cpu {
namespace {

inline bool in_tiles(const Weight& w) { return w.format == Format::bf16 || w.format == Format::int8; }

// Elements of a row: bfloat16, or int8 codes as they are; then for int8 the scale.
struct TileRow {
  size_t elements_bytes, bytes;
  explicit TileRow(const Weight& w) {
    elements_bytes = w.padded_in() * (w.format == Format::bf16 ? 2 : 1);
    bytes = round_up(elements_bytes + sizeof(float), kLineBytes) + kLineBytes;
  }
};

size_t tile_row_bytes(const Weight& w) { return in_tiles(w) ? TileRow(w).bytes : row_bytes(w); }

template <class T>
void prepare_tile_rows(const Weight& w, const T* x, size_t x_stride, char* out, size_t out_stride, size_t num_rows) {
  const TileRow layout(w);
  for (size_t t = 0; t < num_rows; ++t, x += x_stride, out += out_stride) {
    if (w.format == Format::bf16) {
      Bf16* to = reinterpret_cast<Bf16*>(out);
      size_t i = 0;
      for (; i < w.num_in; i += kPanel) store(to + i, load_some(x + i, w.num_in - i));
      for (; i < w.padded_in(); i += kPanel) store(to + i, set1(0.0f));
      continue;
    }
    F tops = set1(0.0f), odd = set1(0.0f);
    for (size_t i = 0; i < w.num_in; i += kPanel) {
      const F some = load_some(x + i, w.num_in - i);
      tops = max(tops, abs(some));
      odd = fma(some, set1(0.0f), odd);
    }
    const float top = top_of(tops), spoilt = sum_of(odd), scale = top > kNothing ? top / 127.0f : 0.0f;
    const F inverse = set1(scale > 0.0f && spoilt == 0.0f ? 127.0f / top : 0.0f);
    const float stored = scale + spoilt;
    std::memcpy(out + layout.elements_bytes, &stored, sizeof stored);
    for (size_t i = 0; i < w.padded_in(); i += kPanel) {
      const F some = i < w.num_in && spoilt == 0.0f ? load_some(x + i, w.num_in - i) : set1(0.0f);
      int32_t codes[kPanel];
      istore(codes, to_int(round(max(set1(-127.0f), min(set1(127.0f), some * inverse)))));
      for (size_t j = 0; j < kPanel; ++j) out[i + j] = static_cast<char>(codes[j]);
    }
  }
}

void tile_prepare(const Weight& w, Number number, const void* x, size_t x_stride, char* out, size_t out_stride, size_t num_rows) {
  if (!in_tiles(w)) return prepare(w, number, x, x_stride, out, out_stride, num_rows);
  if (number == Number::bf16)
    prepare_tile_rows(w, static_cast<const Bf16*>(x), x_stride, out, out_stride, num_rows);
  else
    prepare_tile_rows(w, static_cast<const float*>(x), x_stride, out, out_stride, num_rows);
}

// Sums of 32 rows (or the first 16 of them) and two panels (or one), into [32][32]; every line of the panels is read
// once, and K runs in one order.
template <bool kIsInt8, bool kTwoRows, bool kTwoPanels>
inline void tile_sums(const char* x, size_t x_stride, const char* first, const char* second, size_t row_bytes, float* sums) {
  OCTAVO_TILE_ZERO(0);
  if constexpr (kTwoPanels) OCTAVO_TILE_ZERO(1);
  if constexpr (kTwoRows) OCTAVO_TILE_ZERO(2);
  if constexpr (kTwoRows && kTwoPanels) OCTAVO_TILE_ZERO(3);
  for (size_t k = 0; k < row_bytes; k += 64) {  // 64 bytes of a row meet sixteen lines of a panel
    OCTAVO_TILE_LOAD(6, first + k * 16, 64);
    OCTAVO_TILE_LOAD(4, x + k, x_stride);
    if constexpr (kTwoPanels) OCTAVO_TILE_LOAD(7, second + k * 16, 64);
    if constexpr (kTwoRows) OCTAVO_TILE_LOAD(5, x + 16 * x_stride + k, x_stride);
    if constexpr (kIsInt8) {
      OCTAVO_TILE_INT8(0, 4, 6);
      if constexpr (kTwoPanels) OCTAVO_TILE_INT8(1, 4, 7);
      if constexpr (kTwoRows) OCTAVO_TILE_INT8(2, 5, 6);
      if constexpr (kTwoRows && kTwoPanels) OCTAVO_TILE_INT8(3, 5, 7);
    } else {
      OCTAVO_TILE_BF16(0, 4, 6);
      if constexpr (kTwoPanels) OCTAVO_TILE_BF16(1, 4, 7);
      if constexpr (kTwoRows) OCTAVO_TILE_BF16(2, 5, 6);
      if constexpr (kTwoRows && kTwoPanels) OCTAVO_TILE_BF16(3, 5, 7);
    }
  }
  constexpr size_t kStride = 2 * kPanel;
  OCTAVO_TILE_STORE(0, sums, kStride * sizeof(float));
  if constexpr (kTwoPanels) OCTAVO_TILE_STORE(1, sums + kPanel, kStride * sizeof(float));
  if constexpr (kTwoRows) OCTAVO_TILE_STORE(2, sums + 16 * kStride, kStride * sizeof(float));
  if constexpr (kTwoRows && kTwoPanels) OCTAVO_TILE_STORE(3, sums + 16 * kStride + kPanel, kStride * sizeof(float));
}

template <bool kIsInt8>
inline void tile_sums(const char* x, size_t x_stride, const char* first, const char* second, size_t row_bytes, size_t rows, float* sums) {
  if (rows > 16)
    second ? tile_sums<kIsInt8, true, true>(x, x_stride, first, second, row_bytes, sums)
           : tile_sums<kIsInt8, true, false>(x, x_stride, first, second, row_bytes, sums);
  else
    second ? tile_sums<kIsInt8, false, true>(x, x_stride, first, second, row_bytes, sums)
           : tile_sums<kIsInt8, false, false>(x, x_stride, first, second, row_bytes, sums);
}

template <class T>
void tile_linear_as(const Linear& call, size_t first, size_t last, size_t first_row, size_t last_row) {
  const Weight& w = *call.weight;
  const TileRow layout(w);
  const bool is_int8 = w.format == Format::int8;
  alignas(64) float sums[32 * 2 * kPanel];
  const Tiles in_use;
  for (size_t panel = first; panel < last; panel += 2) {
    const char* other = panel + 1 < last ? w.panel(panel + 1) : nullptr;
    for (size_t row = first_row; row < last_row; row += 32) {
      const size_t rows = last_row - row < 32 ? last_row - row : 32;
      const char* x = call.x + row * call.x_stride;
      if (is_int8)
        tile_sums<true>(x, call.x_stride, w.panel(panel), other, layout.elements_bytes, rows, sums);
      else
        tile_sums<false>(x, call.x_stride, w.panel(panel), other, layout.elements_bytes, rows, sums);
      for (size_t i = 0; i < rows; ++i) {
        float scale = 1.0f;
        if (is_int8) std::memcpy(&scale, x + i * call.x_stride + layout.elements_bytes, sizeof scale);
        const auto value = [&](size_t p) {
          const float* at = sums + i * 2 * kPanel + p * kPanel;
          if (!is_int8) return load(at);
          return to_float(iload(reinterpret_cast<const int32_t*>(at))) * (load(w.scales + (panel + p) * kPanel) * set1(scale));
        };
        if (other) {
          const F y[2] = {value(0), value(1)};
          finish<T, 2>(call, row + i, panel, y);
        } else {
          const F y[1] = {value(0)};
          finish<T, 1>(call, row + i, panel, y);
        }
      }
    }
  }
}

void tile_linear(const Linear& call, size_t first, size_t last, size_t first_row, size_t last_row, char* scratch) {
  if (!in_tiles(*call.weight))
    linear(call, first, last, first_row, last_row, scratch);
  else if (call.number == Number::bf16)
    tile_linear_as<Bf16>(call, first, last, first_row, last_row);
  else
    tile_linear_as<float>(call, first, last, first_row, last_row);
}

}  // namespace
}  // namespace octavo::cpu
