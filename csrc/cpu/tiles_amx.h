// The processor's tile registers.
#pragma once

#include <immintrin.h>

#include "tile_shapes.h"

namespace octavo::cpu {
namespace {

constexpr int kTileRows = 16;

// The tiles' shapes hold while one lives; the registers are given back after it.
class Tiles {
 public:
  explicit Tiles(const TileShapes& shapes = {}) { _tile_loadconfig(&shapes); }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

#define OCTAVO_TILE_ZERO(tile) _tile_zero(tile)
#define OCTAVO_TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define OCTAVO_TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
#define OCTAVO_TILE_BF16(sums, rows, lines) _tile_dpbf16ps(sums, rows, lines)
#define OCTAVO_TILE_INT8(sums, rows, lines) _tile_dpbssd(sums, rows, lines)

}  // namespace
}  // namespace octavo::cpu
