#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace octavo::cpu {

#if defined(__unix__) || defined(__APPLE__)

Pages pages(size_t num_bytes) {
  if (num_bytes == 0) num_bytes = 1;
  void* found = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (num_bytes >= size_t{4} << 20) madvise(found, num_bytes, MADV_HUGEPAGE);  // advice: may be ignored
#endif
  return Pages(static_cast<char*>(found), FreePages{num_bytes});
}

void FreePages::operator()(char* found) const { munmap(found, num_bytes); }

#else

Pages pages(size_t num_bytes) {
  const size_t whole = (num_bytes + 4095) / 4096 * 4096 + 4096;
  void* found = std::aligned_alloc(4096, whole);
  if (!found) throw std::bad_alloc();
  std::memset(found, 0, whole);
  return Pages(static_cast<char*>(found), FreePages{whole});
}

void FreePages::operator()(char* found) const { std::free(found); }

#endif

}  // namespace octavo::cpu
