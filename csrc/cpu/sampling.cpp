#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace octavo::cpu {
namespace {

constexpr size_t kPeakPart = 16384;  // logits whose peak one item finds

Greedy merged(const Peak* parts, size_t num_parts) {
  Greedy found;
  float top = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < num_parts; ++i) {
    if (std::isnan(parts[i].top)) found.problem = Problem::nan;
    if (parts[i].top > top) {
      top = parts[i].top;
      found.token = static_cast<int32_t>(i * kPeakPart) + parts[i].at;
    }
  }
  if (found.problem == Problem::none && std::isinf(top)) found.problem = top > 0 ? Problem::infinite : Problem::empty;
  if (found.problem != Problem::none) return found;
  double mass = 0.0;
  for (size_t i = 0; i < num_parts; ++i) mass += parts[i].mass * std::exp(static_cast<double>(parts[i].top) - top);
  found.top = top;
  found.log_mass = std::log(mass);
  return found;
}

}  // namespace

std::vector<Greedy> Sampling::greedy(const std::vector<const float*>& rows, size_t vocab) {
  const size_t parts = (vocab + kPeakPart - 1) / kPeakPart;
  std::vector<Peak> peaks(rows.size() * parts);
  pool_.loop(peaks.size(), [&](size_t item, size_t) {
    const size_t first = item % parts * kPeakPart;
    peaks[item] = kernels_.peak(rows[item / parts] + first, std::min(kPeakPart, vocab - first));
  });
  std::vector<Greedy> found;
  for (size_t row = 0; row < rows.size(); ++row) found.push_back(merged(&peaks[row * parts], parts));
  return found;
}

std::vector<int32_t> Sampling::draw(const std::vector<Draw>& draws) {
  std::vector<int32_t> tokens(draws.size());
  if (!draws.empty()) reserve(draws[0].num);
  pool_.loop(draws.size(), [&](size_t i, size_t thread) { tokens[i] = kernels_.draw(draws[i], scratch(draws[i].num, thread)); });
  return tokens;
}

std::vector<Described> Sampling::describe(const std::vector<Asked>& asked, size_t vocab) {
  std::vector<const float*> rows;
  for (const Asked& one : asked) rows.push_back(one.logits);
  const std::vector<Greedy> facts = greedy(rows, vocab);
  reserve(vocab);
  std::vector<Described> all(asked.size());
  pool_.loop(asked.size(), [&](size_t i, size_t thread) {
    Described& found = all[i];
    found.problem = facts[i].problem;
    if (found.problem != Problem::none) return;
    const LogRow row{asked[i].logits, vocab, facts[i].top, static_cast<float>(facts[i].log_mass)};
    found.logprob = (row.logits[asked[i].token] - row.top) - row.log_mass;
    found.rank = 1 + kernels_.num_ahead(row, asked[i].token);
    const size_t num_top = std::min(asked[i].num_top, vocab);
    if (num_top == 0) return;
    std::vector<float> logprobs(num_top);
    std::vector<int32_t> ids(num_top);
    kernels_.likeliest(row, num_top, scratch(vocab, thread), logprobs.data(), ids.data());
    for (size_t j = 0; j < num_top; ++j) found.top.emplace_back(ids[j], logprobs[j]);
    std::sort(found.top.begin(), found.top.end(), [](const auto& a, const auto& b) {
      return a.second > b.second || (a.second == b.second && a.first < b.first);
    });
  });
  return all;
}

void Sampling::reserve(size_t vocab) {
  const size_t bytes = pool_.num_threads() * round_up(draw_scratch_bytes(vocab), 4096);
  if (bytes <= scratch_bytes_) return;
  scratch_.reset();
  scratch_ = pages(bytes);
  scratch_bytes_ = bytes;
}

char* Sampling::scratch(size_t vocab, size_t thread) { return scratch_.get() + thread * round_up(draw_scratch_bytes(vocab), 4096); }

}  // namespace octavo::cpu
