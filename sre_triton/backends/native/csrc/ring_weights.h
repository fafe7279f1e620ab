// Ring weights: packed in the order in which products read them, and their gradients put in place.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "activations.h"
#include "conversions.h"
#include "interleave.h"
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

// Of `inputs` inputs from the first on, and so many columns: row_of(ring, input)[column].
template <class T, class S, class RowOf>
void pack_rows(RowOf row_of, const RingWeight<S>& weight, const Interleaving<T>& interleaving, Index group, Index input,
               Index inputs, Index first, Index columns) {
  const Index rings = weight.rings.size(), all_rings = weight.all_rings;
  if (weight.ring == 1 && weight.input == all_rings) {  // the memory of one output holds all rows
    // Small maps lack some rings. To read these too and drop them is faster than to read the others one by one.
    T dropped[kPanelVectors * kLanes<T>];
    std::vector<T*> rows(all_rings * inputs, dropped);
    for (Index b = 0; b < rings; ++b)
      for (Index c = 0; c < inputs; ++c) rows[c * all_rings + weight.rings[b]] = row_of(b, c);
    constexpr Ahead kTenSquares{10 * kLanes<T>, 0};  // large weights come from far away
    return transpose<T>([&](Index i) { return rows[i]; }, weight.of(group, input, first), weight.output, columns,
                        all_rings * inputs, kTenSquares);
  }
  for (Index c = 0; c < inputs; ++c) {
    const S* from = weight.of(group, input + c, first);
    if (weight.ring == 1 && weight.output == all_rings) {
      const char* next = reinterpret_cast<const char*>(from + columns * all_rings);  // what the next panel reads
      for (Index line = 0; line < Index(columns * all_rings * sizeof(S)); line += 64)
        __builtin_prefetch(next + line, 0, 2);
      for (Index o = 0; o < columns; o += kLanes<T>)
        interleaving.split(from + o * all_rings, std::min<Index>(kLanes<T>, columns - o),
                           [&](Index b) { return row_of(b, c) + o; });
    } else {
      for (Index b = 0; b < rings; ++b)
        for (Index o = 0; o < columns; ++o)
          row_of(b, c)[o] = cast_to<T>(from[weight.rings[b] * weight.ring + o * weight.output]);
    }
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
  constexpr Index kPair = std::is_same_v<F, BFloat16Pair> ? 2 : 1, kColumns = kPanelVectors * kLanes<T>;
  const Index rings = weight.rings.size(), rows = rings * groups.inputs / kPair;
  const bool by_input = weight.input > weight.output;
  const Index most = by_input || kPair > 1 ? 16 : groups.inputs, blocks = divide_up(groups.inputs, most);
  weights_memory.reset(Scratch::size<T>(groups.count * rows * panels.padded()));
  T* const packed = weights_memory.take<T>(groups.count * rows * panels.padded());
  const Interleaving<T> interleaving(weight.all_rings, weight.rings);
  // What lies side by side in memory is read in turn.
  at::parallel_for(0, groups.count * panels.count() * blocks, 1, [&](Index begin, Index end) {
    scratch.reset(Scratch::size<T>(rings * most * kColumns));
    T* const singles = scratch.take<T>(rings * most * kColumns);
    for (Index task = begin; task < end; ++task) {
      const Index group = task / (panels.count() * blocks), of_group = task % (panels.count() * blocks);
      const Index panel = by_input ? of_group % panels.count() : of_group / blocks;
      const Index input = (by_input ? of_group / panels.count() : of_group % blocks) * most;
      const Index width = panels.vectors(panel) * kLanes<T>, first = panels.start(panel);
      const Index columns = std::min(width, panels.columns - first), inputs = std::min(most, groups.inputs - input);
      T* const to = packed + (group * panels.padded() + first) * rows;
      auto pack_to = [&](auto row_of) {
        pack_rows<T>(row_of, weight, interleaving, group, input, inputs, first, columns);
      };
      if constexpr (kPair == 1) {
        pack_to([=](Index b, Index c) { return to + (b * groups.inputs + input + c) * width; });
      } else {
        pack_to([=](Index b, Index c) { return singles + (b * inputs + c) * width; });
        for (Index b = 0; b < rings; ++b)
          pair_rows(to + (b * groups.inputs + input) / kPair * width, singles + b * inputs * width, inputs / kPair,
                    width);
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

// total (rings, groups x inputs, outputs in rows of `pitch`) to its place in a contiguous weight, whose other rings are
// zero.
template <class T, class S>
void unpack(const T* total, Index pitch, const RingWeight<S>& weight, Groups groups) {
  constexpr Index kBlock = kLanes<T>;
  const Index rings = weight.rings.size(), blocks = divide_up(groups.inputs, kBlock);
  const Index ring_stride = groups.count * groups.inputs * pitch;
  const Interleaving<T> interleaving(weight.all_rings, weight.rings);
  at::parallel_for(0, groups.count * blocks, 4, [&](Index begin, Index end) {
    scratch.reset(Scratch::size<T>(rings * kBlock * kBlock));
    T* const squares = scratch.take<T>(rings * kBlock * kBlock);
    for (Index task = begin; task < end; ++task) {
      const Index g = task / blocks, c0 = task % blocks * kBlock, height = std::min(kBlock, groups.inputs - c0);
      const T* rows = total + (g * groups.inputs + c0) * pitch;
      if (weight.input > weight.output) {  // rows of the total are rows of the weight
        for (Index c = 0; c < height; ++c)
          for (Index o = 0; o < groups.outputs; o += kBlock)
            interleaving.join(weight.of(g, c0 + c, o), std::min(kBlock, groups.outputs - o),
                              [&](Index b) { return rows + b * ring_stride + c * pitch + o; });
        continue;
      }
      for (Index o0 = 0; o0 < groups.outputs; o0 += kBlock) {
        const Index width = std::min(kBlock, groups.outputs - o0);
        for (Index b = 0; b < rings; ++b)
          transpose<T>([&](Index o) { return squares + (b * kBlock + o) * kBlock; }, rows + b * ring_stride + o0, pitch,
                       height, width);
        for (Index o = 0; o < width; ++o)
          interleaving.join(weight.of(g, c0, o0 + o), height,
                            [&](Index b) { return squares + (b * kBlock + o) * kBlock; });
      }
    }
  });
}

}  // namespace sre_triton
