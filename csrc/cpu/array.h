// Dense<T, N>: an argument that is a dense, row-major array of T with N dimensions in processor memory.
//
// Frameworks that offer DLPack's C exchange table (DLPack 1.3, `__dlpack_c_exchange_api__` on the type) lend the
// view in well under a microsecond; from others nanobind fetches it through `__dlpack__` or the buffer protocol.
// Other types, strides and devices are refused (TypeError); nothing is converted or copied.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>

#include "bf16.h"

namespace nanobind::detail {
template <>
struct dtype_traits<octavo::cpu::Bf16> {
  static constexpr dlpack::dtype value{static_cast<uint8_t>(dlpack::dtype_code::Bfloat), 16, 1};
  static constexpr auto name = const_name("bfloat16");
};
}  // namespace nanobind::detail

namespace octavo::cpu {

namespace nb = nanobind;

template <class T, size_t N>
struct Dense {
  T* data = nullptr;
  size_t shape[N] = {};
  nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu> owner;  // empty when the view is borrowed

  size_t size() const {
    size_t product = 1;
    for (size_t n : shape) product *= n;
    return product;
  }
};

// The head of DLPackExchangeAPI, as far as it is used: version, older table, then five functions.
struct ExchangeTable {
  uint32_t major, minor;
  const ExchangeTable* older;
  void* unused[3];
  int (*borrow)(void* object, nb::dlpack::dltensor* view);  // may be null
};

// The table of an object's type, or null. Call with the interpreter lock held.
inline const ExchangeTable* exchange_table(PyTypeObject* type) {
  static PyTypeObject* known_type = nullptr;
  static const ExchangeTable* known = nullptr;
  if (type == known_type) return known;
  const ExchangeTable* found = nullptr;
  if (PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__")) {
    found = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);
  }
  PyErr_Clear();
  while (found && found->major > 1) found = found->older;
  if (found && (found->major != 1 || !found->borrow)) found = nullptr;
  if (found) {  // types without a table are not remembered: their address may be reused
    Py_INCREF(type);
    Py_XDECREF(known_type);
    known_type = type;
    known = found;
  }
  return found;
}

}  // namespace octavo::cpu

namespace nanobind::detail {

template <class T, size_t N>
struct type_caster<octavo::cpu::Dense<T, N>> {
  using Array = ndarray<T, ndim<N>, c_contig, device::cpu>;
  using Argument = octavo::cpu::Dense<T, N>;
  NB_TYPE_CASTER(Argument, make_caster<Array>::Name)

  bool from_python(handle source, uint8_t flags, cleanup_list* cleanup) noexcept {
    const auto* table = octavo::cpu::exchange_table(Py_TYPE(source.ptr()));
    if (!table) return own(source, flags, cleanup);
    dlpack::dltensor view;
    if (table->borrow(source.ptr(), &view) != 0) {
      PyErr_Clear();
      return false;
    }
    return accept(view);
  }

 private:
  bool accept(const dlpack::dltensor& view) noexcept {
    using Element = std::remove_const_t<T>;
    if (view.ndim != static_cast<int32_t>(N) || view.dtype != dtype_traits<Element>::value ||
        view.device.device_type != device::cpu::value)
      return false;
    int64_t dense = 1;
    for (size_t i = N; i-- > 0;) {
      if (view.strides && view.shape[i] > 1 && view.strides[i] != dense) return false;
      dense *= view.shape[i];
      value.shape[i] = static_cast<size_t>(view.shape[i]);
    }
    value.data = reinterpret_cast<T*>(static_cast<char*>(view.data) + view.byte_offset);
    return true;
  }

  bool own(handle source, uint8_t flags, cleanup_list* cleanup) noexcept {
    make_caster<Array> caster;
    if (!caster.from_python(source, flags & ~static_cast<uint8_t>(cast_flags::convert), cleanup)) return false;
    value.owner = caster.value;
    value.data = value.owner.data();
    for (size_t i = 0; i < N; ++i) value.shape[i] = value.owner.shape(i);
    return true;
  }
};

}  // namespace nanobind::detail
