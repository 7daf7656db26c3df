// Kernels for AVX-512 with VNNI. Compiled with these enabled; runs only where `features` finds them.
#include "kernels.h"

#if defined(OCTAVO_SIMDE) || (defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__))
#define OCTAVO_VNNI 1
#include "lanes_avx512.h"
#include "table.h"

namespace octavo::cpu {

const Kernels* avx512_kernels() {
  static const Kernels kernels = table("avx512");
  return &kernels;
}

}  // namespace octavo::cpu
#else
namespace octavo::cpu {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace octavo::cpu
#endif
