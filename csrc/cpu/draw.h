// From a row of logits to a token drawn with noise, and how likely the model held one. Include after product.h.
//
// A token's score is its logit over the temperature plus Gumbel noise, which is a function of (key, token id). Top-k,
// top-p and min-p each keep the first so many tokens in the order of (logit, lower id first). So the highest score of all
// is drawn first; if its token is none of those kept, then neither is any that comes after it, and the next is drawn from
// those ahead. No row is sorted.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "product.h"

namespace octavo::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kNoiseBlock = 64;   // tokens whose noise is bounded together
constexpr size_t kCellBlock = 512;   // tokens whose tops are kept apart by lanes while the k highest are looked for
constexpr double kLeastNoise = 3.7;  // no noise is below its negative
constexpr float kSlack = 1.0001f;    // covers the roundings of a bound

// Tokens that may still be drawn, lowest id first; from n to the next multiple of kNoiseBlock values are -inf.
struct Field {
  float* values;
  int32_t* ids;  // without meaning while the row is whole
  float* spare;
  size_t n;
  bool whole;

  Field(char* scratch, size_t num)
      : values(reinterpret_cast<float*>(scratch)),
        ids(reinterpret_cast<int32_t*>(values + round_up(num, kNoiseBlock))),
        spare(reinterpret_cast<float*>(ids + round_up(num, kNoiseBlock))),
        n(num),
        whole(true) {}

  int32_t id(size_t i) const { return whole ? static_cast<int32_t>(i) : ids[i]; }

  void fill_up() {
    for (size_t i = n; i < round_up(n, kNoiseBlock); ++i) {
      values[i] = -kInfinity;
      ids[i] = 0;
    }
  }

  // Those above `least`, and the first `num_equal` of those equal to it.
  void keep(float least, size_t num_equal) {
    size_t kept = 0;
    const size_t end = n;
    for (size_t first = 0; first < end; first += kNoiseBlock) {
      F tops = load(values + first);
      for (size_t j = kPanel; j < kNoiseBlock; j += kPanel) tops = max(tops, load(values + first + j));
      if (top_of(tops) < least) continue;
      const size_t last = end - first < kNoiseBlock ? end : first + kNoiseBlock;
      for (size_t i = first; i < last; ++i) {
        const float value = values[i];
        if (value < least || (value == least && num_equal == 0)) continue;
        num_equal -= value == least;
        ids[kept] = id(i);
        values[kept++] = value;
      }
    }
    n = kept;
    whole = false;
    fill_up();
  }

  size_t num_equal_before(size_t at) const {
    size_t count = 0;
    for (size_t i = 0; i < at; ++i) count += values[i] == values[at];
    return count;
  }
};

// The `rank`-th highest of numbers (from 1), which are put into another order.
inline float ranked(float* numbers, size_t num, size_t rank) {
  std::nth_element(numbers, numbers + (rank - 1), numbers + num, [](float a, float b) { return a > b; });
  return numbers[rank - 1];
}

// Keeps the k highest, 1 <= k < n; of equal ones the lower ids. No value is NaN.
void keep_highest(Field& field, size_t k) {
  const size_t num_cells = field.n / kCellBlock * kPanel;
  if (k < num_cells) {  // the k-th highest top of disjoint cells is no higher than the k-th highest of all
    for (size_t cell = 0; cell < num_cells; cell += kPanel) {
      const float* values = field.values + cell / kPanel * kCellBlock;
      F tops = load(values);
      for (size_t j = kPanel; j < kCellBlock; j += kPanel) tops = max(tops, load(values + j));
      store(field.spare + cell, tops);
    }
    field.keep(ranked(field.spare, num_cells, k), field.n);
    if (field.n == k) return;
  }
  std::memcpy(field.spare, field.values, field.n * sizeof(float));
  const float edge = ranked(field.spare, field.n, k);
  size_t num_above = 0;
  for (size_t i = 0; i < field.n; ++i) num_above += field.values[i] > edge;
  field.keep(edge, k - num_above);
}

// SplitMix64 (Steele, Lea, Flood 2014): output number `id` of the stream `key`.
inline uint64_t random_bits(uint64_t key, int32_t id) {
  uint64_t x = key + (static_cast<uint64_t>(static_cast<uint32_t>(id)) + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline double gumbel(uint64_t bits) {
  const double uniform = (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
  return -std::log(-std::log(uniform));
}

inline float not_above(double x) {
  const float near = static_cast<float>(x);
  return static_cast<double>(near) > x ? std::nextafterf(near, -kInfinity) : near;
}

// Index of the highest score; of equal ones the first. `top` is the highest value, and finite.
//
// A token may have a score of `best` only if its noise reaches best - value. With the uniform number u, noise is
// -log(-log u), so 1 - u <= 1 - exp(-exp(value - best)) <= exp(value - best) must hold: a bound that costs no logarithm
// and that few tokens meet.
size_t highest_score(const Field& field, uint64_t key, float top) {
  double best = std::nextafter(static_cast<double>(top) - kLeastNoise, -1e300);  // below the top's own, however large it is
  size_t at = 0;
  for (size_t first = 0; first < field.n; first += kNoiseBlock) {
    alignas(64) int32_t rest[kNoiseBlock];  // 1 - u in units of 2^-31, rounded down
    if (field.whole)
      for (size_t j = 0; j < kNoiseBlock; ++j)
        rest[j] = static_cast<int32_t>(~random_bits(key, static_cast<int32_t>(first + j)) >> 33);
    else
      for (size_t j = 0; j < kNoiseBlock; ++j) rest[j] = static_cast<int32_t>(~random_bits(key, field.ids[first + j]) >> 33);
    alignas(64) float room[kNoiseBlock];  // below 0: cannot be
    const F limit = set1(not_above(best));
    F most = set1(-1.0f);
    for (size_t j = 0; j < kNoiseBlock; j += kPanel) {
      const F bound = exp(load(field.values + first + j) - limit) * set1(kSlack);
      const F some = bound - to_float(iload(rest + j)) * set1(0x1p-31f);
      most = max(most, some);
      store(room + j, some);
    }
    if (top_of(most) < 0.0f) continue;
    const size_t num = field.n - first < kNoiseBlock ? field.n - first : kNoiseBlock;
    for (size_t j = 0; j < num; ++j) {
      if (room[j] < 0.0f) continue;
      const double score = static_cast<double>(field.values[first + j]) + gumbel(random_bits(key, field.id(first + j)));
      if (score > best) {
        best = score;
        at = first + j;
      }
    }
  }
  return at;
}

// e^x for x <= 0 within 2 units; below -708 as at -708. Taylor series of the remainder, in a form compilers make vectors of.
OCTAVO_INLINE double exp_below(double x) {
  constexpr double kWhole = 0x1.8p52;  // sums with it are rounded to whole numbers
  x = x < -708.0 ? -708.0 : x;
  const double shifted = x * 1.4426950408889634 + kWhole;
  const double n = shifted - kWhole;
  const double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 52) + (uint64_t{1023} << 52);
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// Sum of exp(value - top) over values above `above`.
double mass_above(const Field& field, double top, double above) {
  double sums[kPanel] = {};
  for (size_t i = 0; i < field.n; i += kPanel)
    for (size_t j = 0; j < kPanel; ++j) {
      const double value = field.values[i + j];
      sums[j] += value > above ? exp_below(value - top) : 0.0;
    }
  double sum = 0.0;
  for (double one : sums) sum += one;
  return sum;
}

int32_t draw(const Draw& call, char* scratch) {
  Field field(scratch, call.num);
  field.fill_up();
  const F temperature = set1(call.temperature);
  F tops = set1(-kInfinity);
  for (size_t i = 0; i < call.num; i += kPanel) {
    const F some = load_some(call.logits + i, call.num - i) / temperature;
    if (any_nan(some)) return kNoToken;
    store_some(field.values + i, some, call.num - i);
    tops = max(tops, load(field.values + i));
  }
  const float top = top_of(tops);
  if (top == -kInfinity) return kNoToken;
  if (top == kInfinity) {  // beyond what the temperature leaves of float32
    size_t first = 0;
    while (field.values[first] != top) ++first;
    return static_cast<int32_t>(first);
  }

  if (call.top_k > 0 && static_cast<uint64_t>(call.top_k) < field.n) keep_highest(field, static_cast<size_t>(call.top_k));
  const double share = call.top_p < 1.0 ? call.top_p * mass_above(field, top, -kInfinity) : 0.0;
  for (;;) {
    const size_t at = highest_score(field, call.key, top);
    const float own = field.values[at];
    const size_t num_equal = field.num_equal_before(at);
    if (own == top && num_equal == 0) return field.id(at);  // the first in the order is always kept
    const bool is_likely = !(call.min_p > 0.0) || std::exp(static_cast<double>(own - top)) >= call.min_p;
    if (is_likely) {
      if (!(call.top_p < 1.0)) return field.id(at);
      const double ahead = mass_above(field, top, own) + static_cast<double>(num_equal) * exp_below(static_cast<double>(own) - top);
      if (ahead < share) return field.id(at);
    }
    field.keep(own, num_equal);
  }
}

// Log-probabilities are (logit - top) - log_mass, in float32.
size_t num_ahead(const LogRow& row, size_t token) {
  const float own = (row.logits[token] - row.top) - row.log_mass;
  size_t count = 0;
  for (size_t i = 0; i < row.num; ++i) count += (row.logits[i] - row.top) - row.log_mass > own;
  for (size_t i = 0; i < token; ++i) count += (row.logits[i] - row.top) - row.log_mass == own;
  return count;
}

void likeliest(const LogRow& row, size_t k, char* scratch, float* values, int32_t* ids) {
  Field field(scratch, row.num);
  field.fill_up();
  for (size_t i = 0; i < row.num; ++i) field.values[i] = (row.logits[i] - row.top) - row.log_mass;
  if (k < field.n) keep_highest(field, k);
  for (size_t i = 0; i < k; ++i) {
    values[i] = field.values[i];
    ids[i] = field.id(i);
  }
}

}  // namespace
}  // namespace octavo::cpu
