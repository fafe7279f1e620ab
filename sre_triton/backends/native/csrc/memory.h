// Memory that outlives a call.

#pragma once

#include <c10/util/Exception.h>

#include <memory>

#include "vectors.h"

namespace sre_triton {

// Memory of one thread, kept from call to call unless it is large: fresh pages would cost more than the additions.
class Scratch {
 public:
  template <class T>
  static size_t size(Index elements) {
    return round_up(elements * sizeof(T) + 2 * kVectorBytes, 64);
  }
  template <class T>
  T* take(Index elements) {
    const size_t begin = used_;
    used_ += size<T>(elements);
    TORCH_INTERNAL_ASSERT(used_ <= size_);
    return reinterpret_cast<T*>(round_up(reinterpret_cast<Index>(memory_.get()), 64) + begin);
  }
  void reset(size_t bytes) {
    if (size_ < bytes) {
      memory_.reset(new char[bytes + 64]);
      size_ = bytes;
    }
    used_ = 0;
  }
  void shrink() {
    if (size_ > kKeptBytes) {
      memory_.reset();
      size_ = 0;
    }
  }

 private:
  static constexpr size_t kKeptBytes = 16 << 20;
  std::unique_ptr<char[]> memory_;
  size_t size_ = 0, used_ = 0;
};

thread_local Scratch weights_memory, totals_memory;
thread_local Scratch scratch;

}  // namespace sre_triton
