// Kernels for AVX2 with FMA. Compiled with these enabled; runs only where `features` finds them.
#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__)
#include "lanes_avx2.h"
#include "table.h"

namespace octavo::cpu {

const Kernels* avx2_kernels() {
  static const Kernels kernels = table("avx2");
  return &kernels;
}

}  // namespace octavo::cpu
#else
namespace octavo::cpu {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace octavo::cpu
#endif
