// The only file that knows Python. Arguments are checked here, and the interpreter lock is released while a kernel
// runs.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>

#include "array.h"
#include "kernels.h"

namespace nb = nanobind;
using octavo::cpu::Bf16;
using octavo::cpu::Dense;

namespace {

template <class T, size_t N>
std::string shape(const Dense<T, N>& array) {
  std::string text = "[";
  for (size_t i = 0; i < N; ++i) text += (i ? ", " : "") + std::to_string(array.shape[i]);
  return text + "]";
}

template <class T>
void rms_norm(const Dense<const T, 2>& x, const Dense<const T, 1>& weight, float eps, const Dense<T, 2>& out) {
  const size_t rows = x.shape[0], width = x.shape[1];
  if (weight.shape[0] != width || out.shape[0] != rows || out.shape[1] != width) {
    const std::string got = shape(x) + ", " + shape(weight) + " and " + shape(out);
    throw nb::value_error(("rms_norm: want x [T, E], weight [E] and out [T, E], got " + got).c_str());
  }
  if (x.data != out.data && x.data < out.data + out.size() && out.data < x.data + x.size())
    throw nb::value_error("rms_norm: x and out overlap without being the same array");
  nb::gil_scoped_release unlocked;
  octavo::cpu::rms_norm(x.data, weight.data, eps, out.data, rows, width);
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.doc() = "Kernels for processors: raw pointers inside, shapes and types checked at the door.";
  m.def("rms_norm", &rms_norm<float>, nb::arg("x"), nb::arg("weight"), nb::arg("eps"), nb::arg("out"),
        "Write the rows of x, scaled to root mean square 1 and by weight, to out (which may be x).");
  m.def("rms_norm", &rms_norm<Bf16>, nb::arg("x"), nb::arg("weight"), nb::arg("eps"), nb::arg("out"));
  m.def("features", &octavo::cpu::features,
        "Instruction sets of this processor that its operating system lets programs use.");
}
