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
template <class T, class F>
using FactorOf = std::conditional_t<std::is_same_v<T, F>, T, at::BFloat16>;
template <class T, class V>
inline void multiply_add(V& sum, const T* factor, V weights) {
  sum += *factor * weights;
}

#if defined(__AVX512BF16__)
inline void multiply_add(Vector<float>& sum, const BFloat16Pair* factor, Vector<float> weights) {
  int both;
  std::memcpy(&both, factor, sizeof both);
  sum = (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(both), (__m512bh)(__m512)weights);
}
#endif

// (positions, width) to (half of that, rounded up, width) pairs of positions, held as T.
template <class T>
void pair_positions(T* to, const at::BFloat16* from, Index positions, Index width) {
  static_assert(sizeof(T) == sizeof(BFloat16Pair));
  uint32_t* pairs = reinterpret_cast<uint32_t*>(to);
  const uint16_t* rows = reinterpret_cast<const uint16_t*>(from);
  for (; positions > 1; positions -= 2, pairs += width, rows += 2 * width)
    for (Index i = 0; i < width; ++i) pairs[i] = rows[i] | uint32_t(rows[width + i]) << 16;
  if (positions)
    for (Index i = 0; i < width; ++i) pairs[i] = rows[i];
}

// out (kHeight rows out_pitch apart, kWidth vectors) = start (rows start_pitch apart, or one row for all) + sums
// (kHeight positions, rings x depth) weights (rings x depth, kWidth vectors). What waits is done in between, be it
// additions.
template <class T, class F, int kHeight, int kWidth, int kBytes, class Between>
__attribute__((noinline)) void mix_block(const F* sums, Index position_stride, Index ring_stride, Index rings,
                                         Index depth, const T* weights, const T* start, Index start_pitch, T* out,
                                         Index out_pitch, Between& between) {
  constexpr int kGroups = (kHeight + 2) / 3, kIn = kBytes / sizeof(T);
  Vector<T, kBytes> sum[kHeight][kWidth];
#pragma GCC unroll 16
  for (int r = 0; r < kHeight; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kWidth; ++v) sum[r][v] = load<kBytes>(start + r * start_pitch + v * kIn);
#pragma GCC unroll 16
  for (int r = 0; r < kHeight; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kWidth; ++v) __builtin_prefetch(out + r * out_pitch + v * kIn, 1, 3);
  for (Index ring = 0; ring < rings; ++ring) {
    // Three rows share a pointer: fourteen would not fit the registers.
    const F* rows[kGroups];
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) rows[g] = sums + ring * ring_stride + 3 * g * position_stride;
    for (Index c = 0; c < depth;) {
      const Index due = between.until_due(depth - c);
      for (const Index end = c + due; c < end; ++c) {
        Vector<T, kBytes> weight[kWidth];
#pragma GCC unroll 2
        for (int v = 0; v < kWidth; ++v) weight[v] = load<kBytes>(weights + v * kIn);
        weights += kWidth * kIn;
#pragma GCC unroll 16
        for (int r = 0; r < kHeight; ++r)
#pragma GCC unroll 2
          for (int v = 0; v < kWidth; ++v)
            multiply_add(sum[r][v], rows[r / 3] + r % 3 * position_stride + c, weight[v]);
      }
      between.done(due);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kHeight; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kWidth; ++v) store<kBytes>(out + r * out_pitch + v * kIn, sum[r][v]);
}

// Terms of a weight gradient that are added up before they join the rest: rounding errors grow with such runs.
constexpr Index kAddedInTurn = 64;

// total (kHeight rows total_pitch apart, kWidth vectors) = or += left (steps, kHeight)^T right (steps, kWidth vectors)
template <class T, class F, int kHeight, int kWidth>
__attribute__((noinline)) void outer_block(const F* left, Index left_pitch, const T* right, Index right_pitch,
                                           Index steps, bool add, T* total, Index total_pitch) {
  Vector<T> sum[kHeight][kWidth] = {};
  for (Index i = 0; i < steps; ++i, left += left_pitch, right += right_pitch) {
    Vector<T> row[kWidth];
#pragma GCC unroll 2
    for (int v = 0; v < kWidth; ++v) row[v] = load(right + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < kHeight; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kWidth; ++v) multiply_add(sum[r][v], left + r, row[v]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < kHeight; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kWidth; ++v) {
      T* to = total + r * total_pitch + v * kLanes<T>;
      store(to, add ? load(to) + sum[r][v] : sum[r][v]);
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

template <class T, class F, class Between>
using MixBlock = void (*)(const F*, Index, Index, Index, Index, const T*, const T*, Index, T*, Index, Between&);
template <class T, class F>
using OuterBlock = void (*)(const F*, Index, const T*, Index, Index, bool, T*, Index);

template <class T, class F, class Between, int kWidth, int kBytes = kVectorBytes, int... kHeights>
MixBlock<T, F, Between> mix_block_of(Index height, std::integer_sequence<int, kHeights...>) {
  static constexpr MixBlock<T, F, Between> blocks[] = {mix_block<T, F, kHeights + 1, kWidth, kBytes, Between>...};
  return blocks[height - 1];
}
template <class T, class F, int kWidth, int... kHeights>
OuterBlock<T, F> outer_block_of(Index height, std::integer_sequence<int, kHeights...>) {
  static constexpr OuterBlock<T, F> blocks[] = {outer_block<T, F, kHeights + 1, kWidth>...};
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

// total (rows, columns) = or += left (steps, rows)^T right (steps, columns). A step is a position or a pair of them.
template <class T, class F>
void add_outer(const F* left, Index left_pitch, Index rows, const T* right, Index right_pitch, Index columns,
               Index steps, bool add, T* total, Index pitch) {
  const Panels<T> panels{columns};
  const Index blocks = divide_up(rows, kRows);
  for (Index b = 0, r = 0; b < blocks; ++b) {
    const Index height = balanced(rows, r, blocks - b);
    for (Index panel = 0; panel < panels.count(); ++panel) {
      const Index first = panels.start(panel);
      const auto block = panels.vectors(panel) == 1 ? outer_block_of<T, F, 1>(height, Heights())
                                                    : outer_block_of<T, F, 2>(height, Heights());
      for (Index i = 0; i < steps; i += kAddedInTurn)
        block(left + i * left_pitch + r, left_pitch, right + i * right_pitch + first, right_pitch,
              std::min(kAddedInTurn, steps - i), add || i > 0, total + r * pitch + first, pitch);
    }
    r += height;
  }
}

}  // namespace sre_triton
