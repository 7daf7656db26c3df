// Kernels over raw pointers. Callers check shapes; nothing here allocates, locks or starts a thread.
//
// A row's bits depend on nothing but that row: every sum runs in an order fixed by the row's width alone.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "bf16.h"

namespace octavo::cpu {

// out[t] = narrow(x[t] / sqrt(mean(x[t]^2) + eps)) * weight, rows dense, sums in float32.
// `out` may be `x` itself; otherwise they must not overlap.
template <class T>
void rms_norm(const T* x, const T* weight, float eps, T* out, size_t num_rows, size_t width);

extern template void rms_norm<float>(const float*, const float*, float, float*, size_t, size_t);
extern template void rms_norm<Bf16>(const Bf16*, const Bf16*, float, Bf16*, size_t, size_t);

// Instruction sets that both this processor and its operating system support, of those the kernels may use:
// "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8". Empty off x86-64.
std::vector<std::string> features();

}  // namespace octavo::cpu
