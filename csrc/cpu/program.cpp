#include "program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

namespace octavo::cpu {
namespace {

constexpr size_t kQueryRows = 120;  // rows under one KV head that an item of attention takes, tokens times heads
constexpr size_t kManyItems = 4;    // items per thread that keep all threads busy to the end
constexpr size_t kSpareRows = 32;   // past the last prepared one: kernels on tiles read them and drop what comes of it

void grow(Pages& memory, size_t& have, size_t want) {
  if (want <= have) return;
  memory.reset();
  memory = pages(want);
  have = want;
}

}  // namespace

Program::Program(const Kernels& kernels, size_t num_threads, Number number, size_t num_heads, KvLayout kv, float eps)
    : kernels_(kernels), number_(number), num_heads_(num_heads), kv_(kv), eps_(eps), pool_(num_threads) {}

size_t Program::buffer(size_t width) {
  widths_.push_back(width);
  offsets_.push_back(0);
  reserved_ = 0;
  return widths_.size() - 1;
}

void Program::reserve(size_t num_rows) {
  if (num_rows <= reserved_) return;
  size_t total = 0;
  for (size_t i = 0; i < widths_.size(); ++i) {
    offsets_[i] = total;
    total += round_up(num_rows * widths_[i] * item(), 4096);
  }
  memory_ = pages(total);
  size_t bytes = prepared_bytes_;
  grow(prepared_, bytes, (num_rows + kSpareRows) * largest_row_);
  prepared_bytes_ = bytes;
  reserved_ = num_rows;
}

size_t Program::workspace_bytes() const {
  size_t total = 0;
  for (size_t width : widths_) total += round_up(reserved_ * width * kv_.item(), 4096);
  return total + prepared_bytes_ + scratch_bytes_ + partial_bytes_;
}

char* Program::prepared(size_t num_bytes) {
  grow(prepared_, prepared_bytes_, num_bytes);
  return prepared_.get();
}

// Run over rows in neighbouring parts, one for each thread and more where there are many.
void Program::rows_apart(size_t num_rows, const std::function<void(size_t, size_t)>& run) {
  const size_t parts = std::min(num_rows, pool_.num_threads() * (num_rows >= 64 ? kManyItems : 1));
  pool_.loop(parts, [&](size_t part, size_t) { run(num_rows * part / parts, num_rows * (part + 1) / parts); });
}

void Program::embed(std::shared_ptr<Packed> table, size_t to) {
  ops_.push_back({"embed", [this, table, to](const Batch& batch, const Arena&) {
    const size_t row_bytes = widths_[to] * item();
    rows_apart(batch.num_rows, [&](size_t first, size_t last) {
      for (size_t t = first; t < last; ++t)
        kernels_.embed(table->weight(), number_, batch.tokens[t], data(to) + t * row_bytes);
    });
  }});
}

void Program::norm(size_t from, const void* weight, size_t to) {
  ops_.push_back({"norm", [this, from, weight, to](const Batch& batch, const Arena&) {
    const Norm call{data(from), weight, data(to), widths_[from], eps_, number_};
    rows_apart(batch.num_rows, [&](size_t first, size_t last) { kernels_.norm(call, first, last); });
  }});
}

void Program::linear(std::shared_ptr<Packed> weight, size_t from, size_t to, size_t column, Finish finish) {
  largest_row_ = std::max(largest_row_, kernels_.row_bytes(weight->weight()));
  reserved_ = 0;
  const char* kind = finish == Finish::gate ? "linear gate" : finish == Finish::add ? "linear add" : "linear store";
  ops_.push_back({kind, [this, weight, from, to, column, finish](const Batch& batch, const Arena&) {
    multiply(*weight, data(from), widths_[from], batch.num_rows, data(to) + column * item(), widths_[to], finish);
  }});
}

void Program::multiply(const Packed& packed, const void* x, size_t x_stride, size_t num_rows, void* out, size_t out_stride,
                       Finish finish) {
  const Weight& w = packed.weight();
  const size_t stride = kernels_.row_bytes(w);
  char* rows = prepared((num_rows + kSpareRows) * stride);
  rows_apart(num_rows, [&](size_t first, size_t last) {
    kernels_.prepare(w, number_, static_cast<const char*>(x) + first * x_stride * item(), x_stride, rows + first * stride, stride,
                     last - first);
  });
  grow(scratch_, scratch_bytes_, pool_.num_threads() * round_up(kScratchBytes, 4096));
  const Linear call{&w, rows, stride, out, out_stride, finish, number_};
  const size_t row_parts = (num_rows + kRowBlock - 1) / kRowBlock;
  // Few rows: enough panels for a run of memory, few enough that threads end together. Many: what the caches hold.
  const size_t step = row_parts > 1 || num_rows > 24
                          ? kPanelBlock
                          : std::max<size_t>(2, std::min<size_t>(16, w.num_panels / (pool_.num_threads() * 8) / 2 * 2));
  const size_t panel_parts = (w.num_panels + step - 1) / step;
  pool_.loop(panel_parts * row_parts, [&](size_t item, size_t thread) {
    // Rows of one part pass all panels before the next part's begin: they stay in the cache the longest.
    const size_t part = item / panel_parts, panel = item % panel_parts * step;
    const size_t first = num_rows * part / row_parts, last = num_rows * (part + 1) / row_parts;
    kernels_.linear(call, panel, std::min(panel + step, w.num_panels), first, last,
                    scratch_.get() + thread * round_up(kScratchBytes, 4096));
  });
}

void Program::rope(size_t qkv, size_t layer, const void* q_norm, const void* k_norm) {
  ops_.push_back({"rope", [this, qkv, layer, q_norm, k_norm](const Batch& batch, const Arena& arena) {
    char* blocks = static_cast<char*>(arena.blocks) + layer * arena.num_blocks * kv_.block_items() * item();
    const Rope call{data(qkv), q_norm, k_norm, batch.cos, batch.sin, batch.positions, batch.slots, blocks, kv_, num_heads_, eps_};
    rows_apart(batch.num_rows, [&](size_t first, size_t last) { kernels_.rope(call, first, last); });
  }});
}

void Program::attention(size_t qkv, size_t layer, int64_t window, size_t to) {
  ops_.push_back({"attention", [this, qkv, layer, window, to](const Batch& batch, const Arena& arena) {
    const char* blocks = static_cast<const char*>(arena.blocks) + layer * arena.num_blocks * kv_.block_items() * item();
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(kv_.head_dim)));
    attend({data(qkv), widths_[qkv], blocks, kv_, batch.tables, batch.table_width, num_heads_, scale, window, data(to)}, batch);
  }});
}

void Program::attend(const Attention& call, const Batch& batch) {
  const size_t group = num_heads_ / kv_.num_kv_heads, record = kPartial + kv_.padded_dim();
  const size_t tokens = std::max<size_t>(1, kQueryRows / group);
  std::vector<AttentionItem> items, merges;
  size_t num_pieces = 0;
  for (size_t s = 0; s < batch.num_seqs; ++s) num_pieces += (static_cast<size_t>(batch.counts[s]) + tokens - 1) / tokens;
  const bool may_split = num_pieces * kv_.num_kv_heads < kManyItems * pool_.num_threads() && pool_.num_threads() > 1;
  size_t floats = 0, row = 0;
  for (size_t s = 0; s < batch.num_seqs; ++s) {
    const size_t count = static_cast<size_t>(batch.counts[s]);
    for (size_t done = 0; done < count; done += tokens) {
      const size_t rows = std::min(tokens, count - done);
      const int64_t position = batch.starts[s] + static_cast<int64_t>(done);
      const size_t splits = (static_cast<size_t>(position) + rows + kSplit - 1) / kSplit;
      const size_t lowest = call.window > 0 && position + 1 > call.window ? static_cast<size_t>(position + 1 - call.window) : 0;
      const size_t first = lowest / kSplit;
      const bool is_split = may_split && splits - first > 1;
      for (size_t head = 0; head < kv_.num_kv_heads; ++head) {
        AttentionItem item{s, head, row + done, rows, position, 0, 0, nullptr};
        if (splits - first > 1) {
          item.partial = reinterpret_cast<float*>(floats * sizeof(float));  // an offset until memory is there
          floats += rows * group * (is_split ? splits : 1) * record;
        }
        if (!is_split) {
          items.push_back(item);
          continue;
        }
        item.num_splits = splits;
        item.split = first;
        merges.push_back(item);
        for (; item.split < splits; ++item.split) items.push_back(item);
      }
    }
    row += count;
  }
  // The longest first, so that threads end together.
  if (batch.num_seqs > 1 || items.size() > kv_.num_kv_heads)
    std::stable_sort(items.begin(), items.end(), [](const AttentionItem& a, const AttentionItem& b) {
      return (a.position + static_cast<int64_t>(a.num_rows)) * static_cast<int64_t>(a.num_rows) >
             (b.position + static_cast<int64_t>(b.num_rows)) * static_cast<int64_t>(b.num_rows);
    });
  grow(partial_, partial_bytes_, floats * sizeof(float));
  const auto place = [&](AttentionItem& item) {
    item.partial = reinterpret_cast<float*>(partial_.get() + reinterpret_cast<size_t>(item.partial));
  };
  for (auto& item : items) place(item);
  for (auto& item : merges) place(item);
  const size_t scratch = round_up(kernels_.attention_scratch(call, tokens), 4096);
  grow(scratch_, scratch_bytes_, pool_.num_threads() * scratch);
  pool_.loop(items.size(), [&](size_t i, size_t thread) { kernels_.attention(call, items[i], scratch_.get() + thread * scratch); });
  pool_.loop(merges.size(), [&](size_t i, size_t) { kernels_.merge(call, merges[i]); });
}

void Program::head(size_t from, const void* norm, std::shared_ptr<Packed> weight) {
  head_from_ = from;
  head_norm_ = norm;
  head_weight_ = std::move(weight);
  largest_row_ = std::max(largest_row_, kernels_.row_bytes(head_weight_->weight()));
  reserved_ = 0;
}

void Program::run(const Batch& batch, const Arena& arena) {
  reserve(batch.num_rows);
  auto before = std::chrono::steady_clock::now();
  for (const Op& op : ops_) {
    op.run(batch, arena);
    const auto now = std::chrono::steady_clock::now();
    seconds_[op.kind] += std::chrono::duration<double>(now - before).count();
    before = now;
  }
  last_rows_ = batch.num_rows;
}

void Program::hidden(void* out) {
  const Norm call{data(head_from_), head_norm_, out, widths_[head_from_], eps_, number_};
  rows_apart(last_rows_, [&](size_t first, size_t last) { kernels_.norm(call, first, last); });
}

void Program::logits(const void* hidden, size_t num_rows, float* out) {
  const auto before = std::chrono::steady_clock::now();
  multiply(*head_weight_, hidden, widths_[head_from_], num_rows, out, head_weight_->weight().num_out, Finish::widen);
  seconds_["head"] += std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
}

}  // namespace octavo::cpu
