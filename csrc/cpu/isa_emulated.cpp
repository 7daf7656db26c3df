// The kernels on tiles with the tiles emulated: slow, for tests on processors without them.
#include "lanes_portable.h"
#include "tiles_emulated.h"
#include "table_tiles.h"

namespace octavo::cpu {

const Kernels* emulated_kernels() {
  static const Kernels kernels = tile_table("emulated");
  return &kernels;
}

}  // namespace octavo::cpu
