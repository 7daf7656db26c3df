// Weights into panels, sixteen outputs at a time, and back. Include after linear.h.
#pragma once

#include "product.h"

namespace octavo::cpu {
namespace {

inline F column(const float* columns, size_t k) { return load(columns + k * kPanel); }

void pack_bf16(Weight& w, size_t panel, const float* columns) {
  uint32_t* line = reinterpret_cast<uint32_t*>(w.lines + panel * w.panel_bytes());
  for (size_t k = 0; k < w.padded_in(); k += 2, line += kPanel) {
    uint16_t first[kPanel], second[kPanel];
    store(reinterpret_cast<Bf16*>(first), column(columns, k));
    store(reinterpret_cast<Bf16*>(second), column(columns, k + 1));
    for (size_t lane = 0; lane < kPanel; ++lane) line[lane] = first[lane] | static_cast<uint32_t>(second[lane]) << 16;
  }
}

// One scale per output, max|w| / 127, codes rounded to nearest.
void pack_int8(Weight& w, size_t panel, const float* columns) {
  uint32_t* line = reinterpret_cast<uint32_t*>(w.lines + panel * w.panel_bytes());
  F top = set1(0.0f);
  for (size_t k = 0; k < w.num_in; ++k) top = max(top, abs(column(columns, k)));
  float tops[kPanel], inverse[kPanel];
  store(tops, top);
  for (size_t lane = 0; lane < kPanel; ++lane) inverse[lane] = tops[lane] > kNothing ? 127.0f / tops[lane] : 0.0f;
  store(w.scales + panel * kPanel, top / set1(127.0f));
  const F up = load(inverse);
  I sums = izero();
  for (size_t k = 0; k < w.padded_in(); k += 4, line += kPanel) {
    uint32_t codes[4][kPanel];
    for (size_t i = 0; i < 4; ++i) {
      const I some = to_int(round(max(set1(-127.0f), min(set1(127.0f), column(columns, k + i) * up))));
      sums = sums + some;
      istore(reinterpret_cast<int32_t*>(codes[i]), some);
    }
    for (size_t lane = 0; lane < kPanel; ++lane)
      line[lane] = (codes[0][lane] & 255u) | (codes[1][lane] & 255u) << 8 | (codes[2][lane] & 255u) << 16 | codes[3][lane] << 24;
  }
  istore(w.column_sums + panel * kPanel, sums);
}

// Scale and minimum of a group, rounded to bfloat16, for codes 0 .. 15 over [low, high]; 0 is always within.
struct Grid {
  F scale, least, inverse;
};

inline Grid grid_of(F low, F high) {
  const F scale = rounded_to<Bf16>(max((high - low) * set1(1.0f / 15.0f), set1(1e-20f)));
  return {scale, rounded_to<Bf16>(low), set1(1.0f) / scale};
}

inline F code_of(const Grid& grid, F w) {
  return round(max(set1(0.0f), min(set1(15.0f), (w - grid.least) * grid.inverse)));
}

// Of several shrunken ranges the one with the least squared error, per group and output (range search, as in the
// weight-only quantizers descended from GPTQ, arXiv 2210.17323).
inline Grid best_grid(const Weight& w, const float* columns, size_t first) {
  F low = set1(0.0f), high = set1(0.0f);
  for (size_t k = first; k < first + w.group; ++k) {
    low = min(low, column(columns, k));
    high = max(high, column(columns, k));
  }
  constexpr float kShrink[] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f};
  float least_error[kPanel], best_low[kPanel] = {}, best_high[kPanel] = {};
  for (size_t lane = 0; lane < kPanel; ++lane) least_error[lane] = __builtin_inff();
  for (float shrink : kShrink) {
    const F some_low = low * set1(shrink), some_high = high * set1(shrink);
    const Grid grid = grid_of(some_low, some_high);
    F error = set1(0.0f);
    for (size_t k = first; k < first + w.group; ++k) {
      const F x = column(columns, k), off = fma(grid.scale, code_of(grid, x), grid.least) - x;
      error = fma(off, off, error);
    }
    float errors[kPanel], lows[kPanel], highs[kPanel];
    store(errors, error);
    store(lows, some_low);
    store(highs, some_high);
    for (size_t lane = 0; lane < kPanel; ++lane)
      if (errors[lane] < least_error[lane]) {
        least_error[lane] = errors[lane];
        best_low[lane] = lows[lane];
        best_high[lane] = highs[lane];
      }
  }
  return grid_of(load(best_low), load(best_high));
}

void pack_int4(Weight& w, size_t panel, const float* columns) {
  char* at = w.lines + panel * w.panel_bytes();
  for (size_t first = 0; first < w.padded_in(); first += w.group, at += (w.group / 8 + 1) * kLineBytes) {
    const Grid grid = best_grid(w, columns, first);
    Bf16 scales[kPanel], leasts[kPanel];
    store(scales, grid.scale);
    store(leasts, grid.least);
    Bf16* head = reinterpret_cast<Bf16*>(at);
    for (size_t lane = 0; lane < kPanel; ++lane) {
      head[2 * lane] = scales[lane];
      head[2 * lane + 1] = leasts[lane];
    }
    uint32_t* line = reinterpret_cast<uint32_t*>(at + kLineBytes);
    for (size_t k = 0; k < w.group; k += 8, line += kPanel) {
      uint32_t codes[8][kPanel];
      for (size_t i = 0; i < 8; ++i) istore(reinterpret_cast<int32_t*>(codes[i]), to_int(code_of(grid, column(columns, first + k + i))));
      for (size_t lane = 0; lane < kPanel; ++lane) {
        uint32_t word = 0;
        for (size_t i = 0; i < 4; ++i) word |= (codes[i][lane] | codes[i + 4][lane] << 4) << (8 * i);
        line[lane] = word;
      }
    }
  }
}

void pack_panel(Weight& w, size_t panel, const float* columns) {
  switch (w.format) {
    case Format::f32: std::memcpy(w.lines + panel * w.panel_bytes(), columns, w.panel_bytes()); break;
    case Format::bf16: pack_bf16(w, panel, columns); break;
    case Format::int8: pack_int8(w, panel, columns); break;
    case Format::int4: pack_int4(w, panel, columns); break;
  }
}

void unpack_panel(const Weight& w, size_t panel, float* columns) {
  const char* at = w.panel(panel);
  for (size_t k = 0; k < w.padded_in(); ++k) {
    F value = set1(0.0f);
    if (w.format == Format::f32) {
      value = load(reinterpret_cast<const float*>(at) + k * kPanel);
    } else if (w.format == Format::bf16) {
      const Bf16* line = reinterpret_cast<const Bf16*>(at) + k / 2 * 2 * kPanel;
      value = k % 2 ? second_of(line) : first_of(line);
    } else {
      int32_t codes[kPanel];
      if (w.format == Format::int8) {
        for (size_t lane = 0; lane < kPanel; ++lane) codes[lane] = reinterpret_cast<const int8_t*>(at)[k / 4 * kLineBytes + 4 * lane + k % 4];
        value = to_float(iload(codes)) * load(w.scales + panel * kPanel);
      } else {
        const char* group = at + k / w.group * (w.group / 8 + 1) * kLineBytes;
        const size_t in = k % w.group;
        for (size_t lane = 0; lane < kPanel; ++lane) {
          const uint8_t both = static_cast<uint8_t>(group[(in / 8 + 1) * kLineBytes + 4 * lane + in % 4]);
          codes[lane] = in % 8 < 4 ? both & 15 : both >> 4;
        }
        const Bf16* head = reinterpret_cast<const Bf16*>(group);
        value = fma(first_of(head), to_float(iload(codes)), second_of(head));
      }
    }
    store(columns + k * kPanel, value);
  }
}

}  // namespace
}  // namespace octavo::cpu
