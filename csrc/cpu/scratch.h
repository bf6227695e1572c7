// Uninitialised memory for the time of a call, from the pool of outputs where it is large.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "pool.h"

namespace fastdl {

template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t count) : block_(count ? pool_allocate(size_t(count) * sizeof(A)) : nullptr) {
    if (count && !block_) own_.reset(new (alignment) A[size_t(count)]);
  }
  ~Scratch() {
    if (block_) pool_release(block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* data() const { return block_ ? static_cast<A*>(block_) : own_.get(); }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Delete {
    void operator()(A* p) const { ::operator delete[](p, alignment); }
  };
  void* block_;
  std::unique_ptr<A[], Delete> own_;
};

}  // namespace fastdl
