// Ring weights: packed in the order in which products read them, and their gradients put in place.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "activations.h"
#include "memory.h"
#include "products.h"

namespace sre_triton {

// A layer's channels in groups, as ring sums see them: inputs are summed over rings, outputs are not. Depthwise layers
// have no matrix to multiply with.
struct Groups {
  Index count, inputs, outputs;  // per group
  bool depthwise() const { return inputs == 1 && outputs == 1 && count > 1; }
  Index products() const { return depthwise() ? 1 : count; }  // to make one after the other
};

// A tensor (out, in / groups, rings) of a convolution, whichever of its two channels are the inputs of ring sums.
template <class S>
struct RingWeight {
  S* data;
  Index group, input, output, ring;  // strides
  const std::vector<Index>& rings;   // that have sums
  Index all_rings;

  RingWeight(const Tensor& t, Index groups, bool transposed, const std::vector<Index>& rings)
      : data(static_cast<S*>(t.data_ptr())),
        group(t.size(0) / groups * t.stride(0)),
        input(t.stride(transposed ? 0 : 1)),
        output(t.stride(transposed ? 1 : 0)),
        ring(t.stride(2)),
        rings(rings),
        all_rings(t.size(2)) {}

  S* of(Index g, Index c, Index o) const { return data + g * group + c * input + o * output; }
};

// One panel (rings, inputs, columns) with rows `width` apart.
template <class T, class S>
void pack_panel(T* to, Index width, const RingWeight<S>& weight, Index group, Index inputs, Index first,
                Index columns) {
  const Index rings = weight.rings.size();
  auto row_of = [=](Index b, Index c) { return to + (b * inputs + c) * width; };
  const Index all_rings = weight.all_rings;
  if (weight.ring == 1 && weight.input == all_rings) {  // the memory of one output holds all rows
    const S* from = weight.of(group, 0, first);
    if (rings == all_rings)
      return transpose<T>([=](Index i) { return row_of(i % rings, i / rings); }, from, weight.output, columns,
                          rings * inputs);
    // Small maps lack some rings. To read these too and drop them is faster than to read the others one by one.
    T dropped[kPanelVectors * kLanes<T>];
    std::vector<T*> ring_rows(all_rings, nullptr);
    for (Index b = 0; b < rings; ++b) ring_rows[weight.rings[b]] = row_of(b, 0);
    auto row = [&](Index i) {
      T* const of_ring = ring_rows[i % all_rings];
      return of_ring ? of_ring + i / all_rings * width : dropped;
    };
    return transpose<T>(row, from, weight.output, columns, all_rings * inputs);
  }
  for (Index c = 0; c < inputs; ++c)
    for (Index b = 0; b < rings; ++b) {
      const S* from = weight.of(group, c, first) + weight.rings[b] * weight.ring;
      T* row = row_of(b, c);
      for (Index o = 0; o < columns; ++o) row[o] = cast_to<T>(from[o * weight.output]);
    }
}

// Rows of bfloat16 numbers, held as float, to half as many rows of pairs.
template <class T>
void pair_rows(T* to, const T* from, Index pairs, Index width) {
  for (Index p = 0; p < pairs; ++p, to += width, from += 2 * width)
    for (Index o = 0; o < width; ++o) {
      uint32_t first, second;
      std::memcpy(&first, from + o, sizeof first);
      std::memcpy(&second, from + width + o, sizeof second);
      const uint32_t both = (first >> 16) | (second & 0xffff0000u);
      std::memcpy(to + o, &both, sizeof both);
    }
}

// All rows (rings, inputs) of the first columns of each group, then those of the next. The columns that fill up
// the last vector may hold anything: they are multiplied into outputs that nobody reads.
template <class T, class F, class S>
T* pack(const RingWeight<S>& weight, Groups groups, Panels<T> panels) {
  constexpr bool kPairs = std::is_same_v<F, BFloat16Pair>;
  const Index rows = weight.rings.size() * groups.inputs / (kPairs ? 2 : 1);
  weights_memory.reset(Scratch::size<T>(groups.count * rows * panels.padded()));
  T* const packed = weights_memory.take<T>(groups.count * rows * panels.padded());
  at::parallel_for(0, groups.count * panels.count(), 1, [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index group = task / panels.count(), panel = task % panels.count();
      const Index width = panels.vectors(panel) * kLanes<T>, first = panels.start(panel);
      const Index columns = std::min(width, panels.columns - first);
      T* to = packed + (group * panels.padded() + first) * rows;
      if constexpr (kPairs) {
        scratch.reset(Scratch::size<T>(2 * rows * width));
        T* singles = scratch.take<T>(2 * rows * width);
        pack_panel(singles, width, weight, group, groups.inputs, first, columns);
        pair_rows(to, singles, rows, width);
      } else {
        pack_panel(to, width, weight, group, groups.inputs, first, columns);
      }
    }
  });
  return packed;
}

// Weights of a depthwise layer as rows of all channels, `pitch` apart.
template <class T, class S>
T* pack_depthwise(const RingWeight<S>& weight, Index channels, Index pitch) {
  const Index rings = weight.rings.size();
  weights_memory.reset(Scratch::size<T>(rings * pitch));
  T* const packed = weights_memory.take<T>(rings * pitch);
  for (Index b = 0; b < rings; ++b)
    for (Index c = 0; c < channels; ++c)
      packed[b * pitch + c] = cast_to<T>(weight.of(c, 0, 0)[weight.rings[b] * weight.ring]);
  return packed;
}

// Zeros where a ring has no tap, or no input reaches any.
template <class S>
void clear(const Tensor& weight) {
  std::fill_n(static_cast<S*>(weight.data_ptr()), weight.numel(), S(0));
}

// total (rings, groups x inputs, outputs in rows of `pitch`) to its place.
template <class T, class S>
void unpack(const T* total, Index pitch, const RingWeight<S>& weight, Groups groups) {
  constexpr Index kBlock = kLanes<T>;
  const Index rings = weight.rings.size(), blocks = divide_up(groups.inputs, kBlock);
  const Index ring_stride = groups.count * groups.inputs * pitch;
  at::parallel_for(0, groups.count * blocks, 4, [&](Index begin, Index end) {
    alignas(kVectorBytes) T square[kBlock * kBlock];
    auto put = [](S* to, Index step, const T* from, Index count) {
      for (Index i = 0; i < count; ++i) to[i * step] = cast_to<S>(from[i]);
    };
    for (Index task = begin; task < end; ++task) {
      const Index g = task / blocks, c0 = task % blocks * kBlock, height = std::min(kBlock, groups.inputs - c0);
      const T* rows = total + (g * groups.inputs + c0) * pitch;
      if (weight.input > weight.output) {  // rows of the total are rows of the weight, with gaps for other rings
        for (Index c = 0; c < height; ++c)
          for (Index b = 0; b < rings; ++b)
            put(weight.of(g, c0 + c, 0) + weight.rings[b] * weight.ring, weight.output,
                rows + b * ring_stride + c * pitch, groups.outputs);
        continue;
      }
      for (Index o0 = 0; o0 < groups.outputs; o0 += kBlock) {
        const Index width = std::min(kBlock, groups.outputs - o0);
        for (Index b = 0; b < rings; ++b) {
          transpose<T>([&](Index o) { return square + o * kBlock; }, rows + b * ring_stride + o0, pitch, height, width);
          for (Index o = 0; o < width; ++o)
            put(weight.of(g, c0, o0 + o) + weight.rings[b] * weight.ring, weight.input, square + o * kBlock, height);
        }
      }
    }
  });
}

}  // namespace sre_triton
