// The memory of a population forward: one aligned block for each running member, and one for each thread.
#pragma once

#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "plan.h"

namespace zo::cpu {

// Hands out parts of one allocation, each aligned to whole vectors. Without an allocation it only counts.
class Carver {
 public:
  explicit Carver(char* base) : base_(base) {}

  template <class T>
  T* take(int64_t count) {
    T* p = base_ ? reinterpret_cast<T*>(base_ + bytes_) : nullptr;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return p;
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

void carve(Carver& carver, const OwnedPlan& plan, Member& member);
void carve(Carver& carver, const OwnedPlan& plan, Scratch& scratch);

// Buffers such as Member or Scratch, with the memory behind their pointers. `carve` says how much a plan needs.
template <class Buffers, class Plan = OwnedPlan>
class Owned {
 public:
  explicit Owned(const Plan& plan) {
    Carver count(nullptr);
    carve(count, plan, buffers);
    memory_.reset(static_cast<char*>(std::aligned_alloc(kAlignment, static_cast<size_t>(count.bytes()))));
    if (!memory_) throw std::bad_alloc();
    Carver real(memory_.get());
    carve(real, plan, buffers);
  }

  Buffers buffers;

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> memory_;
};

// Buffers that threads take and return. As many are reserved as will be in use at once: nothing is allocated by the
// threads, where a failure would leave some members done and others not.
template <class Buffers, class Plan = OwnedPlan>
class Pool {
 public:
  explicit Pool(const Plan& plan) : plan_(plan) {}

  void reserve(int64_t count) {
    for (int64_t i = 0; i < count; ++i) idle_.push_back(std::make_unique<Owned<Buffers, Plan>>(plan_));
  }

  std::unique_ptr<Owned<Buffers, Plan>> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<Owned<Buffers, Plan>> taken = std::move(idle_.back());
    idle_.pop_back();
    return taken;
  }

  void give_back(std::unique_ptr<Owned<Buffers, Plan>> buffers) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(buffers));
  }

 private:
  const Plan& plan_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Owned<Buffers, Plan>>> idle_;
};

}  // namespace zo::cpu
