// Few input channels whose planes are read and written where they lie: positions fill the vectors of products, so that
// no activation is transposed on its way.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "activations.h"
#include "additions.h"
#include "arguments.h"
#include "passes.h"
#include "products.h"
#include "ring_sums.h"
#include "ring_weights.h"
#include "window.h"

namespace sre_triton {

constexpr Index kThin = 4;                // channels; more have ring sums that are worth a transposition
constexpr Index kThinPositions = 1 << 9;  // of a tile, whose ring sums then fit the first-level cache

template <class S>
bool are_thin_planes(const Activation<S>& x, const Activation<S>& y, const Window& w, Index groups) {
  const bool rows_are_whole = x.stride[2] == 1 && y.stride[2] == 1 && y.stride[1] == w.out[2];
  return groups == 1 && x.channels <= kThin && w.in[0] == 1 && w.out[0] == 1 && rows_are_whole &&
         w.upsampling == Triple{1, 1, 1} && w.out[2] >= kPanelVectors * kLanes<S>;
}

// y of such a layer: a product of weights (outputs, rings x channels) with ring sums (rings x channels, positions).
template <class T>
void convolve_thin_planes(const Call& call, const Window& w) {
  const Activation<T> x(call.source), y(*call.y);
  const RingWeight<T> weight(*call.weight, 1, call.transposed, w.rings);
  const Index rings = w.rings.size(), outputs = y.channels, own_steps = rings * x.channels;
  const Index steps = own_steps + (call.bias ? 1 : 0);  // the bias is multiplied with ones
  std::vector<T> left(steps * outputs);
  for (Index b = 0; b < rings; ++b)
    for (Index c = 0; c < x.channels; ++c)
      for (Index o = 0; o < outputs; ++o)
        left[(b * x.channels + c) * outputs + o] = weight.of(0, c, o)[w.rings[b] * weight.ring];
  if (call.bias) std::copy_n(static_cast<const T*>(call.bias->const_data_ptr()), outputs, &left[own_steps * outputs]);
  std::optional<Activation<T>> residual;
  if (call.residual) residual.emplace(*call.residual);

  const Index tiles = divide_up(w.out[1], std::max<Index>(1, kThinPositions / w.out[2]));
  const Triple largest{1, divide_up(w.out[1], tiles), w.out[2]};
  const Index sums_size = steps * largest[1] * largest[2];
  size_t bytes = Scratch::size<T>(sums_size);
  std::vector<Index> buffer_sizes;
  for (Index level : w.levels) {
    const Triple e = Adder<T, T>::extent(w, largest, level);
    buffer_sizes.push_back(e[0] * e[1] * e[2]);
    bytes += Scratch::size<T>(buffer_sizes.back());
  }

  at::parallel_for(0, x.images * tiles, 1, [&](Index begin, Index end) {
    scratch.reset(bytes);
    T* const sums = scratch.take<T>(sums_size);
    std::vector<T*> buffers;
    for (Index size : buffer_sizes) buffers.push_back(scratch.take<T>(size));
    Additions<T, T> additions;
    std::optional<Adder<T, T>> adder;
    Activation<T> planes = x;  // of one image: each is an image of one channel
    planes.images = x.channels;
    planes.channels = planes.channel_stride = 1;
    planes.image_stride = x.channel_stride;
    for (Index task = begin; task < end; ++task) {
      const Index image = task / tiles, number = task % tiles;
      const Index first = number * w.out[1] / tiles, last = (number + 1) * w.out[1] / tiles;
      const Tile tile{0, x.channels, {0, first, 0}, {1, last - first, w.out[2]}};
      const Index positions = tile.size[1] * tile.size[2];
      if (!adder || adder->tile_size() != tile.size) adder.emplace(w, 1, tile.size, buffers);
      planes.data = x.data + image * x.image_stride;
      const InputRows<T> rows(planes, w, tile);
      for (Index c = 0; c < x.channels; ++c) {
        load_input(buffers[0], planes, w, tile, c);
        additions.clear();
        adder->put(c, tile, tile, sums, additions, rows);
        additions.finish();
      }
      if (call.bias) std::fill_n(sums + own_steps * positions, positions, T(1));

      const Index start = image * y.image_stride + first * y.stride[1], blocks = divide_up(outputs, kRows);
      constexpr Index kWidth = kPanelVectors * kLanes<T>;
      for (Index b = 0, o = 0; b < blocks; ++b) {
        const Index height = balanced(outputs, o, blocks - b);
        T* const out = y.data + start + o * y.channel_stride;
        const auto block = outer_block_of<T, T, kPanelVectors>(height, Heights());
        for (Index p = 0; p < positions; p += kWidth) {
          const Index at = std::min(p, positions - kWidth);  // the last may make some of the one before it again
          block(left.data() + o, outputs, sums + at, positions, steps, false, out + at, y.channel_stride);
        }
        for (Index r = 0; r < height; ++r)
          finish(out + r * y.channel_stride, residual ? residual->data + start + (o + r) * y.channel_stride : nullptr,
                 positions, call.slope);
        o += height;
      }
    }
    scratch.shrink();
  });
}

}  // namespace sre_triton
