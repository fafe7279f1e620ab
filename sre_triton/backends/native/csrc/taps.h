// The taps of a depthwise layer, and vectors of activations in any type.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
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
