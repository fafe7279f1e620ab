// Depthwise layers whose channels are planes, read where they lie: lanes that reach beyond a row are masked, so that no
// padded copy is made.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "activations.h"
#include "products.h"
#include "taps.h"
#include "window.h"

namespace sre_triton {

// Vectors of outputs that are made at once: rows of one or two.
constexpr int kVectorsAtOnce = 2, kOutputVectors = 14;

// Taps one above the other. Places are those of the first tap for the first output.
struct TapColumn {
  Triple at;
  Index height, first;          // taps, and the number of the first
  std::vector<uint32_t> masks;  // for every vector of a row of outputs: the lanes that read something
};

inline uint32_t lanes_inside(Index at, Index in, Index lanes) {
  const Index first = std::clamp<Index>(-at, 0, lanes), last = std::clamp<Index>(in - at, 0, lanes);
  return first < last ? ((1u << last) - 1) & ~((1u << first) - 1) : 0;
}

template <class T>
std::vector<TapColumn> tap_columns(const TapWeights<T>& taps, const Window& w, std::vector<Index>& order) {
  std::vector<TapColumn> columns;
  take_columns(taps, true, order, [&](Index first, Index height) {
    const Triple& shift = taps.shifts[order[first]];
    TapColumn column{{w.origin[0] + shift[0], w.origin[1] + shift[1], w.origin[2] + shift[2]}, height, first, {}};
    for (Index k = 0; k < w.out[2]; k += kLanes<T>)
      column.masks.push_back(lanes_inside(column.at[2] + k, w.in[2], kLanes<T>));
    columns.push_back(std::move(column));
  });
  return columns;
}

// kVectors vectors, from number `vector` on, of kRowsAtOnce rows of outputs, of which `count` are wanted. Rows of the
// input outside of it read nothing. The same of the next plane comes near on the way.
template <class T, int kVectors, int kRowsAtOnce>
void weigh_rows_of_plane(const Activation<T>& x, const Window& w, const T* plane, const std::vector<TapColumn>& columns,
                         const T* weights, T start, Index slice, Index row, Index vector, T* to, Index to_pitch,
                         Index count, Ahead next) {
  to += vector * kLanes<T>;
  const T* const here = plane + slice * x.stride[0] + row * x.stride[1] + vector * kLanes<T>;
  Vector<T> sum[kRowsAtOnce][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRowsAtOnce; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      __builtin_prefetch(here + next.read + r * x.stride[1] + v * kLanes<T>, 0, 2);
      __builtin_prefetch(to + next.written + r * to_pitch + v * kLanes<T>, 1, 2);
      sum[r][v] = Vector<T>{} + start;
    }
  for (const TapColumn& column : columns) {
    const Index i = column.at[0] + slice, j = column.at[1] + row, pitch = x.stride[1];
    if (i < 0 || i >= w.in[0]) continue;
    const T* from = plane + i * x.stride[0] + j * pitch + column.at[2] + vector * kLanes<T>;
    const uint32_t* masks = column.masks.data() + vector;
    with_odd_count(column.height, [&](auto height) __attribute__((always_inline)) {
      add_column<T, height()>(sum, weights + column.first, [&](int u, auto& row) __attribute__((always_inline)) {
        const uint32_t inside = -static_cast<uint32_t>(static_cast<uint64_t>(j + u) < static_cast<uint64_t>(w.in[1]));
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) row[v] = load_lanes(from + v * kLanes<T>, masks[v] & inside);
        from = step_on(from, pitch);
      });
    });
  }
  const Index rest = w.out[2] - (vector + kVectors - 1) * kLanes<T>;
#pragma GCC unroll 16
  for (int r = 0; r < kRowsAtOnce; ++r)
    if (r < count) {
      if constexpr (kVectors > 1) store(to + r * to_pitch, sum[r][0]);
      store_as<T>(to + r * to_pitch + (kVectors - 1) * kLanes<T>, sum[r][kVectors - 1],
                  std::min<Index>(rest, kLanes<T>));
    }
}

template <class S>
bool can_be_read_in_place(const Activation<S>& x, const Activation<S>& y, const Window& w) {
  const Triple ones{1, 1, 1};
  return w.stride == ones && w.upsampling == ones && x.stride[2] == 1 && y.stride[2] == 1;
}

template <class T>
void weigh_planes_in_place(const Activation<T>& x, const Activation<T>& y, const TapWeights<T>& taps, const Window& w) {
  std::vector<Index> order;
  const std::vector<TapColumn> columns = tap_columns(taps, w, order);
  const Index vectors = divide_up(w.out[2], kLanes<T>);
  // As few rows as are made in vain.
  constexpr int kHigh = kOutputVectors, kLow = kOutputVectors / kVectorsAtOnce;
  const bool high = vectors == 1 && round_up(w.out[1], kHigh) == round_up(w.out[1], kLow);
  const Index blocks = divide_up(w.out[1], high ? kHigh : kLow);
  at::parallel_for(0, x.images * x.channels, 1, [&](Index begin, Index end) {
    std::vector<T> weights(taps.count());
    for (Index task = begin; task < end; ++task) {
      const Index image = task / x.channels, channel = task % x.channels;
      for (Index t = 0; t < taps.count(); ++t) weights[t] = taps.of(order[t])[channel];
      const T* plane = x.data + image * x.image_stride + channel * x.channel_stride;
      T* const out = y.data + image * y.image_stride + channel * y.channel_stride;
      const bool last = channel == x.channels - 1;  // of its image
      const Ahead next{last ? x.image_stride - channel * x.channel_stride : x.channel_stride,
                       last ? y.image_stride - channel * y.channel_stride : y.channel_stride};
      for (Index i = 0; i < w.out[0]; ++i)
        for (Index b = 0, j = 0; b < blocks; ++b) {
          const Index count = balanced(w.out[1], j, blocks - b);
          T* const to = out + i * y.stride[0] + j * y.stride[1];
          for (Index v = 0; v < vectors; v += kVectorsAtOnce) {
            const auto block = v + 1 < vectors ? weigh_rows_of_plane<T, 2, kLow>
                               : high          ? weigh_rows_of_plane<T, 1, kHigh>
                                               : weigh_rows_of_plane<T, 1, kLow>;
            block(x, w, plane, columns, weights.data(), taps.start()[channel], i, j, v, to, y.stride[1], count, next);
          }
          j += count;
        }
    }
  });
}

}  // namespace sre_triton
