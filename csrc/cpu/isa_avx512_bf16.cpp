// Kernels for AVX-512 with VNNI and products of bfloat16 pairs. Compiled with these enabled; runs only where `features`
// finds them.
#include "kernels.h"

#if defined(OCTAVO_SIMDE) || (defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__))
#define OCTAVO_VNNI 1
#include "lanes_avx512.h"
#include "pairs_avx512.h"
#include "table_pairs.h"

namespace octavo::cpu {

const Kernels* avx512_bf16_kernels() {
  static const Kernels kernels = pair_table("avx512_bf16");
  return &kernels;
}

}  // namespace octavo::cpu
#else
namespace octavo::cpu {
const Kernels* avx512_bf16_kernels() { return nullptr; }
}  // namespace octavo::cpu
#endif
