// Rings lie side by side in the memory of a weight, and apart in products: from one to the other in vectors.

#pragma once

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "conversions.h"
#include "vectors.h"

namespace sre_triton {

// Of `all` rings that lie side by side, those that `rings` names.
template <class T>
class Interleaving {
 public:
  Interleaving(Index all, const std::vector<Index>& rings) : all_(all), rings_(rings) {
#if defined(__AVX512F__)
    if constexpr (kPermutes) {
      if (!in_vectors()) return;
      for (Index v = 0; v < all; ++v)
        for (Index lane = 0; lane < kL; ++lane) {
          const Index joined = v * kL + lane, split = lane * all + v;
          joined_from_[v][lane] = joined / all;
          joined_ring_[v][joined % all] |= 1u << lane;
          split_from_[v][lane] = split % kL;
          split_vector_[v][split / kL] |= 1u << lane;
        }
    }
#endif
  }

  // row_of(b)[i] = from[i * all + rings[b]] for i below count, which a vector holds. It is written whole.
  template <class S, class RowOf>
  void split(const S* from, Index count, RowOf row_of) const {
#if defined(__AVX512F__)
    if constexpr (kPermutes) {
      if (in_vectors()) {
        Vector<T> all[kL];
        const Index vectors = divide_up(count * all_, kL);
        for (Index v = 0; v < vectors; ++v) all[v] = load_as<T>(from + v * kL, std::min(kL, count * all_ - v * kL));
        for (Index b = 0; b < rings(); ++b) {
          const Index ring = rings_[b];
          const __m512i lanes = _mm512_load_si512(split_from_[ring].data());
          __m512 row = _mm512_setzero_ps();
          for (Index v = 0; v < vectors; ++v)
            row = _mm512_mask_permutexvar_ps(row, split_vector_[ring][v], lanes, (__m512)all[v]);
          store(row_of(b), (Vector<T>)row);
        }
        return;
      }
    }
#endif
    for (Index b = 0; b < rings(); ++b) {
      T* row = row_of(b);
      for (Index i = 0; i < count; ++i) row[i] = cast_to<T>(from[i * all_ + rings_[b]]);
    }
  }

  // The same the other way round, into memory that is zero where it belongs to other rings.
  template <class S, class RowOf>
  void join(S* to, Index count, RowOf row_of) const {
#if defined(__AVX512F__)
    if constexpr (kPermutes) {
      if (in_vectors()) {
        __m512 rows[kL];
        for (Index b = 0; b < rings(); ++b) rows[b] = (__m512)load(row_of(b));
        for (Index v = 0; v * kL < count * all_; ++v) {
          const __m512i lanes = _mm512_load_si512(joined_from_[v].data());
          __m512 joined = _mm512_setzero_ps();
          for (Index b = 0; b < rings(); ++b)
            joined = _mm512_mask_permutexvar_ps(joined, joined_ring_[v][rings_[b]], lanes, rows[b]);
          store_as<T>(to + v * kL, (Vector<T>)joined, std::min(kL, count * all_ - v * kL));
        }
        return;
      }
    }
#endif
    for (Index b = 0; b < rings(); ++b) {
      const T* row = row_of(b);
      for (Index i = 0; i < count; ++i) to[i * all_ + rings_[b]] = cast_to<S>(row[i]);
    }
  }

 private:
  static constexpr Index kL = kLanes<T>;
  Index rings() const { return rings_.size(); }

  Index all_;
  const std::vector<Index>& rings_;
#if defined(__AVX512F__)
  static constexpr bool kPermutes = std::is_same_v<T, float>;
  bool in_vectors() const { return all_ <= kL; }

  // For each vector of a joined row, or ring of a split one: the lanes that it takes, and where from.
  using Lanes = std::array<std::array<int32_t, kL>, kL>;
  using Masks = std::array<std::array<uint16_t, kL>, kL>;
  alignas(kVectorBytes) Lanes joined_from_ = {};
  alignas(kVectorBytes) Lanes split_from_ = {};
  Masks joined_ring_ = {}, split_vector_ = {};
#endif
};

}  // namespace sre_triton
