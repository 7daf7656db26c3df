// The table of an instruction set with products of bfloat16 pairs. Include last.
#pragma once

#include "attention_pairs.h"
#include "linear_pairs.h"
#include "table.h"

namespace octavo::cpu {
namespace {

constexpr Kernels pair_table(const char* name) {
  Kernels kernels = table(name);
  kernels.row_bytes = pair_row_bytes;
  kernels.prepare = pair_prepare;
  kernels.linear = pair_linear;
  kernels.attention = pair_attention;
  return kernels;
}

}  // namespace
}  // namespace octavo::cpu
