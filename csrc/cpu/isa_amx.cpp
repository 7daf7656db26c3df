// Kernels for AVX-512 with AMX tiles of bfloat16 and int8. Compiled with these enabled; runs only where `features` finds
// them and the operating system hands out the tile registers.
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512VNNI__) && defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__)
#define OCTAVO_VNNI 1
#include "lanes_avx512.h"
#include "tiles_amx.h"
#include "table_tiles.h"

namespace octavo::cpu {

const Kernels* amx_kernels() {
  static const Kernels kernels = tile_table("amx");
  return &kernels;
}

}  // namespace octavo::cpu
#else
namespace octavo::cpu {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace octavo::cpu
#endif
