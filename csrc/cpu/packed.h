// A weight and the memory it lies in.
#pragma once

#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace octavo::cpu {

class Packed {
 public:
  // num_parts  1; or 2 for a gate and its up, whose panels take turns
  // group      inputs that share an int4 scale
  // whole_rows int4: multiplied with rows of whole numbers, else of bfloat16
  Packed(const Kernels& kernels, Format format, size_t num_out, size_t num_in, size_t num_parts, bool has_bias, size_t group,
         bool whole_rows = true);

  // Pack rows [num_rows, in] of `part`, the first of them output `first` (a multiple of 16). The last rows of a part
  // may be fewer than a panel. Returns whether all were finite.
  bool fill(Pool& pool, size_t part, size_t first, const void* rows, Number number, size_t num_rows);
  void fill_bias(size_t part, size_t first, const void* bias, Number number, size_t num_out);
  // Outputs first .. first + num_rows - 1 of `part` as floats [num_rows, in], as products see them.
  void read(size_t part, size_t first, size_t num_rows, float* out) const;

  const Weight& weight() const { return weight_; }
  const Kernels& kernels() const { return kernels_; }
  size_t num_parts() const { return num_parts_; }
  size_t part_out() const { return weight_.num_out / num_parts_; }
  size_t num_bytes() const { return num_bytes_; }

 private:
  size_t panel_of(size_t part, size_t output) const { return output / kPanel * num_parts_ + part; }

  const Kernels& kernels_;
  Weight weight_;
  size_t num_parts_, num_bytes_;
  Pages memory_;
};

}  // namespace octavo::cpu
