// Shapes of the tile registers, in the layout that LDTILECFG reads (Intel SDM volume 2, palette 1).
#pragma once

#include <cstdint>

namespace octavo::cpu {
namespace {

struct TileShapes {  // sixteen rows of 64 bytes, unless changed
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

}  // namespace
}  // namespace octavo::cpu
