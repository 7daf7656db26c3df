// Memory that starts at a page and may lie on large ones.
#pragma once

#include <cstddef>
#include <memory>

namespace octavo::cpu {

struct FreePages {
  size_t num_bytes = 0;
  void operator()(char* pages) const;
};

using Pages = std::unique_ptr<char[], FreePages>;

// Zeroed; comes into being page by page as it is touched. Throws std::bad_alloc.
Pages pages(size_t num_bytes);

}  // namespace octavo::cpu
