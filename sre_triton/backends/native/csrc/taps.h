// The taps of a depthwise layer, and vectors of activations in any type.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <type_traits>
#include <vector>

#include "activations.h"
#include "ring_weights.h"
#include "window.h"

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace sre_triton {

// A tap as a share of one ring. Taps of anti-aliased rings come once per ring.
struct RingTap {
  Triple tap;
  Index ring;  // number among those that have sums
  double factor;
};

// What the window's additions amount to.
inline std::vector<RingTap> ring_taps(const Window& w) {
  std::vector<std::vector<RingTap>> buffers(w.levels.size());
  buffers[0] = {{{0, 0, 0}, -1, 1.0}};
  std::vector<RingTap> taps;
  for (const Node& node : w.nodes) {
    std::vector<RingTap> sum;
    for (const Term& term : node.terms)
      for (RingTap of : buffers[term.buffer]) {
        for (Index d = 0; d < 3; ++d) of.tap[d] += term.tap[d];
        of.factor *= term.factor;
        of.ring = node.ring;
        sum.push_back(of);
      }
    if (node.ring >= 0)
      taps.insert(taps.end(), sum.begin(), sum.end());
    else
      buffers[node.out] = std::move(sum);
  }
  return taps;
}

// The taps' places in the padded, upsampled input, from where the first output begins to read, and their weights per
// channel, of which a vector may be read from any channel on.
template <class T>
class TapWeights {
 public:
  template <class S>
  TapWeights(const RingWeight<S>& weight, const std::optional<Tensor>& bias, Index channels, const Window& w)
      : pitch(round_up(channels, kLanes<T>) + 4 * kLanes<T>) {
    std::vector<RingTap> parts = ring_taps(w);
    std::stable_sort(parts.begin(), parts.end(), [](const RingTap& a, const RingTap& b) { return a.tap < b.tap; });
    std::vector<T> rings(channels * weight.rings.size());
    for (Index c = 0; c < channels; ++c)
      for (size_t b = 0; b < weight.rings.size(); ++b)
        rings[b * channels + c] = cast_to<T>(weight.of(c, 0, 0)[weight.rings[b] * weight.ring]);
    for (size_t i = 0; i < parts.size(); ++i) {
      if (i == 0 || parts[i].tap != parts[i - 1].tap) {
        Triple shift;
        for (Index d = 0; d < 3; ++d) {
          TORCH_CHECK_VALUE(std::abs(parts[i].tap[d]) <= w.half[d], "numbers: sums of taps reach ", parts[i].tap[d],
                            ", further than half, ", w.half[d]);
          shift[d] = (parts[i].tap[d] + w.half[d]) * w.dilation[d];
        }
        shifts.push_back(shift);
        weights_.resize(weights_.size() + pitch, T(0));
      }
      const T factor = static_cast<T>(parts[i].factor);
      const T* from = rings.data() + parts[i].ring * channels;
      T* to = weights_.data() + weights_.size() - pitch;
      for (Index c = 0; c < channels; ++c) to[c] += factor * from[c];
    }
    start_.resize(pitch, T(0));
    if (bias) copy_run(start_.data(), static_cast<const S*>(bias->const_data_ptr()), channels);
  }

  Index count() const { return shifts.size(); }
  const T* of(Index tap) const { return weights_.data() + tap * pitch; }
  const T* start() const { return start_.data(); }

  const Index pitch;
  std::vector<Triple> shifts;

 private:
  std::vector<T> weights_, start_;
};

// Most taps in a row or column that are added at once, by code for every odd number of them.
constexpr int kMostTaps = 11;

// f of a number of taps that the compiler knows: `count`, which is odd and at most kMost.
template <int kMost = kMostTaps, class F>
inline __attribute__((always_inline)) void with_odd_count(Index count, const F& f) {
  switch (count) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 3:
      return f(std::integral_constant<int, 3>());
    case 5:
      return f(std::integral_constant<int, 5>());
    case 7:
      return f(std::integral_constant<int, 7>());
    case 9:
      if constexpr (kMost >= 9) f(std::integral_constant<int, 9>());
      return;
    case 11:
      if constexpr (kMost >= 11) f(std::integral_constant<int, 11>());
  }
}

// add(first, count) for taps one above the other, which serve as many outputs with each vector of the input; `order`
// becomes the numbers of the taps, those of one column after those of another. What cannot be taken together comes one
// by one.
template <class T, class Add>
void take_columns(const TapWeights<T>& taps, bool together, std::vector<Index>& order, const Add& add) {
  order.resize(taps.count());
  for (Index t = 0; t < taps.count(); ++t) order[t] = t;
  auto key = [&](Index t) {
    const Triple& shift = taps.shifts[t];
    return Triple{shift[0], shift[2], shift[1]};
  };
  std::sort(order.begin(), order.end(), [&](Index a, Index b) { return key(a) < key(b); });
  for (Index begin = 0, end; begin < taps.count(); begin = end) {
    const Triple first = key(order[begin]);
    for (end = begin + 1; end < taps.count(); ++end)
      if (key(order[end]) != Triple{first[0], first[1], first[2] + end - begin}) break;
    const Index count = end - begin;
    if (together && count % 2 == 1 && count <= kMostTaps)
      add(begin, count);
    else
      for (Index i = begin; i < end; ++i) add(i, 1);
  }
}

// Adds the taps of a column, kHeight of them, to kRowsOfSums rows of sums, kVectors vectors wide. load_row(u, row)
// reads row u of those that they read, in turn.
template <class T, int kHeight, int kRowsOfSums, int kVectors, class LoadRow>
inline __attribute__((always_inline)) void add_column(Vector<T> (&sum)[kRowsOfSums][kVectors], const T* weights,
                                                      const LoadRow& load_row) {
  Vector<T> weight[kHeight];
#pragma GCC unroll 16
  for (int i = 0; i < kHeight; ++i) weight[i] = in_register(Vector<T>{} + weights[i]);
#pragma GCC unroll 32
  for (int u = 0; u < kRowsOfSums + kHeight - 1; ++u) {
    Vector<T> row[kVectors];
    load_row(u, row);
#pragma GCC unroll 16
    for (int r = 0; r < kRowsOfSums; ++r)
      if (0 <= u - r && u - r < kHeight)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[r][v] += row[v] * weight[u - r];
  }
}

// Of a sum of pointer and steps a compiler would work out every value ahead, and run out of registers for them.
template <class T>
inline const T* step_on(const T* at, Index step) {
  at += step;
  asm("" : "+r"(at));
  return at;
}

// Rows of planes are short: a call of memcpy would take as long as all the rest.
template <class T, class S>
inline void copy_row(T* to, const S* from, Index n) {
#if defined(__AVX512BW__)
  if constexpr (std::is_same_v<T, S>) {
    constexpr Index kFit = 64 / sizeof(T);
    for (; n >= kFit; n -= kFit, to += kFit, from += kFit) _mm512_storeu_si512(to, _mm512_loadu_si512(from));
    const __mmask64 rest = (uint64_t(1) << n * sizeof(T)) - 1;
    _mm512_mask_storeu_epi8(to, rest, _mm512_maskz_loadu_epi8(rest, from));
    return;
  }
#endif
  copy_run(to, from, n);
}

// A vector of what is in memory, or with kPart `count` elements of it.
template <class T, bool kPart, class S>
inline Vector<T> load_as(const S* from, Index count) {
  return kPart ? load_as<T>(from, count) : load_as<T>(from);
}
template <class T, bool kPart, class S>
inline void store_as(S* to, Vector<T> v, Index count) {
  kPart ? store_as<T>(to, v, count) : store_as<T>(to, v);
}

}  // namespace sre_triton
