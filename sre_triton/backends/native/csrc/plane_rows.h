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

// Rows of outputs that are made at once, and vectors of each.
constexpr int kRowsAtOnce = 7, kVectorsAtOnce = 2;
constexpr int kHighest = 11;

// Taps one above the other: each vector of the input serves as many outputs as there are. Places are those of the first
// tap for the first output.
struct TapColumn {
  Triple at;
  Index height, first;          // taps, and the number of the first
  std::vector<uint32_t> masks;  // for every vector of a row of outputs: the lanes that read something
};

inline uint32_t lanes_inside(Index at, Index in, Index lanes) {
  const Index first = std::clamp<Index>(-at, 0, lanes), last = std::clamp<Index>(in - at, 0, lanes);
  return first < last ? ((1u << last) - 1) & ~((1u << first) - 1) : 0;
}

// `order` becomes the numbers of taps, those of one column after those of another.
template <class T>
std::vector<TapColumn> tap_columns(const TapWeights<T>& taps, const Window& w, std::vector<Index>& order) {
  order.resize(taps.count());
  for (Index t = 0; t < taps.count(); ++t) order[t] = t;
  auto place = [&](Index i) {
    const Triple& shift = taps.shifts[order[i]];
    return Triple{w.origin[0] + shift[0], w.origin[1] + shift[1], w.origin[2] + shift[2]};
  };
  std::sort(order.begin(), order.end(), [&](Index a, Index b) {
    const Triple &x = taps.shifts[a], &y = taps.shifts[b];
    return Triple{x[0], x[2], x[1]} < Triple{y[0], y[2], y[1]};
  });
  std::vector<TapColumn> columns;
  auto add = [&](Index first, Index height) {
    TapColumn column{place(first), height, first, {}};
    for (Index k = 0; k < w.out[2]; k += kLanes<T>)
      column.masks.push_back(lanes_inside(column.at[2] + k, w.in[2], kLanes<T>));
    columns.push_back(std::move(column));
  };
  for (Index begin = 0, end; begin < taps.count(); begin = end) {
    const Triple at = place(begin);
    for (end = begin + 1; end < taps.count(); ++end)
      if (place(end) != Triple{at[0], at[1] + end - begin, at[2]}) break;
    if ((end - begin) % 2 == 1 && end - begin <= kHighest)
      add(begin, end - begin);
    else
      for (Index i = begin; i < end; ++i) add(i, 1);
  }
  return columns;
}

// Rows of the input outside of [0, in), of which the first is number `begin`, read nothing.
template <class T, int kHeight, int kVectors>
inline __attribute__((always_inline)) void add_rows(Vector<T> (&sum)[kRowsAtOnce][kVectors], const T* from, Index pitch,
                                                    Index begin, Index in, const uint32_t* masks, const T* weights) {
  Vector<T> weight[kHeight];
#pragma GCC unroll 16
  for (int i = 0; i < kHeight; ++i) {
    weight[i] = Vector<T>{} + weights[i];
#if defined(__AVX512F__)
    asm("" : "+v"(weight[i]));  // or every product would read its weight again
#endif
  }
#pragma GCC unroll 32
  for (int u = 0; u < kRowsAtOnce + kHeight - 1; ++u) {
    const uint32_t inside = -static_cast<uint32_t>(static_cast<uint64_t>(begin + u) < static_cast<uint64_t>(in));
    Vector<T> row[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) row[v] = load_lanes(from + v * kLanes<T>, masks[v] & inside);
    from = step_on(from, pitch);
#pragma GCC unroll 16
    for (int r = 0; r < kRowsAtOnce; ++r)
      if (0 <= u - r && u - r < kHeight)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[r][v] += row[v] * weight[u - r];
  }
}

// kVectors vectors, from number `vector` on, of kRowsAtOnce rows of outputs, of which `count` are wanted.
template <class T, int kVectors>
void weigh_rows_of_plane(const Activation<T>& x, const Window& w, const T* plane, const std::vector<TapColumn>& columns,
                         const T* weights, T start, Index slice, Index row, Index vector, T* to, Index to_pitch,
                         Index count) {
  Vector<T> sum[kRowsAtOnce][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRowsAtOnce; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[r][v] = Vector<T>{} + start;
  for (const TapColumn& column : columns) {
    const Index i = column.at[0] + slice, j = column.at[1] + row;
    if (i < 0 || i >= w.in[0]) continue;
    const T* from = plane + i * x.stride[0] + j * x.stride[1] + column.at[2] + vector * kLanes<T>;
    const auto add = [&](auto height) {
      add_rows<T, height(), kVectors>(sum, from, x.stride[1], j, w.in[1], column.masks.data() + vector,
                                      weights + column.first);
    };
    switch (column.height) {
      case 1:
        add(std::integral_constant<int, 1>());
        break;
      case 3:
        add(std::integral_constant<int, 3>());
        break;
      case 5:
        add(std::integral_constant<int, 5>());
        break;
      case 7:
        add(std::integral_constant<int, 7>());
        break;
      case 9:
        add(std::integral_constant<int, 9>());
        break;
      case 11:
        add(std::integral_constant<int, 11>());
        break;
    }
  }
  const Index rest = w.out[2] - (vector + kVectors - 1) * kLanes<T>;
  to += vector * kLanes<T>;
#pragma GCC unroll 8
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
  const Index vectors = divide_up(w.out[2], kLanes<T>), blocks = divide_up(w.out[1], Index(kRowsAtOnce));
  at::parallel_for(0, x.images * x.channels, 1, [&](Index begin, Index end) {
    std::vector<T> weights(taps.count());
    for (Index task = begin; task < end; ++task) {
      const Index image = task / x.channels, channel = task % x.channels;
      for (Index t = 0; t < taps.count(); ++t) weights[t] = taps.of(order[t])[channel];
      const T* plane = x.data + image * x.image_stride + channel * x.channel_stride;
      T* const out = y.data + image * y.image_stride + channel * y.channel_stride;
      for (Index i = 0; i < w.out[0]; ++i)
        for (Index b = 0, j = 0; b < blocks; ++b) {
          const Index count = balanced(w.out[1], j, blocks - b);
          T* const to = out + i * y.stride[0] + j * y.stride[1];
          for (Index v = 0; v < vectors; v += kVectorsAtOnce) {
            const auto block = v + 1 < vectors ? weigh_rows_of_plane<T, 2> : weigh_rows_of_plane<T, 1>;
            block(x, w, plane, columns, weights.data(), taps.start()[channel], i, j, v, to, y.stride[1], count);
          }
          j += count;
        }
    }
  });
}

}  // namespace sre_triton
