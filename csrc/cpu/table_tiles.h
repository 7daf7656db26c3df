// The table of an instruction set with tiles. Include last.
#pragma once

#include "attention_tiles.h"
#include "linear_tiles.h"
#include "table.h"

namespace octavo::cpu {
namespace {

constexpr Kernels tile_table(const char* name) {
  Kernels kernels = table(name);
  kernels.row_bytes = tile_row_bytes;
  kernels.prepare = tile_prepare;
  kernels.linear = tile_linear;
  kernels.attention = tile_attention;
  return kernels;
}

}  // namespace
}  // namespace octavo::cpu
