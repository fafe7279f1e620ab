// The matrix products: small blocks of positions by small blocks of channels, held in registers.

#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "activations.h"
#include "memory.h"
#include "vectors.h"

namespace sre_triton {

// Pairs of bfloat16 factors that one instruction multiplies and adds up in float32.
struct BFloat16Pair {
  at::BFloat16 value[2];
};

// Factors are T itself or pairs of narrower numbers; products are added up in T.
template <class T>
inline void multiply_add(Vector<T>& sum, const T* factor, Vector<T> weights) {
  sum += *factor * weights;
}

#if defined(__AVX512BF16__)
inline void multiply_add(Vector<float>& sum, const BFloat16Pair* factor, Vector<float> weights) {
  int both;
  std::memcpy(&both, factor, sizeof both);
  sum = (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(both), (__m512bh)(__m512)weights);
}
#endif

// out (kHeight rows out_pitch apart, kWidth vectors) = start + sums (kHeight positions, rings x depth) weights (rings x
// depth, kWidth vectors)
template <class T, class F, int kHeight, int kWidth>
__attribute__((noinline)) void mix_block(const F* sums, Index position_stride, Index ring_stride, Index rings,
                                         Index depth, const T* weights, const T* start, T* out, Index out_pitch) {
  constexpr int kGroups = (kHeight + 2) / 3;
  Vector<T> sum[kHeight][kWidth];
  for (int r = 0; r < kHeight; ++r)
    for (int v = 0; v < kWidth; ++v) sum[r][v] = load(start + v * kLanes<T>);
  for (Index ring = 0; ring < rings; ++ring) {
    // Three rows share a pointer: fourteen would not fit the registers.
    const F* rows[kGroups];
    for (int g = 0; g < kGroups; ++g) rows[g] = sums + ring * ring_stride + 3 * g * position_stride;
    for (Index c = 0; c < depth; ++c) {
      Vector<T> weight[kWidth];
      for (int v = 0; v < kWidth; ++v) weight[v] = load(weights + v * kLanes<T>);
      weights += kWidth * kLanes<T>;
#pragma GCC unroll 16
      for (int r = 0; r < kHeight; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kWidth; ++v) multiply_add(sum[r][v], rows[r / 3] + r % 3 * position_stride + c, weight[v]);
    }
  }
  for (int r = 0; r < kHeight; ++r)
    for (int v = 0; v < kWidth; ++v) store(out + r * out_pitch + v * kLanes<T>, sum[r][v]);
}

// Terms of a weight gradient that are added up before they join the rest: rounding errors grow with such runs.
constexpr Index kAddedInTurn = 64;

// grad (kHeight channels, kWidth vectors) += sums (P, kHeight channels)^T thin (P, kWidth vectors)
template <class T, int kHeight, int kWidth>
__attribute__((noinline)) void grad_block(const T* sums, Index sums_pitch, const T* thin, Index thin_pitch,
                                          Index positions, T* grad, Index grad_pitch) {
  Vector<T> total[kHeight][kWidth] = {};
  for (Index p = 0; p < positions; ++p, sums += sums_pitch, thin += thin_pitch) {
    Vector<T> right[kWidth];
    for (int v = 0; v < kWidth; ++v) right[v] = load(thin + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < kHeight; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kWidth; ++v) total[r][v] += sums[r] * right[v];
  }
  for (int r = 0; r < kHeight; ++r)
    for (int v = 0; v < kWidth; ++v) {
      T* to = grad + r * grad_pitch + v * kLanes<T>;
      store(to, load(to) + total[r][v]);
    }
}

// Depthwise layers: out (positions out_pitch apart, width) = start + sum over rings of sums (rings, positions,
// channels) weights
template <class T>
void mix_depthwise(const T* sums, Index channels, Index ring_stride, Index rings, Index positions, const T* weights,
                   Index weights_pitch, const T* start, Index width, T* out, Index out_pitch) {
  for (Index v = 0; v < width; v += kLanes<T>)
    for (Index p = 0; p < positions; ++p) {
      Vector<T> sum = load(start + v);
      for (Index b = 0; b < rings; ++b)
        sum += load(sums + b * ring_stride + p * channels + v) * load(weights + b * weights_pitch + v);
      store(out + p * out_pitch + v, sum);
    }
}

// total[c * total_pitch] += sum over positions of sums[., c] thin[., c]
template <class T>
void add_depthwise(const T* sums, Index channels, const T* thin, Index thin_pitch, Index positions, T* total,
                   Index total_pitch) {
  for (Index c = 0; c < channels; c += kLanes<T>) {
    Vector<T> all = {};
    for (Index p = 0; p < positions; p += kAddedInTurn) {
      Vector<T> some = {};
      for (Index q = p; q < std::min(p + kAddedInTurn, positions); ++q)
        some += load(sums + q * channels + c) * load(thin + q * thin_pitch + c);
      all += some;
    }
    for (Index i = 0; i < std::min<Index>(kLanes<T>, channels - c); ++i) total[(c + i) * total_pitch] += all[i];
  }
}

template <class T, class F>
using MixBlock = void (*)(const F*, Index, Index, Index, Index, const T*, const T*, T*, Index);
template <class T>
using GradBlock = void (*)(const T*, Index, const T*, Index, Index, T*, Index);

template <class T, class F, int kWidth, int... kHeights>
MixBlock<T, F> mix_block_of(Index height, std::integer_sequence<int, kHeights...>) {
  static constexpr MixBlock<T, F> blocks[] = {mix_block<T, F, kHeights + 1, kWidth>...};
  return blocks[height - 1];
}
template <class T, int kWidth, int... kHeights>
GradBlock<T> grad_block_of(Index height, std::integer_sequence<int, kHeights...>) {
  static constexpr GradBlock<T> blocks[] = {grad_block<T, kHeights + 1, kWidth>...};
  return blocks[height - 1];
}

using Heights = std::make_integer_sequence<int, kRows>;

// Heights of the blocks that `rows` are cut into: as few and as equal as can be.
inline Index balanced(Index rows, Index done, Index blocks_left) { return divide_up(rows - done, blocks_left); }

// Columns of one group's weights, in panels of two vectors; the last may have one.
template <class T>
struct Panels {
  Index columns;
  Index count() const { return divide_up(columns, kPanelVectors * kLanes<T>); }
  Index start(Index panel) const { return panel * kPanelVectors * kLanes<T>; }
  Index vectors(Index panel) const {
    return std::min<Index>(kPanelVectors, divide_up(columns - start(panel), kLanes<T>));
  }
  Index padded() const { return round_up(columns, kLanes<T>); }
};

}  // namespace sre_triton
