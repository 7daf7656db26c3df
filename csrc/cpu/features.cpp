// What the processor can do, asked of the processor. Bit numbers: Intel SDM volume 2, CPUID leaf 7.

#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>
#define OCTAVO_HAS_CPUID 1
#endif

namespace octavo::cpu {

#ifdef OCTAVO_HAS_CPUID

namespace {

struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Leaf(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

bool bit(unsigned word, int n) { return (word >> n) & 1u; }

// Register files that the operating system saves on a switch (XCR0); without it an instruction set is unusable.
unsigned long long saved_state() {
  if (!bit(Leaf(1, 0).c, 27)) return 0;  // OSXSAVE
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<unsigned long long>(high) << 32) | low;
}

}  // namespace

std::vector<std::string> features() {
  constexpr unsigned long long kVector = 0x6;      // XMM, YMM
  constexpr unsigned long long kWide = 0xe6;       // and opmask, ZMM
  constexpr unsigned long long kTiles = 0x60000;   // tile configuration and data
  const unsigned long long saved = saved_state();
  const bool vector = (saved & kVector) == kVector;
  const bool wide = (saved & kWide) == kWide;
  const bool tiles = (saved & kTiles) == kTiles;
  const Leaf seven(7, 0), more(7, 1);
  std::vector<std::string> found;
  const auto add = [&found](bool has, const char* name) {
    if (has) found.emplace_back(name);
  };
  add(vector && bit(seven.b, 5), "avx2");
  add(vector && bit(Leaf(1, 0).c, 12), "fma");
  add(wide && bit(seven.b, 16), "avx512f");
  add(wide && bit(seven.b, 30) && bit(seven.b, 31) && bit(seven.b, 17), "avx512bw");  // and VL, DQ
  add(wide && bit(more.a, 5), "avx512_bf16");
  add(wide && bit(seven.c, 11), "avx512_vnni");
  add(tiles && bit(seven.d, 22), "amx_bf16");
  add(tiles && bit(seven.d, 25), "amx_int8");
  return found;
}

#else

std::vector<std::string> features() { return {}; }

#endif

}  // namespace octavo::cpu
