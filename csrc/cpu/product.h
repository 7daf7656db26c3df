// Sums over panels: the one inner loop that matrix products and attention share. Include after a lanes file.
//
// acc[m][p] lane n gathers x[m][k] * w[p][k][n] for k ascending, one multiply-add after the other, so that its bits
// depend neither on the number of rows nor on how k is cut into calls.
#pragma once

#include <utility>

#include "kernels.h"

namespace octavo::cpu {
namespace {

// Calls run(0) .. run(N - 1) with the numbers known to the compiler: sums indexed by them stay in registers, which
// loops that are unrolled later do not achieve.
#if defined(__GNUC__) || defined(__clang__)
#define OCTAVO_INLINED __attribute__((always_inline))
#else
#define OCTAVO_INLINED
#endif

template <int N>
struct Constant {
  static constexpr int value = N;
  OCTAVO_INLINE constexpr operator int() const { return N; }
};
template <class Run, int... Ns>
OCTAVO_INLINE void repeat(Run&& run, std::integer_sequence<int, Ns...>) {
  (run(Constant<Ns>{}), ...);
}
template <int N, class Run>
OCTAVO_INLINE void repeat(Run&& run) {
  repeat(run, std::make_integer_sequence<int, N>{});
}
#define OCTAVO_EACH(i) [&](auto i) OCTAVO_INLINED

template <int M, int P>
OCTAVO_INLINE void clear(F (&acc)[M][P]) {
  repeat<M * P>(OCTAVO_EACH(i) { acc[i / P][i % P] = set1(0.0f); });
}

template <int M, int P>
OCTAVO_INLINE void step(const float* x, size_t x_stride, const F (&w)[P], F (&acc)[M][P]) {
  repeat<M>(OCTAVO_EACH(m) {
    const F wide = set1(x[m * x_stride]);
    repeat<P>(OCTAVO_EACH(p) { acc[m][p] = fma(wide, w[p], acc[m][p]); });
  });
}

// What a product asks memory for on the way, once for every line that it reads of panel p. Asked all at once, much of it
// would be dropped.
struct AskNothing {
  OCTAVO_INLINE void operator()(int, const void*) const {}
};
// What lies ahead of weights: neighbouring panels are neighbours in memory too.
struct AskAhead {
  static constexpr size_t kBytes = 1024;
  OCTAVO_INLINE void operator()(int, const void* line) const { __builtin_prefetch(static_cast<const char*>(line) + kBytes); }
};

// Where runs of rows pass the same panels one after the other, memory would rest while all but the first do: each asks for
// its part of the panels that come next, `bytes` further on. Where multiplying takes longer than reading (many runs, and
// whole numbers) that only costs.
struct AskPart {
  static constexpr size_t kMostRuns = 4;
  const char *panels, *part;
  size_t runs_256;  // 256 over the number of runs

  AskPart(const char* panels, size_t bytes, size_t run, size_t runs)
      : panels(panels), part(panels + bytes + bytes * run / runs), runs_256(256 / runs) {}
  OCTAVO_INLINE void operator()(int, const void* line) const {
    __builtin_prefetch(part + static_cast<size_t>(static_cast<const char*>(line) - panels) * runs_256 / 256);
  }
};

// Parts of panels pass many rows one after the other: `ask`, once for each run of rows, asks for its share of the parts that
// come next, which are those of the next panels, or of the next inputs of the first ones, or of whatever follows.
struct AskParts {
  const char* next;
  size_t num, panel_bytes, part_bytes, each, done = 0;

  // Panels first + p .. first + p + num - 1 pass, from the byte that belongs to input k on.
  AskParts(const Weight& w, size_t first, size_t last, size_t p, size_t num, size_t k, size_t part_bytes, size_t runs)
      : num(num), panel_bytes(w.panel_bytes()), part_bytes(part_bytes), each(round_up(part_bytes / runs + 1, kLineBytes)) {
    const size_t at = k * panel_bytes / w.padded_in();
    if (first + p + num < last)
      next = w.panel(first + p + num) + at;
    else if (at + part_bytes < panel_bytes)
      next = w.panel(first) + at + part_bytes;
    else
      next = w.panel(last);
  }
  OCTAVO_INLINE void operator()() {
    for (const size_t end = done + each; done < end && done < part_bytes; done += kLineBytes)
      for (size_t i = 0; i < num; ++i) __builtin_prefetch(next + i * panel_bytes + done);
  }
};

// What is read after this is not read before it: GCC would fetch early what registers cannot hold besides the sums.
OCTAVO_INLINE void read_later() {
#if defined(__GNUC__) || defined(__clang__)
  asm volatile("" ::: "memory");
#endif
}

// x  [M] rows, x_stride floats apart; its element 0 belongs to k = first
// w  [P] panels
template <int M, int P, class Ask = AskNothing>
OCTAVO_INLINE void product(const float* x, size_t x_stride, const Bf16* const (&w)[P], size_t first, size_t last,
                    F (&acc)[M][P], const Ask& ask = {}) {
  constexpr size_t kLine = 2 * kPanel;
  F sums[M][P], lanes[P];  // of this call alone: the caller's may be looked at with indices that vary
  repeat<M * P>(OCTAVO_EACH(i) { sums[i / P][i % P] = acc[i / P][i % P]; });
  size_t k = first;
  if (k % 2 && k < last) {
    repeat<P>(OCTAVO_EACH(p) { lanes[p] = second_of(w[p] + k / 2 * kLine); });
    step<M, P>(x, x_stride, lanes, sums);
    ++k;
  }
  for (; k + 2 <= last; k += 2) {
    repeat<P>(OCTAVO_EACH(p) { ask(p, w[p] + k / 2 * kLine); });
    repeat<P>(OCTAVO_EACH(p) { lanes[p] = first_of(w[p] + k / 2 * kLine); });
    step<M, P>(x + (k - first), x_stride, lanes, sums);
    if constexpr (P > 1 || M >= 5) read_later();
    repeat<P>(OCTAVO_EACH(p) { lanes[p] = second_of(w[p] + k / 2 * kLine); });
    step<M, P>(x + (k + 1 - first), x_stride, lanes, sums);
  }
  if (k < last) {
    repeat<P>(OCTAVO_EACH(p) { lanes[p] = first_of(w[p] + k / 2 * kLine); });
    step<M, P>(x + (k - first), x_stride, lanes, sums);
  }
  repeat<M * P>(OCTAVO_EACH(i) { acc[i / P][i % P] = sums[i / P][i % P]; });
}

template <int M, int P, class Ask = AskNothing>
OCTAVO_INLINE void product(const float* x, size_t x_stride, const float* const (&w)[P], size_t first, size_t last,
                    F (&acc)[M][P], const Ask& ask = {}) {
  F sums[M][P], lanes[P];
  repeat<M * P>(OCTAVO_EACH(i) { sums[i / P][i % P] = acc[i / P][i % P]; });
  for (size_t k = first; k < last; ++k) {
    repeat<P>(OCTAVO_EACH(p) {
      ask(p, w[p] + k * kPanel);
      lanes[p] = load(w[p] + k * kPanel);
    });
    step<M, P>(x + (k - first), x_stride, lanes, sums);
  }
  repeat<M * P>(OCTAVO_EACH(i) { acc[i / P][i % P] = sums[i / P][i % P]; });
}

// The same over int8 codes, in whole numbers: exact in any order. k0, k1 are multiples of four.
template <int M, int P, class Ask = AskNothing>
OCTAVO_INLINE void product(const Quant* x, size_t x_stride, const int8_t* const (&w)[P], size_t first, size_t last,
                    I (&acc)[M][P], const Ask& ask = {}) {
  I sums[M][P];
  repeat<M * P>(OCTAVO_EACH(i) { sums[i / P][i % P] = acc[i / P][i % P]; });
  for (size_t k = first; k < last; k += 4) {
    const Quant* at = x + (k - first);
    repeat<P>(OCTAVO_EACH(p) { ask(p, w[p] + k * kPanel); });
#ifdef OCTAVO_VNNI
    I lines[P];
    repeat<P>(OCTAVO_EACH(p) { lines[p] = iload(reinterpret_cast<const int32_t*>(w[p] + k * kPanel)); });
    repeat<M>(OCTAVO_EACH(m) {
      const I four = four_of(at + m * x_stride);
      repeat<P>(OCTAVO_EACH(p) { sums[m][p] = dot_four(sums[m][p], lines[p], four); });
    });
#else
    repeat<2 * P>(OCTAVO_EACH(i) {
      constexpr int p = decltype(i)::value / 2, half = decltype(i)::value % 2;
      const I lanes = half_of(w[p] + k * kPanel, half);
      repeat<M>(OCTAVO_EACH(m) { sums[m][p] = dot_half(sums[m][p], lanes, at + m * x_stride + 2 * half); });
    });
#endif
  }
  repeat<M * P>(OCTAVO_EACH(i) { acc[i / P][i % P] = sums[i / P][i % P]; });
}

// One group of int4 codes (its lines start at `lines`), in whole numbers: sums[m] of x[m][k] * code.
template <int M>
OCTAVO_INLINE void group_product(const int8_t* x, size_t x_stride, const uint8_t* lines, size_t num_in, I (&sums)[M]) {
  for (size_t k = 0; k < num_in; k += 32) {  // a lane of sixteen bits holds eight sums of two products each
    Shorts part[M];
    repeat<M>(OCTAVO_EACH(m) { part[m] = shorts_zero(); });
    repeat<4>(OCTAVO_EACH(i) {
      const uint8_t* line = lines + (k / 8 + i) * kLineBytes;
      AskAhead()(0, line);
      const int8_t* at = x + k + 8 * i;
      const I low = low_nibbles(line);
      repeat<M>(OCTAVO_EACH(m) { part[m] = dot_nibbles(part[m], low, at + m * x_stride); });
      const I high = high_nibbles(line);
      repeat<M>(OCTAVO_EACH(m) { part[m] = dot_nibbles(part[m], high, at + m * x_stride + 4); });
    });
    repeat<M>(OCTAVO_EACH(m) { sums[m] = sums[m] + widen(part[m]); });
  }
}

// Calls run(Constant<M>) for M = rows, 1 .. kRows.
template <int M = kRows, class Run>
inline void with_rows(size_t rows, Run&& run) {
  if constexpr (M > 0) {
    if (rows == static_cast<size_t>(M)) return run(Constant<M>{});
    with_rows<M - 1>(rows, run);
  }
}

inline size_t num_runs(size_t rows, size_t most) { return (rows + most - 1) / most; }
// Calls run(row, rows) for runs of at most `most` rows, as even as can be: two of four are faster than six and two.
template <class Run>
OCTAVO_INLINE void even_runs(size_t first, size_t last, size_t most, Run&& run) {
  for (size_t left = last - first, runs = num_runs(left, most); runs > 0; --runs) {
    const size_t rows = (left + runs - 1) / runs;
    run(last - left, rows);
    left -= rows;
  }
}

// --- elements ------------------------------------------------------------------------------------------------

template <class T>
inline F load_some(const T* p, size_t n) {
  if (n >= kPanel) return load(p);
  T whole[kPanel] = {};
  std::memcpy(whole, p, n * sizeof(T));
  return load(whole);
}
template <class T>
inline void store_some(T* p, F x, size_t n) {
  if (n >= kPanel) return store(p, x);
  T whole[kPanel];
  store(whole, x);
  std::memcpy(p, whole, n * sizeof(T));
}
// x as T would hold it.
template <class T>
inline F rounded_to(F x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return x;
  } else {
    T whole[kPanel];
    store(whole, x);
    return load(whole);
  }
}

inline float sum_of(F x) {
  float v[kPanel];
  store(v, x);
  for (size_t half = kPanel / 2; half > 0; half /= 2)
    for (size_t i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

// e^x within 2 units; 0 below -87.3, infinity above 88.7, NaN for NaN.
// Range reduction and polynomial: Cephes expf (S. Moshier), degree 6 in the remainder.
inline F exp(F x) {
  x = max(set1(-104.0f), min(set1(89.0f), x));
  const F n = round(x * set1(1.44269504088896341f));
  F r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  F p = fma(set1(1.9875691500e-4f), r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r) + set1(1.0f);
  return scale_by_power(p + p, n - set1(1.0f));  // twice and half: 2^128 is no float, twice 2^127 is
}

template <class T>
inline F silu(F x) {
  return rounded_to<T>(x / (set1(1.0f) + exp(set1(0.0f) - x)));
}

}  // namespace
}  // namespace octavo::cpu
