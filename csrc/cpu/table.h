// The table of one instruction set. Include last.
#pragma once

#include "attention.h"
#include "draw.h"
#include "linear.h"
#include "pack.h"
#include "rows.h"

namespace octavo::cpu {
namespace {

constexpr Kernels table(const char* name) {
  return {name, pack_panel, unpack_panel, row_bytes, prepare, linear, norm, rope, attention_scratch, attention, merge, embed, peak,
          draw, num_ahead, likeliest};
}

}  // namespace
}  // namespace octavo::cpu
