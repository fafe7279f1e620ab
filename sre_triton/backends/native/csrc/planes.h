// Depthwise layers whose channels are planes (or volumes) of their own: positions of a row lie side by side.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "activations.h"
#include "memory.h"
#include "plane_rows.h"
#include "taps.h"
#include "window.h"

namespace sre_triton {

// Elements of a padded tile of one channel: it stays in the first-level cache where that does not make it thin.
constexpr Index kPlaneElements = 6 << 10;

inline Tiling cut_planes(const Window& w, Index planes) {
  const Triple all{reads(w, 0, w.out[0]), reads(w, 1, w.out[1]), reads(w, 2, w.out[2])};
  auto part = [&](Index d, Index beside) {
    const Index halo = 2 * w.half[d] * w.dilation[d], fits = kPlaneElements / beside - halo;
    const Index most = std::max<Index>({fits / w.stride[d], 2 * halo / w.stride[d], 1});
    return divide_up(w.out[d], divide_up(w.out[d], most));
  };
  Tiling t;
  const Index rows = part(1, all[2]);
  t.size = {part(0, all[2] * reads(w, 1, rows)), rows, w.out[2]};
  for (Index d = 0; d < 3; ++d) t.tiles[d] = divide_up(w.out[d], t.size[d]);
  t.images = 1;
  t.image_tiles = planes;
  return t;
}

// Taps one above the other.
struct Column {
  Index from, height;  // of the first tap, in the padded tile
  Index first;         // number of its tap
};

constexpr int kRowsOfSums = 4;

template <class T, int kVectors>
void weigh_block(const T* from, Index pitch, const std::vector<Column>& columns, const T* weights, T start, T* to,
                 Index to_pitch) {
  Vector<T> sum[kRowsOfSums][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRowsOfSums; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = Vector<T>{} + start;
  for (const Column& column : columns) {
    const T* source = from + column.from;
    with_odd_count(column.height, [&](auto height) __attribute__((always_inline)) {
      add_column<T, height()>(sum, weights + column.first, [&](int, auto& row) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) row[v] = load(source + v * kLanes<T>);
        source = step_on(source, pitch);
      });
    });
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRowsOfSums; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(to + r * to_pitch + v * kLanes<T>, sum[r][v]);
}

template <class T>
std::vector<Column> columns_of(const TapWeights<T>& taps, const Window& w, const Triple& read,
                               std::vector<Index>& order) {
  std::vector<Column> columns;
  const Index step = w.stride[2];
  take_columns(taps, w.stride[1] == 1, order, [&](Index first, Index height) {
    const Triple& shift = taps.shifts[order[first]];
    const Index row = (shift[0] * read[1] + shift[1]) * read[2];
    columns.push_back({row + shift[2] % step * (read[2] / step) + shift[2] / step, height, first});
  });
  return columns;
}

// Every step-th of `count` elements.
template <Index kStep, class T, class S>
void copy_every(T* to, const S* from, Index step, Index count) {
  const Index by = kStep ? kStep : step;
  for (Index i = 0; i < divide_up(count, by); ++i) to[i] = cast_to<T>(from[i * by]);
}

// What a tile of a plane reads. Unless there are gaps in the input, only what lies inside is written: what lies beside
// it in the rows of a plane is zero once and for all.
template <class S, class T>
void load_plane(T* to, const Activation<S>& x, const Window& w, const Tile& tile, Index image) {
  if (w.upsampling != Triple{1, 1, 1} || x.stride[2] != 1) return load_input(to, x, w, tile, image);
  const Triple read{reads(w, 0, tile.size[0]), reads(w, 1, tile.size[1]), reads(w, 2, tile.size[2])};
  const Index lead = std::max<Index>(0, -w.origin[2]), skipped = std::max<Index>(0, w.origin[2]);
  const Index count = std::min(read[2] - lead, w.in[2] - skipped), step = w.stride[2], phase_size = read[2] / step;
  const S* image_from = x.data + image * x.image_stride + skipped;
  for (Index i = 0; i < read[0]; ++i)
    for (Index j = 0; j < read[1]; ++j, to += read[2]) {
      const Index a = tile.start[0] * w.stride[0] + w.origin[0] + i, b = tile.start[1] * w.stride[1] + w.origin[1] + j;
      if (a < 0 || a >= w.in[0] || b < 0 || b >= w.in[1] || count <= 0) {
        std::fill_n(to, read[2], T(0));
        continue;
      }
      const S* row = image_from + a * x.stride[0] + b * x.stride[1];
      if (step == 1) {
        copy_row(to + lead, row, count);
        continue;
      }
      for (Index first = 0; first < std::min(step, count); ++first) {
        T* phase = to + (lead + first) % step * phase_size + (lead + first) / step;
        if (step == 2)
          copy_every<2>(phase, row + first, step, count - first);
        else
          copy_every<0>(phase, row + first, step, count - first);
      }
    }
}

template <class S, class T>
void weigh_planes(const Activation<S>& x, const Activation<S>& y, const TapWeights<T>& taps, const Window& w) {
  if constexpr (std::is_same_v<S, T> && kMasks)
    if (can_be_read_in_place(x, y, w)) return weigh_planes_in_place(x, y, taps, w);
  constexpr Index kL = kLanes<T>;
  const Tiling tiling = cut_planes(w, x.images * x.channels);
  const Triple most{reads(w, 0, tiling.size[0]), reads(w, 1, tiling.size[1]), reads(w, 2, tiling.size[2])};
  const Index pitch = most[2], width = round_up(tiling.size[2], kL);
  // Blocks may begin in the last row and read what nobody asked for.
  const Index padded_size = (most[0] * most[1] + kRowsOfSums * w.stride[1]) * pitch + 4 * kL;

  at::parallel_for(0, tiling.count(), 1, [&](Index begin, Index end) {
    Activation<S> plane = x;  // each thread is at one of its own
    plane.channels = plane.channel_stride = 1;
    scratch.reset(Scratch::size<T>(padded_size) + Scratch::size<T>(kRowsOfSums * width) +
                  Scratch::size<T>(taps.count()));
    T *padded = scratch.take<T>(padded_size), *rows = scratch.take<T>(kRowsOfSums * width);
    T* weights = scratch.take<T>(taps.count());
    std::fill_n(padded, padded_size, T(0));
    std::vector<Column> columns;
    std::vector<Index> order;
    Index channel = -1, height = -1;
    for (Index task = begin; task < end; ++task) {
      const Tile tile = tiling.tile(task, tiling.image_tiles, w);
      const Index image = tile.image / x.channels;
      const bool other_height = height != reads(w, 1, tile.size[1]), other = channel != tile.image % x.channels;
      if (other_height) {
        height = reads(w, 1, tile.size[1]);
        columns = columns_of(taps, w, {0, height, pitch}, order);
      }
      if (other || other_height) {
        channel = tile.image % x.channels;
        for (Index t = 0; t < taps.count(); ++t) weights[t] = taps.of(order[t])[channel];
      }
      plane.data = x.data + channel * x.channel_stride;
      load_plane(padded, plane, w, tile, image);
      S* const out = y.data + image * y.image_stride + channel * y.channel_stride;
      const T start = taps.start()[channel];
      for (Index i = 0; i < tile.size[0]; ++i)
        for (Index j = 0; j < tile.size[1]; j += kRowsOfSums) {
          const T* from = padded + (i * w.stride[0] * height + j * w.stride[1]) * pitch;
          for (Index k = 0; k < width;) {
            auto block = [&](auto vectors) {
              weigh_block<T, vectors()>(from + k, w.stride[1] * pitch, columns, weights, start, rows + k, width);
              k += vectors() * kL;
            };
            if (kRows > 6 && k + 4 * kL <= width)
              block(std::integral_constant<int, 4>());
            else if (k + 2 * kL <= width)
              block(std::integral_constant<int, 2>());
            else
              block(std::integral_constant<int, 1>());
          }
          for (Index r = 0; r < std::min<Index>(kRowsOfSums, tile.size[1] - j); ++r) {
            const T* row = rows + r * width;
            S* to = out + (tile.start[0] + i) * y.stride[0] + (tile.start[1] + j + r) * y.stride[1];
            if (y.stride[2] == 1)
              copy_row(to, row, tile.size[2]);
            else
              for (Index k = 0; k < tile.size[2]; ++k) to[k * y.stride[2]] = cast_to<S>(row[k]);
          }
        }
    }
    scratch.shrink();
  });
}

}  // namespace sre_triton
