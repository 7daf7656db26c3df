#include "packed.h"

#include <atomic>
#include <cstring>
#include <vector>

namespace octavo::cpu {
namespace {

constexpr size_t kChunk = 16;  // inputs of sixteen rows that are turned at a time: they stay in the nearest cache

// Rows [num_rows, num_in] to columns [num_in][16], zeros for missing rows. Returns whether all are finite, also as the
// format will hold them. Rows are read a line at a time: far apart as they are, they would push each other out.
bool columns_of(const Bf16* rows, size_t num_rows, size_t num_in, Format, float* columns) {
  uint16_t chunk[kPanel][kChunk] = {};
  bool is_finite = true;
  for (size_t first = 0; first < num_in; first += kChunk) {
    const size_t count = num_in - first < kChunk ? num_in - first : kChunk;
    for (size_t lane = 0; lane < num_rows; ++lane) std::memcpy(chunk[lane], rows + lane * num_in + first, count * sizeof(Bf16));
    for (size_t lane = 0; lane < num_rows; ++lane)
      for (size_t k = 0; k < kChunk; ++k) is_finite &= (chunk[lane][k] & 0x7f80u) != 0x7f80u;
    uint32_t* out = reinterpret_cast<uint32_t*>(columns + first * kPanel);
    for (size_t k = 0; k < count; ++k)
      for (size_t lane = 0; lane < kPanel; ++lane) out[k * kPanel + lane] = static_cast<uint32_t>(chunk[lane][k]) << 16;
  }
  return is_finite;
}

bool columns_of(const float* rows, size_t num_rows, size_t num_in, Format format, float* columns) {
  float chunk[kPanel][kChunk] = {}, odd = 0.0f;
  for (size_t first = 0; first < num_in; first += kChunk) {
    const size_t count = num_in - first < kChunk ? num_in - first : kChunk;
    for (size_t lane = 0; lane < num_rows; ++lane) {
      std::memcpy(chunk[lane], rows + lane * num_in + first, count * sizeof(float));
      if (format == Format::bf16)
        for (size_t k = 0; k < kChunk; ++k) chunk[lane][k] = widen(narrow<Bf16>(chunk[lane][k]));
      for (size_t k = 0; k < kChunk; ++k) odd += chunk[lane][k] * 0.0f;  // NaN for anything infinite or undefined
    }
    for (size_t k = 0; k < count; ++k)
      for (size_t lane = 0; lane < kPanel; ++lane) columns[(first + k) * kPanel + lane] = chunk[lane][k];
  }
  return odd == 0.0f;
}

}  // namespace

Packed::Packed(const Kernels& kernels, Format format, size_t num_out, size_t num_in, size_t num_parts, bool has_bias, size_t group,
               bool whole_rows)
    : kernels_(kernels), num_parts_(num_parts) {
  weight_.format = format;
  weight_.num_out = num_out;
  weight_.num_in = num_in;
  weight_.num_panels = (num_out / num_parts + kPanel - 1) / kPanel * num_parts;
  weight_.group = format == Format::int4 ? group : 0;
  weight_.whole_rows = whole_rows;
  const size_t lines = weight_.num_panels * weight_.panel_bytes(), row = weight_.num_panels * kPanel * 4;
  const bool is_int8 = format == Format::int8;
  num_bytes_ = lines + row * (2 * is_int8 + has_bias);
  memory_ = pages(num_bytes_);
  weight_.lines = memory_.get();
  char* at = weight_.lines + lines;
  if (is_int8) {
    weight_.scales = reinterpret_cast<float*>(at);
    weight_.column_sums = reinterpret_cast<int32_t*>(at + row);
    at += 2 * row;
  }
  if (has_bias) weight_.bias = reinterpret_cast<float*>(at);
}

bool Packed::fill(Pool& pool, size_t part, size_t first, const void* rows, Number number, size_t num_rows) {
  const size_t in = weight_.num_in;
  std::atomic<bool> is_finite{true};
  std::vector<std::vector<float>> scratch(pool.num_threads());
  pool.loop((num_rows + kPanel - 1) / kPanel, [&](size_t item, size_t thread) {
    std::vector<float>& columns = scratch[thread];
    if (columns.empty()) columns.assign(weight_.padded_in() * kPanel, 0.0f);  // inputs past the last stay zero
    const size_t start = item * kPanel, count = num_rows - start < kPanel ? num_rows - start : kPanel;
    const bool good = number == Number::bf16 ? columns_of(static_cast<const Bf16*>(rows) + start * in, count, in, weight_.format, columns.data())
                                             : columns_of(static_cast<const float*>(rows) + start * in, count, in, weight_.format, columns.data());
    if (!good) is_finite = false;
    kernels_.pack(weight_, panel_of(part, first + start), columns.data());
  });
  return is_finite;
}

void Packed::fill_bias(size_t part, size_t first, const void* bias, Number number, size_t num_out) {
  for (size_t i = 0; i < num_out; ++i) {
    const float value = number == Number::bf16 ? widen(static_cast<const Bf16*>(bias)[i]) : static_cast<const float*>(bias)[i];
    weight_.bias[panel_of(part, first + i) * kPanel + (first + i) % kPanel] = value;
  }
}

void Packed::read(size_t part, size_t first, size_t num_rows, float* out) const {
  std::vector<float> columns(weight_.padded_in() * kPanel);
  for (size_t i = 0; i < num_rows; ++i, out += weight_.num_in) {
    const size_t lane = (first + i) % kPanel;
    if (i == 0 || lane == 0) kernels_.unpack(weight_, panel_of(part, first + i), columns.data());
    for (size_t k = 0; k < weight_.num_in; ++k) out[k] = columns[k * kPanel + lane];
  }
}

}  // namespace octavo::cpu
