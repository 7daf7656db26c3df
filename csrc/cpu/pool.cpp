#include "pool.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace octavo::cpu {
namespace {

constexpr auto kAlert = std::chrono::microseconds(100);  // how long a worker looks for work before it sleeps

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

Pool::Pool(size_t num_threads) {
  for (size_t thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

Pool::~Pool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  awake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::share(size_t num_items, Call call, const void* context) {
  num_items_ = num_items;
  call_ = call;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  const uint64_t number = (open_.load(std::memory_order_relaxed) >> 32) + 1;
  open_.store(number << 32 | num_items);
  if (num_asleep_.load() > 0) {
    { const std::lock_guard<std::mutex> lock(mutex_); }
    awake_.notify_all();
  }
  while (take(0)) {
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) < num_items; ++spins) {
    if (spins < 20000)
      pause();
    else
      std::this_thread::yield();
  }
}

bool Pool::take(size_t thread) {
  uint64_t open = open_.load(std::memory_order_acquire);
  while ((open & 0xffffffffu) != 0) {
    if (!open_.compare_exchange_weak(open, open - 1, std::memory_order_acq_rel)) continue;
    call_(context_, num_items_ - (open & 0xffffffffu), thread);  // stays what it is until this item is done
    done_.fetch_add(1, std::memory_order_acq_rel);
    return true;
  }
  return false;
}

void Pool::work(size_t thread) {
  auto last = std::chrono::steady_clock::now();
  while (!stopping_.load(std::memory_order_relaxed)) {
    if (take(thread)) {
      while (take(thread)) {
      }
      last = std::chrono::steady_clock::now();
      continue;
    }
    for (int i = 0; i < 64; ++i) pause();
    if (std::chrono::steady_clock::now() - last < kAlert) continue;
    std::unique_lock<std::mutex> lock(mutex_);
    ++num_asleep_;
    awake_.wait(lock, [this] { return stopping_.load() || (open_.load() & 0xffffffffu) != 0; });
    --num_asleep_;
    last = std::chrono::steady_clock::now();
  }
}

}  // namespace octavo::cpu
