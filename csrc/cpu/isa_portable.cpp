// Kernels for any processor.
#include "lanes_portable.h"
#include "table.h"

namespace octavo::cpu {

const Kernels* portable_kernels() {
  static const Kernels kernels = table("portable");
  return &kernels;
}

}  // namespace octavo::cpu
