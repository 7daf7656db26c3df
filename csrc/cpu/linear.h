// Matrix products with packed weights, any number of rows. Include after product.h.
#pragma once

#include "linear_codes.h"

namespace octavo::cpu {
namespace {

// A prepared row: the elements, then for int4 the sum of each group's codes, then for int8 and int4 the scale.
struct Prepared {
  size_t elements_bytes, sums_bytes, bytes;
  explicit Prepared(const Weight& w) {
    const size_t in = w.padded_in();
    elements_bytes = w.format == Format::int8 ? in * sizeof(Quant) : w.format == Format::int4 ? in : in * sizeof(float);
    sums_bytes = w.format == Format::int4 ? w.num_groups() * sizeof(float) : 0;
    const size_t used = elements_bytes + sums_bytes + sizeof(float);
    bytes = round_up(used, kLineBytes) + kLineBytes;  // one line more: rows must not all fall on the same cache set
  }
  const float* sums(const char* row) const { return reinterpret_cast<const float*>(row + elements_bytes); }
  float* sums(char* row) const { return reinterpret_cast<float*>(row + elements_bytes); }
  float scale(const char* row) const {
    float value;
    std::memcpy(&value, row + elements_bytes + sums_bytes, sizeof value);
    return value;
  }
  void set_scale(char* row, float value) const { std::memcpy(row + elements_bytes + sums_bytes, &value, sizeof value); }
};

size_t row_bytes(const Weight& w) { return in_codes(w) ? CodesAsFloats::layout(w).bytes : Prepared(w).bytes; }

template <class T>
void widen_row(const Weight& w, const T* x, char* out) {
  float* to = reinterpret_cast<float*>(out);
  size_t i = 0;
  for (; i + kPanel <= w.num_in; i += kPanel) store(to + i, load(x + i));
  for (; i < w.num_in; i += kPanel) store(to + i, load_some(x + i, w.num_in - i));
  for (i = round_up(w.num_in, kPanel); i < w.padded_in(); i += kPanel) store(to + i, set1(0.0f));
}

// Codes -127 .. 127 of scale max|x| / 127, rounded to nearest; a row with anything not finite gets a scale of NaN.
template <class T>
void quantize_row(const Weight& w, const T* x, char* out) {
  const Prepared row(w);
  const size_t in = w.padded_in();
  F tops = set1(0.0f), odd = set1(0.0f);
  for (size_t i = 0; i < w.num_in; i += kPanel) {
    const F some = load_some(x + i, w.num_in - i);
    tops = max(tops, abs(some));
    odd = fma(some, set1(0.0f), odd);  // NaN for anything infinite or undefined
  }
  const float top = top_of(tops), spoilt = sum_of(odd);
  const float scale = top > kNothing ? top / 127.0f : 0.0f;
  const F inverse = set1(scale > 0.0f && spoilt == 0.0f ? 127.0f / top : 0.0f);
  row.set_scale(out, scale + spoilt);
  const size_t group = w.format == Format::int4 ? w.group : in;
  int32_t codes[kPanel];
  int32_t sum = 0;
  for (size_t i = 0; i < in; i += kPanel) {
    const F some = i < w.num_in && spoilt == 0.0f ? load_some(x + i, w.num_in - i) : set1(0.0f);
    istore(codes, to_int(round(max(set1(-127.0f), min(set1(127.0f), some * inverse)))));
    if (w.format == Format::int8) {
      for (size_t j = 0; j < kPanel; ++j) reinterpret_cast<Quant*>(out)[quant_place(i + j)] = to_quant(codes[j]);
      continue;
    }
    for (size_t j = 0; j < kPanel; ++j) {
      reinterpret_cast<int8_t*>(out)[i + j] = static_cast<int8_t>(codes[j]);
      sum += codes[j];
    }
    if ((i + kPanel) % group == 0) {
      row.sums(out)[(i + kPanel) / group - 1] = static_cast<float>(sum);
      sum = 0;
    }
  }
}

template <class T>
void prepare_rows(const Weight& w, const T* x, size_t x_stride, char* out, size_t out_stride, size_t num_rows) {
  const bool whole = w.format == Format::int8 || w.format == Format::int4;
  for (size_t t = 0; t < num_rows; ++t) {
    if (whole)
      quantize_row(w, x + t * x_stride, out + t * out_stride);
    else
      widen_row(w, x + t * x_stride, out + t * out_stride);
  }
}

void prepare(const Weight& w, Number number, const void* x, size_t x_stride, char* out, size_t out_stride,
             size_t num_rows) {
  if (in_codes(w)) return coded_prepare<CodesAsFloats>(w, number, x, x_stride, out, out_stride, num_rows);
  if (number == Number::bf16)
    prepare_rows(w, static_cast<const Bf16*>(x), x_stride, out, out_stride, num_rows);
  else
    prepare_rows(w, static_cast<const float*>(x), x_stride, out, out_stride, num_rows);
}

// --- sums straight from the packed weight ------------------------------------------------------------------------

inline F from_codes(const Weight& w, const Prepared& layout, const char* row, size_t panel, I sums) {
  if constexpr (kVnni) {
    const I column = iload(w.column_sums + panel * kPanel);
    int32_t value[kPanel], taken[kPanel];
    istore(value, sums);
    istore(taken, column);
    for (size_t i = 0; i < kPanel; ++i) value[i] -= 128 * taken[i];
    sums = iload(value);
  }
  return to_float(sums) * (load(w.scales + panel * kPanel) * set1(layout.scale(row)));
}

template <int M, int P, class Ask>
OCTAVO_INLINE void sums_of(const Weight& w, const Prepared& layout, const char* x, size_t x_stride, size_t panel, F (&y)[M][P],
                           const Ask& ask) {
  const size_t in = w.padded_in();
  const char* at[P];
  for (int p = 0; p < P; ++p) at[p] = w.panel(panel + p);
  if (w.format == Format::bf16) {
    const Bf16* lines[P];
    for (int p = 0; p < P; ++p) lines[p] = reinterpret_cast<const Bf16*>(at[p]);
    clear<M, P>(y);
    product<M, P>(reinterpret_cast<const float*>(x), x_stride / sizeof(float), lines, 0, in, y, ask);
  } else if (w.format == Format::f32) {
    const float* lines[P];
    for (int p = 0; p < P; ++p) lines[p] = reinterpret_cast<const float*>(at[p]);
    clear<M, P>(y);
    product<M, P>(reinterpret_cast<const float*>(x), x_stride / sizeof(float), lines, 0, in, y, ask);
  } else if (w.format == Format::int8) {
    const int8_t* lines[P];
    for (int p = 0; p < P; ++p) lines[p] = reinterpret_cast<const int8_t*>(at[p]);
    I sums[M][P];
    repeat<M * P>(OCTAVO_EACH(i) { sums[i / P][i % P] = izero(); });
    product<M, P>(reinterpret_cast<const Quant*>(x), x_stride / sizeof(Quant), lines, 0, in, sums, AskAhead());
    repeat<M * P>(OCTAVO_EACH(i) {
      constexpr int m = decltype(i)::value / P, p = decltype(i)::value % P;
      y[m][p] = from_codes(w, layout, x + m * x_stride, panel + p, sums[m][p]);
      });
  }
}

// int4: each group's whole sums, scaled and added in order of the groups.
template <int M>
OCTAVO_INLINE void group_sums(const Weight& w, const Prepared& layout, const char* x, size_t x_stride, const char* panel,
                              F (&y)[M]) {
  const size_t group_bytes = (w.group / 8 + 1) * kLineBytes;
  repeat<M>(OCTAVO_EACH(m) { y[m] = set1(0.0f); });
  for (size_t g = 0; g < w.num_groups(); ++g, panel += group_bytes) {
    I sums[M];
    repeat<M>(OCTAVO_EACH(m) { sums[m] = izero(); });
    group_product<M>(reinterpret_cast<const int8_t*>(x) + g * w.group, x_stride,
                     reinterpret_cast<const uint8_t*>(panel + kLineBytes), w.group, sums);
    const Bf16* line = reinterpret_cast<const Bf16*>(panel);
    const F scale = first_of(line), least = second_of(line);
    repeat<M>(OCTAVO_EACH(m) {
      y[m] = fma(scale, to_float(sums[m]), y[m]);
      y[m] = fma(layout.sums(x + m * x_stride)[g], least, y[m]);
    });
  }
  repeat<M>(OCTAVO_EACH(m) { y[m] = y[m] * set1(layout.scale(x + m * x_stride)); });
}

template <class T, int M, class Ask>
inline void few_rows(const Linear& call, const Prepared& layout, size_t row, size_t first, size_t last, const Ask& ask) {
  const Weight& w = *call.weight;
  const char* x = call.x + row * call.x_stride;
  const auto one = [&](size_t panel, F(&y)[M][1]) {
    if (w.format == Format::int4) {
      F sums[M];
      group_sums<M>(w, layout, x, call.x_stride, w.panel(panel), sums);
      for (int m = 0; m < M; ++m) y[m][0] = sums[m];
    } else {
      sums_of<M, 1>(w, layout, x, call.x_stride, panel, y, ask);
    }
  };
  size_t panel = first;
  for (; panel + 2 <= last; panel += 2) {
    F y[M][2];
    if (M <= kPairRows && w.format != Format::int4) {
      sums_of<M, 2>(w, layout, x, call.x_stride, panel, y, ask);
    } else {
      for (int p = 0; p < 2; ++p) {
        F half[M][1];
        one(panel + p, half);
        for (int m = 0; m < M; ++m) y[m][p] = half[m][0];
      }
    }
    for (int m = 0; m < M; ++m) finish<T, 2>(call, row + m, panel, y[m]);
  }
  if (panel < last) {
    F y[M][1];
    one(panel, y);
    for (int m = 0; m < M; ++m) finish<T, 1>(call, row + m, panel, y[m]);
  }
}

// --- many rows of int8: panels are unpacked a part at a time, and sums wait in memory meanwhile --------------------

#ifndef OCTAVO_VNNI
// Panel `at`, inputs first .. last - 1, as halves of fours, sixteen bits each: what `dot_half` takes.
inline void unpack(const int8_t* at, size_t first, size_t last, int32_t* out) {
  for (size_t k = first; k < last; k += 4, out += 2 * kPanel) {
    istore(out, half_of(at + k * kPanel, 0));
    istore(out + kPanel, half_of(at + k * kPanel, 1));
  }
}
#endif

// P parts of panels, each `num_in` inputs from input k on, as `dot_four` or `dot_half` take them.
template <int M, int P>
OCTAVO_INLINE void add_block(const Quant* x, size_t x_stride, const int32_t* const (&lines)[P], size_t num_in, int32_t* sums,
                             size_t stride) {
  I acc[M][P];
  repeat<M * P>(OCTAVO_EACH(i) { acc[i / P][i % P] = iload(sums + i / P * stride + i % P * kPanel); });
#ifdef OCTAVO_VNNI
  const int8_t* codes[P];
  for (int p = 0; p < P; ++p) codes[p] = reinterpret_cast<const int8_t*>(lines[p]);
  product<M, P>(x, x_stride, codes, 0, num_in, acc);
#else
  for (size_t k = 0; k < num_in; k += 2)
    repeat<P>(OCTAVO_EACH(p) {
      const I half = iload(lines[p] + k * (kPanel / 2));
      repeat<M>(OCTAVO_EACH(m) { acc[m][p] = dot_half(acc[m][p], half, x + m * x_stride + k); });
    });
#endif
  repeat<M * P>(OCTAVO_EACH(i) { istore(sums + i / P * stride + i % P * kPanel, acc[i / P][i % P]); });
}

template <class T>
void many_rows(const Linear& call, const Prepared& layout, size_t first, size_t last, size_t first_row, size_t last_row,
               char* scratch) {
  const Weight& w = *call.weight;
  const size_t in = w.padded_in(), panels = last - first, stride = panels * kPanel, num_rows = last_row - first_row;
  int32_t* sums = reinterpret_cast<int32_t*>(scratch);
  std::memset(sums, 0, num_rows * stride * sizeof(int32_t));
#ifndef OCTAVO_VNNI
  int32_t* unpacked = reinterpret_cast<int32_t*>(scratch + round_up(num_rows * stride * sizeof(int32_t), 4096));
#endif
  const auto add = [&](auto num, size_t k, size_t num_in, size_t p) {
    constexpr int P = decltype(num)::value;
    const int32_t* lines[P];
    for (int i = 0; i < P; ++i) {
      const char* panel = w.panel(first + p + i);
#ifdef OCTAVO_VNNI
      lines[i] = reinterpret_cast<const int32_t*>(panel + k * kPanel);
#else
      unpack(reinterpret_cast<const int8_t*>(panel), k, k + num_in, unpacked);
      lines[i] = unpacked;
#endif
    }
    // Meanwhile memory is asked for the parts that come next: of the next panels, or the next inputs of the first.
    AskParts ask(w, first, last, p, P, k, kInBlock * kPanel, num_runs(num_rows, kRows));
    even_runs(first_row, last_row, kRows, [&](size_t row, size_t rows) {
      ask();
      const Quant* x = reinterpret_cast<const Quant*>(call.x + row * call.x_stride) + k;
      int32_t* at = sums + (row - first_row) * stride + p * kPanel;
      with_rows(rows, [&](auto m) { add_block<m.value, P>(x, call.x_stride / sizeof(Quant), lines, num_in, at, stride); });
    });
  };
  for (size_t k = 0; k < in; k += kInBlock) {
    const size_t num_in = k + kInBlock < in ? kInBlock : in - k;
    size_t p = 0;
    if constexpr (kVnni)
      for (; p + 2 <= panels; p += 2) add(Constant<2>{}, k, num_in, p);
    for (; p < panels; ++p) add(Constant<1>{}, k, num_in, p);
  }
  for (size_t row = first_row; row < last_row; ++row, sums += stride) {
    const auto value = [&](size_t p) {
      return from_codes(w, layout, call.x + row * call.x_stride, first + p, iload(sums + p * kPanel));
    };
    size_t p = 0;
    for (; p + 2 <= panels; p += 2) {
      const F y[2] = {value(p), value(p + 1)};
      finish<T, 2>(call, row, first + p, y);
    }
    if (p < panels) {
      const F y[1] = {value(p)};
      finish<T, 1>(call, row, first + p, y);
    }
  }
}

template <class T>
void linear_as(const Linear& call, size_t first, size_t last, size_t first_row, size_t last_row, char* scratch) {
  const Prepared layout(*call.weight);
  if (call.weight->format == Format::int8 && last_row - first_row > 2 * kRows)
    return many_rows<T>(call, layout, first, last, first_row, last_row, scratch);
  const bool unpacks = call.weight->format == Format::bf16 || call.weight->format == Format::int4;
  const size_t at_a_time = unpacks ? kUnpackingRows : kRows;
  const bool floats = call.weight->format == Format::bf16 || call.weight->format == Format::f32;
  const size_t runs = num_runs(last_row - first_row, at_a_time);
  const bool in_parts = floats && runs > 1 && runs <= AskPart::kMostRuns;
  // Two panels at a time, so that they stay in the nearest cache while rows pass.
  for (size_t panel = first; panel < last; panel += 2) {
    const size_t end = panel + 2 < last ? panel + 2 : last;
    size_t run = 0;
    even_runs(first_row, last_row, at_a_time, [&](size_t row, size_t rows) {
      with_rows(rows, [&](auto m) {
        const Weight& w = *call.weight;
        if (in_parts)
          few_rows<T, m.value>(call, layout, row, panel, end,
                               AskPart(w.panel(panel), (end - panel) * w.panel_bytes(), run, runs));
        else
          few_rows<T, m.value>(call, layout, row, panel, end, AskAhead());
      });
      ++run;
    });
  }
}

void linear(const Linear& call, size_t first, size_t last, size_t first_row, size_t last_row, char* scratch) {
  if (in_codes(*call.weight))
    coded_linear<CodesAsFloats>(call, first, last, first_row, last_row);
  else if (call.number == Number::bf16)
    linear_as<Bf16>(call, first, last, first_row, last_row, scratch);
  else
    linear_as<float>(call, first, last, first_row, last_row, scratch);
}

void embed(const Weight& w, Number number, int64_t token, void* out) {
  const size_t panel = static_cast<size_t>(token) / kPanel, lane = static_cast<size_t>(token) % kPanel;
  const char* lines = w.panel(panel);
  for (size_t k = 0; k < w.num_in; ++k) {
    float value = 0;
    if (w.format == Format::bf16)
      value = widen(reinterpret_cast<const Bf16*>(lines)[k / 2 * 2 * kPanel + 2 * lane + k % 2]);
    else if (w.format == Format::f32)
      value = reinterpret_cast<const float*>(lines)[k * kPanel + lane];
    else if (w.format == Format::int8)
      value = static_cast<float>(reinterpret_cast<const int8_t*>(lines)[k / 4 * kLineBytes + 4 * lane + k % 4]) * w.scales[static_cast<size_t>(token)];
    if (number == Number::bf16)
      static_cast<Bf16*>(out)[k] = narrow<Bf16>(value);
    else
      static_cast<float*>(out)[k] = value;
  }
}

}  // namespace
}  // namespace octavo::cpu
