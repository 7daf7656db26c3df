// From rows of logits to tokens, all rows of a step at once. A row's answer depends on nothing but that row.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace octavo::cpu {

// What may be wrong with a row of logits; a number of PROBLEMS in octavo/kernels/sampling.
enum class Problem : int32_t { none, nan, infinite, empty };

// The likeliest token of a row; `log_mass` is the logarithm of the sum of exp(logit - top).
struct Greedy {
  int32_t token = 0;
  Problem problem = Problem::none;
  float top = 0.0f;
  double log_mass = 0.0;
};

// A token and how many of the likeliest are to be named beside it.
struct Asked {
  const float* logits;
  size_t token, num_top;
};

// `rank` from 1; `top` (token, log-probability), the likeliest first, equal ones by lower id.
struct Described {
  Problem problem = Problem::none;
  float logprob = 0.0f;
  size_t rank = 0;
  std::vector<std::pair<int32_t, float>> top;
};

class Sampling {
 public:
  Sampling(const Kernels& kernels, Pool& pool) : kernels_(kernels), pool_(pool) {}

  std::vector<Greedy> greedy(const std::vector<const float*>& rows, size_t vocab);
  // Tokens, or kNoToken.
  std::vector<int32_t> draw(const std::vector<Draw>& draws);
  std::vector<Described> describe(const std::vector<Asked>& asked, size_t vocab);

  size_t num_bytes() const { return scratch_bytes_; }

 private:
  char* scratch(size_t vocab, size_t thread);
  void reserve(size_t vocab);

  const Kernels& kernels_;
  Pool& pool_;
  Pages scratch_;
  size_t scratch_bytes_ = 0;
};

}  // namespace octavo::cpu
