// Which instruction sets' kernels this processor can run.

#include <algorithm>

#include "kernels.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace octavo::cpu {
namespace {

// Tile registers are large, so Linux hands them out on request (Documentation/arch/x86/xstate.rst): 0x1023 is
// ARCH_REQ_XCOMP_PERM, 18 the number of the tile data.
bool may_use_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

}  // namespace

std::vector<const Kernels*> usable_kernels() {
  const std::vector<std::string> found = features();
  const auto has = [&](const char* name) { return std::find(found.begin(), found.end(), name) != found.end(); };
  std::vector<const Kernels*> usable;
  const auto offer = [&](const Kernels* kernels, bool runs) {
    if (kernels && runs) usable.push_back(kernels);
  };
  const bool wide = has("avx512f") && has("avx512bw") && has("avx512_vnni");
  offer(amx_kernels(), wide && has("amx_bf16") && has("amx_int8") && may_use_tiles());
#ifdef OCTAVO_SIMDE
  offer(avx512_bf16_kernels(), has("avx2") && has("fma"));  // what they are built from
  offer(avx512_kernels(), has("avx2") && has("fma"));
#else
  offer(avx512_bf16_kernels(), wide && has("avx512_bf16"));
  offer(avx512_kernels(), wide);
#endif
  offer(avx2_kernels(), has("avx2") && has("fma"));
  usable.push_back(portable_kernels());
  return usable;
}

}  // namespace octavo::cpu
