// The threads of the hot path: one caller and its workers share the items of a loop.
//
// Workers look for work for a moment after each loop and then sleep, so that a program of many short loops wakes them
// once, and a neighbour gets the core between programs. Items are taken one at a time by whoever is free: a thread
// that the system has put aside delays its own item, never the loop.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace octavo::cpu {

class Pool {
 public:
  explicit Pool(size_t num_threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  size_t num_threads() const { return workers_.size() + 1; }

  // Calls run(item, thread) for items 0 .. num_items - 1, thread below num_threads(); returns when all are done. One
  // loop at a time.
  template <class Run>
  void loop(size_t num_items, const Run& run) {
    if (num_items == 0) return;
    if (num_items == 1 || workers_.empty()) {
      for (size_t item = 0; item < num_items; ++item) run(item, size_t{0});
      return;
    }
    share(
        num_items, [](const void* context, size_t item, size_t thread) { (*static_cast<const Run*>(context))(item, thread); },
        &run);
  }

 private:
  using Call = void (*)(const void* context, size_t item, size_t thread);

  void share(size_t num_items, Call call, const void* context);
  bool take(size_t thread);  // one item, if there is one
  void work(size_t thread);

  // Number of the loop in the upper half, items nobody has taken yet in the lower: an item belongs to whoever counts
  // it down, and a thread late for a loop cannot touch the next one's.
  alignas(64) std::atomic<uint64_t> open_{0};
  alignas(64) std::atomic<size_t> done_{0};
  alignas(64) size_t num_items_ = 0;
  Call call_ = nullptr;
  const void* context_ = nullptr;
  std::atomic<int> num_asleep_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable awake_;
  std::vector<std::thread> workers_;
};

}  // namespace octavo::cpu
