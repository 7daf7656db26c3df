// A forward pass as a list of operations over buffers, recorded once and replayed for every step.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "packed.h"
#include "pool.h"

namespace octavo::cpu {

// What a step brings; all arrays are the caller's. T rows, S sequences.
struct Batch {
  const int64_t *tokens, *positions, *slots;  // [T]
  const int32_t *tables, *starts, *counts;    // [S, table_width], [S], [S]
  size_t num_rows, num_seqs, table_width;
  const float *cos, *sin;  // [positions, D / 2]
};

// Where one row's keys and values of all layers lie: an arena [layers, blocks, block].
struct Arena {
  void* blocks = nullptr;
  size_t num_layers = 0, num_blocks = 0;
};

class Program {
 public:
  // Heads of the attention; `block_tokens` of the arena the program will be run on.
  Program(const Kernels& kernels, size_t num_threads, Number number, size_t num_heads, KvLayout kv, float eps);

  // A buffer [T, width] of the program's number; returns its id.
  size_t buffer(size_t width);
  // Operations, in order. Weights are kept alive; every id is checked here, once.
  void embed(std::shared_ptr<Packed> table, size_t to);
  void norm(size_t from, const void* weight, size_t to);
  void linear(std::shared_ptr<Packed> weight, size_t from, size_t to, size_t column, Finish finish);
  void rope(size_t qkv, size_t layer, const void* q_norm, const void* k_norm);
  void attention(size_t qkv, size_t layer, int64_t window, size_t to);
  // What `logits` computes from a buffer's rows.
  void head(size_t from, const void* norm, std::shared_ptr<Packed> weight);

  // Memory for steps of up to so many rows, and for so many rows of logits. Later larger steps get more.
  void reserve(size_t num_rows);
  size_t workspace_bytes() const;

  void run(const Batch& batch, const Arena& arena);
  // Final norm of all rows of the last run, [T, E] in the program's number.
  void hidden(void* out);
  // [N, V] float32 from rows [N, E] of what `hidden` gave.
  void logits(const void* hidden, size_t num_rows, float* out);

  // Seconds spent in each kind of operation since the program was made.
  const std::map<std::string, double>& seconds() const { return seconds_; }

  char* data(size_t buffer) { return memory_.get() + offsets_[buffer]; }
  size_t width(size_t buffer) const { return widths_[buffer]; }
  size_t item() const { return kv_.item(); }
  size_t num_rows_reserved() const { return reserved_; }
  const KvLayout& kv() const { return kv_; }
  Pool& pool() { return pool_; }
  const Kernels& kernels() const { return kernels_; }
  size_t vocab() const { return head_weight_ ? head_weight_->weight().num_out : 0; }
  size_t last_rows() const { return last_rows_; }

 private:
  struct Op {
    const char* kind;
    std::function<void(const Batch&, const Arena&)> run;
  };

  void multiply(const Packed& weight, const void* x, size_t x_stride, size_t num_rows, void* out, size_t out_stride, Finish finish);
  void attend(const Attention& call, const Batch& batch);
  void rows_apart(size_t num_rows, const std::function<void(size_t, size_t)>& run);
  char* prepared(size_t num_bytes);

  const Kernels& kernels_;
  Number number_;
  size_t num_heads_;
  KvLayout kv_;
  float eps_;
  Pool pool_;
  std::vector<Op> ops_;
  std::vector<size_t> widths_, offsets_;
  size_t reserved_ = 0, largest_row_ = 0;
  size_t head_from_ = 0;
  const void* head_norm_ = nullptr;
  std::shared_ptr<Packed> head_weight_;
  Pages memory_, prepared_, scratch_, partial_;
  size_t prepared_bytes_ = 0, scratch_bytes_ = 0, partial_bytes_ = 0;
  size_t last_rows_ = 0;
  std::map<std::string, double> seconds_;
};

}  // namespace octavo::cpu
