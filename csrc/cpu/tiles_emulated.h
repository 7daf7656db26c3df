// Tile registers in plain C++, so that what is built on them can be tested on any processor. Semantics: Intel SDM
// volume 2, TDPBF16PS and TDPBSSD.
#pragma once

#include <cstdint>
#include <cstring>

#include "bf16.h"
#include "tile_shapes.h"

namespace octavo::cpu {
namespace {

constexpr int kTileRows = 16;

struct TileRegister {
  char bytes[16][64];
};
thread_local TileRegister tile_registers[8];
thread_local TileShapes tile_shapes;

class Tiles {
 public:
  explicit Tiles(const TileShapes& shapes = {}) {
    std::memset(tile_registers, 0xff, sizeof tile_registers);
    tile_shapes = shapes;
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

inline void tile_load(int tile, const void* from, size_t stride) {
  for (int row = 0; row < tile_shapes.rows[tile]; ++row)
    std::memcpy(tile_registers[tile].bytes[row], static_cast<const char*>(from) + row * stride, tile_shapes.row_bytes[tile]);
}
inline void tile_store(int tile, void* to, size_t stride) {
  for (int row = 0; row < tile_shapes.rows[tile]; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, tile_registers[tile].bytes[row], tile_shapes.row_bytes[tile]);
}

// Products of the first and of the second of each pair are summed apart over the lines' pairs, then added.
inline void tile_bf16(int sums, int rows, int lines) {
  for (int m = 0; m < tile_shapes.rows[rows]; ++m)
    for (int n = 0; n < 16; ++n) {
      float part[2] = {0.0f, 0.0f};
      for (int k = 0; k < tile_shapes.rows[lines]; ++k)
        for (int half = 0; half < 2; ++half) {
          Bf16 a, b;
          std::memcpy(&a, tile_registers[rows].bytes[m] + 4 * k + 2 * half, 2);
          std::memcpy(&b, tile_registers[lines].bytes[k] + 4 * n + 2 * half, 2);
          part[half] += widen(a) * widen(b);
        }
      float sum;
      std::memcpy(&sum, tile_registers[sums].bytes[m] + 4 * n, 4);
      sum += part[0] + part[1];
      std::memcpy(tile_registers[sums].bytes[m] + 4 * n, &sum, 4);
    }
}
inline void tile_int8(int sums, int rows, int lines) {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      int32_t sum;
      std::memcpy(&sum, tile_registers[sums].bytes[m] + 4 * n, 4);
      for (int k = 0; k < 16; ++k)
        for (int i = 0; i < 4; ++i)
          sum += static_cast<int8_t>(tile_registers[rows].bytes[m][4 * k + i]) * static_cast<int8_t>(tile_registers[lines].bytes[k][4 * n + i]);
      std::memcpy(tile_registers[sums].bytes[m] + 4 * n, &sum, 4);
    }
}

#define OCTAVO_TILE_ZERO(tile) std::memset(&tile_registers[tile], 0, sizeof(TileRegister))
#define OCTAVO_TILE_LOAD(tile, from, stride) tile_load(tile, from, stride)
#define OCTAVO_TILE_STORE(tile, to, stride) tile_store(tile, to, stride)
#define OCTAVO_TILE_BF16(sums, rows, lines) tile_bf16(sums, rows, lines)
#define OCTAVO_TILE_INT8(sums, rows, lines) tile_int8(sums, rows, lines)

}  // namespace
}  // namespace octavo::cpu
