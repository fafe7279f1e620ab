// Memory that outlives a call.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <memory>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "vectors.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace sre_triton {

// Memory of one thread, kept from call to call unless it is large: fresh pages would cost more than the additions.
class Scratch {
 public:
  template <class T>
  static size_t size(Index elements) {
    return round_up(elements * sizeof(T) + 2 * kVectorBytes + kRedZone, 64);
  }
  template <class T>
  T* take(Index elements) {
    const size_t begin = used_;
    used_ += size<T>(elements);
    TORCH_INTERNAL_ASSERT(used_ <= size_);
    T* const part = reinterpret_cast<T*>(round_up(reinterpret_cast<Index>(memory_.get()), 64) + begin);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(part, elements * sizeof(T) + 2 * kVectorBytes);
#endif
    return part;
  }
  void reset(size_t bytes) {
    if (size_ < bytes) {
      memory_.reset(new char[bytes + 64]);
      size_ = bytes;
    }
    used_ = 0;
#if defined(__SANITIZE_ADDRESS__)
    if (memory_) __asan_poison_memory_region(memory_.get(), size_ + 64);
#endif
  }
  void shrink() {
    if (size_ > kKeptBytes) {
      memory_.reset();
      size_ = 0;
    }
  }

 private:
  static constexpr size_t kKeptBytes = 16 << 20;
  // What AddressSanitizer must see between two parts, to tell one from the other.
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kRedZone = 128;
#else
  static constexpr size_t kRedZone = 0;
#endif
  std::unique_ptr<char[]> memory_;
  size_t size_ = 0, used_ = 0;
};

// Asks for large pages under an output that is about to be written: most systems give them on request alone. Where
// memory is mapped anew (by the C library of GNU for every tensor of 32 MB or more), page by page takes as long as half
// of the arithmetic; and processors remember the places of few small pages, for which layers of little arithmetic then
// wait.
inline void want_large_pages(const at::Tensor& t) {
#if defined(__linux__)
  constexpr Index kPage = 2 << 20;
  if (static_cast<Index>(t.nbytes()) < 2 * kPage) return;
  const Index begin = round_up(reinterpret_cast<Index>(t.data_ptr()), kPage);
  const Index end = (reinterpret_cast<Index>(t.data_ptr()) + static_cast<Index>(t.nbytes())) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// What a call reads is likely to be in some cache still, if it is no larger.
constexpr size_t kNearBytes = 4 << 20;

inline thread_local Scratch weights_memory, totals_memory, scratch;

}  // namespace sre_triton
