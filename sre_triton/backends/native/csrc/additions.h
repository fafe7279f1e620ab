// Additions and copies of rows, done at once or a little at a time in between products: these keep the units that
// multiply busy, and leave those that add and load idle for most of the time.

#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "conversions.h"
#include "vectors.h"

namespace sre_triton {

constexpr int kSumVectors = 4;  // that are added up at once

template <class T>
inline void store_sums(T* out, const Vector<T>* sums) {
#pragma GCC unroll 4
  for (int u = 0; u < kSumVectors; ++u) store(out + u * kLanes<T>, sums[u]);
}

#if defined(__AVX512BF16__)
inline void store_sums(at::BFloat16* out, const Vector<float>* sums) {
#pragma GCC unroll 4
  for (int u = 0; u < kSumVectors; u += 2)
    _mm512_storeu_si512(out + u * kLanes<float>, (__m512i)_mm512_cvtne2ps_pbh((__m512)sums[u + 1], (__m512)sums[u]));
}
#endif

// out[i] = sum of factor * term[i], or what is copied; without out that is fetched alone.
template <class T, class P>
struct Row {
  void* out;         // of T, or of P if it completes a ring sum
  const P* copied;   // null: none
  const T* factors;  // null: all are 1
  Index first;       // of its terms in the list of all
  Index count, n;    // terms, elements
  bool completes;
};

// A queue of such rows, which are done in turn. P is the type of ring sums, and of what is copied.
template <class T, class P>
class Additions {
 public:
  // Elements of a row that are added up at once. What is left at its end may be less: some is done twice.
  static constexpr Index kStep = kSumVectors * kLanes<T>;

  void clear() {
    rows_.clear();
    terms_.clear();
    row_ = at_ = steps_ = 0;
    interval_ = left_ = kNever;
    can_wait_ = true;
  }
  // The sum of `count` terms, which the caller puts where this points to before it queues more.
  const T** sum(void* out, Index n, Index count, const T* factors, bool completes) {
    const Index first = terms_.size();
    rows_.push_back({out, nullptr, factors, first, count, n, completes});
    terms_.resize(first + count);
    queue(n, !factors);
    return terms_.data() + first;
  }
  void copy(T* out, const P* from, Index n) {
    rows_.push_back({out, from, nullptr, 0, 0, n, false});
    queue(n, true);
  }
  // To the second-level cache.
  void fetch(const P* from, Index n) { copy(nullptr, from, n); }

  // Spreads the steps of the queue evenly over the next `total` products.
  void pace(Index total) {
    const bool waits = can_wait_ && row_ < static_cast<Index>(rows_.size());
    interval_ = left_ = waits ? std::max(kLeast, total / steps_) : kNever;
  }
  // How many products, of at most `most`, to make before `done` is told of them.
  Index until_due(Index most) const { return std::min(left_, most); }
  void done(Index products) {
    left_ -= products;
    if (left_ > 0) return;
    step();
    left_ = interval_;
  }

  void finish() {
    for (; row_ < static_cast<Index>(rows_.size()); ++row_, at_ = 0) {
      const Row<T, P>& row = rows_[row_];
      if (row.copied && row.out)
        copy_run(static_cast<T*>(row.out) + at_, row.copied + at_, row.n - at_);
      else if (row.copied)
        for (; at_ < row.n; at_ += kStep) fetch_step(row.copied + at_);
      else if (row.completes)
        row.factors ? add<true>(row, static_cast<P*>(row.out)) : add<false>(row, static_cast<P*>(row.out));
      else
        row.factors ? add<true>(row, static_cast<T*>(row.out)) : add<false>(row, static_cast<T*>(row.out));
    }
    interval_ = left_ = kNever;
  }

 private:
  static constexpr Index kNever = std::numeric_limits<Index>::max() / 2, kLeast = 4;

  void queue(Index n, bool can_wait) {
    can_wait_ &= n >= kStep && can_wait;
    steps_ += divide_up(n, kStep);
  }

  template <bool kWeighed, class Out>
  void sum(const Row<T, P>& row, Index i, Out* out) const {
    const T* const* terms = terms_.data() + row.first;
    const T* factors = row.factors;
    Vector<T> sums[kSumVectors];
#pragma GCC unroll 4
    for (int u = 0; u < kSumVectors; ++u) {
      sums[u] = load(terms[0] + i + u * kLanes<T>);
      if constexpr (kWeighed) sums[u] *= factors[0];
    }
    for (Index t = 1; t < row.count; ++t) {
      const T* term = terms[t] + i;
#pragma GCC unroll 4
      for (int u = 0; u < kSumVectors; ++u)
        sums[u] += kWeighed ? load(term + u * kLanes<T>) * factors[t] : load(term + u * kLanes<T>);
    }
    store_sums(out + i, sums);
#pragma GCC unroll 4
    for (Index line = 0; line < Index(kStep * sizeof(Out)); line += 64)
      __builtin_prefetch(reinterpret_cast<char*>(out + i + kStep) + line, 1, 3);
  }

  template <bool kWeighed, class Out>
  void add(const Row<T, P>& row, Out* out) const {
    Index i = at_;
    if (row.n >= kStep) {
      for (; i < row.n; i += kStep) sum<kWeighed>(row, std::min(i, row.n - kStep), out);
      return;
    }
    const T *const *terms = terms_.data() + row.first, *factors = row.factors;
    for (; i < row.n; ++i) {
      T all = kWeighed ? terms[0][i] * factors[0] : terms[0][i];
      for (Index t = 1; t < row.count; ++t) all += kWeighed ? terms[t][i] * factors[t] : terms[t][i];
      out[i] = cast_to<Out>(all);
    }
  }

  static void fetch_step(const P* from) {
#pragma GCC unroll 4
    for (Index line = 0; line < Index(kStep * sizeof(P)); line += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(from) + line, 0, 2);
  }

  static void copy_step(T* out, const P* from) {
    constexpr Index kStepsAhead = 8;  // it may come from far away, and too little is read at a time to be foreseen
    fetch_step(from + kStepsAhead * kStep);
#pragma GCC unroll 4
    for (int u = 0; u < kSumVectors; ++u) store(out + u * kLanes<T>, load_as<T>(from + u * kLanes<T>));
  }

  void step() {
    const Row<T, P>& row = rows_[row_];
    const Index i = std::min(at_, row.n - kStep);
    if (row.copied)
      row.out ? copy_step(static_cast<T*>(row.out) + i, row.copied + i) : fetch_step(row.copied + i);
    else if (std::is_same_v<T, P> || !row.completes)
      sum<false>(row, i, static_cast<T*>(row.out));
    else
      sum<false>(row, i, static_cast<P*>(row.out));
    at_ = i + kStep;
    if (at_ < row.n) return;
    at_ = 0;
    if (++row_ == static_cast<Index>(rows_.size())) interval_ = kNever;
  }

  std::vector<Row<T, P>> rows_;
  std::vector<const T*> terms_;
  Index row_ = 0, at_ = 0, steps_ = 0, interval_ = kNever, left_ = kNever;
  bool can_wait_ = true;  // nothing in the queue is too short for whole steps, or weighed
};

}  // namespace sre_triton
