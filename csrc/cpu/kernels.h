// What every instruction set offers: one table of functions over raw pointers. Callers check shapes; nothing here
// allocates, locks or starts a thread, and every function works on the part of an op it is given.
//
// A row's bits depend on nothing but that row: every sum runs in an order fixed by widths and positions alone.
//
// Weights lie in panels of sixteen outputs. A panel is a sequence of 64-byte lines, each holding the same few
// inputs k of all sixteen outputs side by side:
//
//   f32   one k:      w[k] of output 0, of output 1 ... of output 15
//   bf16  two ks:     w[k] w[k+1] of output 0, w[k] w[k+1] of output 1 ...
//   int8  four ks:    w[k] .. w[k+3] of output 0 ...
//   int4  eight ks:   byte j of output o holds w[k+j] (low half) and w[k+4+j] (high half), as 0 .. 15; each group
//                     of inputs is led by a line of bf16 pairs (scale, minimum): weight = scale * code + minimum
//
// so that sums over k run down the panel in all sixteen lanes at once, whatever the number of rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bf16.h"

namespace octavo::cpu {

constexpr size_t kPanel = 16;      // outputs of a panel
constexpr size_t kLineBytes = 64;  // of a panel
constexpr size_t kInAlign = 64;    // inputs are padded with zeros to a multiple of this
constexpr float kNothing = 1e-30f; // rows and outputs that stay below this become zeros when they are quantized

// Inlined always: files are compiled for different instruction sets, and must not share a copy.
#if defined(__GNUC__) || defined(__clang__)
#define OCTAVO_INLINE __attribute__((always_inline)) inline
#else
#define OCTAVO_INLINE inline
#endif

OCTAVO_INLINE constexpr size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

enum class Number : uint8_t { f32, bf16 };  // what activations, keys and values are stored as
enum class Format : uint8_t { f32, bf16, int8, int4 };

// A packed weight [out, in]. The memory is the owner's.
struct Weight {
  Format format = Format::f32;
  size_t num_out = 0, num_in = 0;
  size_t num_panels = 0;           // two for each sixteen outputs of a gate and its up, which take turns
  size_t group = 0;                // int4: inputs that share a scale: 32, 64 or 128
  bool whole_rows = true;          // int4: rows become whole numbers as well; else bfloat16
  char* lines = nullptr;           // [panels, panel_bytes]
  float* scales = nullptr;         // int8: [panels * 16]
  int32_t* column_sums = nullptr;  // int8: [panels * 16], of the codes
  float* bias = nullptr;           // [panels * 16], or null

  OCTAVO_INLINE size_t padded_in() const { return round_up(num_in, format == Format::int4 && group > kInAlign ? group : kInAlign); }
  OCTAVO_INLINE size_t num_groups() const { return group ? padded_in() / group : 0; }
  OCTAVO_INLINE size_t panel_bytes() const {
    const size_t in = padded_in();
    switch (format) {
      case Format::f32: return in * kLineBytes;
      case Format::bf16: return in / 2 * kLineBytes;
      case Format::int8: return in / 4 * kLineBytes;
      case Format::int4: return (in / 8 + num_groups()) * kLineBytes;
    }
    return 0;
  }
  OCTAVO_INLINE const char* panel(size_t index) const { return lines + index * panel_bytes(); }
};

// What becomes of a product's sums y, rounded to the activations' number first.
enum class Finish : uint8_t {
  store,   // out = y
  add,     // out += y
  gate,    // panels alternate between gate and up: out = silu(gate) * up, half as wide
  widen,   // out is float32: out = y
};

struct Linear {
  const Weight* weight;
  const char* x;      // rows made by `prepare`
  size_t x_stride;    // bytes
  void* out;
  size_t out_stride;  // elements
  Finish finish;
  Number number;
};

struct Norm {
  const void* x;      // [rows, width]
  const void* weight; // [width]
  void* out;          // [rows, width], may be x
  size_t width;
  float eps;
  Number number;
};

// Keys and values of one layer. A block holds, for each KV head, its keys and then its values, in panels like those
// of a weight: keys with tokens as outputs (16 of them, or P where P is less) and the head's width as inputs; values
// with the head's width as outputs and tokens as inputs.
struct KvLayout {
  size_t num_kv_heads, head_dim, block_tokens;
  Number number;

  OCTAVO_INLINE size_t pair() const { return number == Number::bf16 ? 2 : 1; }  // inputs in a line
  OCTAVO_INLINE size_t item() const { return number == Number::bf16 ? 2 : 4; }
  OCTAVO_INLINE size_t padded_dim() const { return round_up(head_dim, kPanel); }
  OCTAVO_INLINE size_t padded_tokens() const { return round_up(block_tokens, pair()); }
  OCTAVO_INLINE size_t lanes() const { return block_tokens < kPanel ? block_tokens : kPanel; }
  OCTAVO_INLINE size_t side_items() const { return padded_tokens() * padded_dim(); }  // of one head's keys, or values
  OCTAVO_INLINE size_t block_items() const { return 2 * num_kv_heads * side_items(); }
  // Index of an element within a block.
  OCTAVO_INLINE size_t key(size_t head, size_t token, size_t d) const {
    const size_t n = lanes(), p = pair();
    return head * side_items() + (token / n * (padded_dim() / p) + d / p) * n * p + token % n * p + d % p;
  }
  OCTAVO_INLINE size_t value(size_t head, size_t token, size_t d) const {
    const size_t p = pair();
    return (num_kv_heads + head) * side_items() + (d / kPanel * (padded_tokens() / p) + token / p) * kPanel * p +
           d % kPanel * p + token % p;
  }
};

struct Rope {
  void* qkv;            // [rows, (H + 2 K) * D]; q is turned in place, k and v go to the blocks
  const void *q_norm, *k_norm;  // [D], or null
  const float *cos, *sin;       // [positions, D / 2]
  const int64_t *positions, *slots;  // [rows]
  void* blocks;
  KvLayout kv;
  size_t num_heads;
  float eps;
};

struct Attention {
  const void* q;        // rows of q_stride elements, turned; [H, D] each
  size_t q_stride;
  const void* blocks;
  KvLayout kv;
  const int32_t* tables;  // [S, table_width]
  size_t table_width;
  size_t num_heads;
  float scale;
  int64_t window;       // 0: none
  void* out;            // [rows, H * D]
};

// Neighbouring rows of one sequence under one KV head, over tiles first_tile .. last_tile - 1 of its positions.
struct AttentionItem {
  size_t seq, head, row, num_rows;
  int64_t position;  // of the first row
  size_t split, num_splits;  // 0, 1: all tiles, finished. Else this split only, left in `partial`
  float* partial;    // [num_rows * group, num_splits, kPartial + padded D]
};

constexpr size_t kTile = 64;             // positions whose scores are held at a time
constexpr size_t kSplit = 16 * kTile;    // positions after which sums start anew, to be merged in order
constexpr size_t kPartial = 16;          // floats before a partial sum: peak, mass

struct Peak {   // of a part of a row of logits
  float top;    // NaN where any is
  int32_t at;   // lowest index of top
  double mass;  // sum of exp(x - top)
};

// One token to be drawn from a row of logits; see draw.h.
struct Draw {
  const float* logits;
  size_t num;
  float temperature;     // above 0
  int64_t top_k;         // 0 and below, and from num on: off
  double top_p, min_p;   // above 0, 1 is off; 0 is off, at most 1
  uint64_t key;          // of the noise
};

// A row of logits with what its log-probabilities (logit - top) - log_mass are reckoned from.
struct LogRow {
  const float* logits;
  size_t num;
  float top, log_mass;
};

constexpr int32_t kNoToken = -1;
// Of `draw` and `likeliest`.
constexpr size_t draw_scratch_bytes(size_t num) { return 3 * sizeof(float) * round_up(num, kLineBytes); }

struct Kernels {
  const char* name;
  // One panel from floats [padded in][16].
  void (*pack)(Weight& weight, size_t panel, const float* columns);
  // And back, as the products see it.
  void (*unpack)(const Weight& weight, size_t panel, float* columns);
  // Bytes of one row as `linear` wants it.
  size_t (*row_bytes)(const Weight& weight);
  // Rows [rows, in] to prepared rows. Kernels on tiles, and on pairs of bfloat16, round float32 rows to bfloat16 where
  // the weight is.
  void (*prepare)(const Weight& weight, Number number, const void* x, size_t x_stride, char* out, size_t out_stride,
                  size_t num_rows);
  // Panels first .. last - 1 (even numbers where finish is gate) of rows first_row .. last_row - 1. `scratch` has
  // kScratchBytes.
  void (*linear)(const Linear& call, size_t first, size_t last, size_t first_row, size_t last_row, char* scratch);
  void (*norm)(const Norm& call, size_t first_row, size_t last_row);
  void (*rope)(const Rope& call, size_t first_row, size_t last_row);
  size_t (*attention_scratch)(const Attention& call, size_t num_rows);
  void (*attention)(const Attention& call, const AttentionItem& item, char* scratch);
  // Merge the parts of an item's rows and write them out.
  void (*merge)(const Attention& call, const AttentionItem& item);
  void (*embed)(const Weight& table, Number number, int64_t token, void* out);
  Peak (*peak)(const float* logits, size_t num);
  // kNoToken where a logit is NaN or all are -inf.
  int32_t (*draw)(const Draw& call, char* scratch);
  // How many tokens come before one: those of a higher log-probability, and equal ones of lower id.
  size_t (*num_ahead)(const LogRow& row, size_t token);
  // The k tokens of highest log-probability, of equal ones the lower ids; in no order. 1 <= k <= num.
  void (*likeliest)(const LogRow& row, size_t k, char* scratch, float* logprobs, int32_t* ids);
};

constexpr size_t kRowBlock = 120;     // rows of a work item of `linear` that has many
constexpr size_t kPanelBlock = 4;     // its panels
constexpr size_t kInBlock = 256;      // inputs unpacked at a time
constexpr size_t kScratchBytes = kPanelBlock * kInBlock * kPanel * 4 + kRowBlock * kPanelBlock * kPanel * 4 + 4096;

const Kernels* portable_kernels();
// Null where this build has no such kernels; whether the processor can run them is another question.
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_bf16_kernels();
const Kernels* amx_kernels();
// Those of amx with the tiles emulated: for tests.
const Kernels* emulated_kernels();

// Instruction sets that both this processor and its operating system support, of those the kernels may use:
// "avx2", "fma", "avx512f", "avx512bw" (with VL and DQ), "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8". Empty off
// x86-64.
std::vector<std::string> features();

// The kernels that run here, best first; "portable" is always among them.
std::vector<const Kernels*> usable_kernels();

}  // namespace octavo::cpu
