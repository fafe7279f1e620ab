// Depthwise layers: every output is one weighed sum over taps. There are no channels to mix, so ring sums would save
// nothing: a weighed addition costs a processor no more than a plain one.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "activations.h"
#include "arguments.h"
#include "planes.h"
#include "products.h"
#include "taps.h"
#include "window.h"

namespace sre_triton {

// A tap that reads something, for some outputs: where the first of them reads, and the tap's weights.
template <class S, class T>
struct Reading {
  const S* from;
  const T* weights;
};

// All ways to weigh bring the next row of the input, which is `ahead` elements further, to the cache on the way.

// Channels side by side: kCount outputs, kVectors vectors of their channels from `c` on, or `rest` channels if that is
// not zero.
template <class S, class T, int kCount, int kVectors, bool kPart>
void weigh_channels(const std::vector<Reading<S, T>>& readings, Index c, Index rest, Index from_step, const T* start,
                    S* to, Index to_step, Index ahead) {
  constexpr Index kL = kLanes<T>;
  Vector<T> sum[kCount][kVectors];
  const S* next = readings.empty() ? to : readings.back().from + c + ahead;
  for (int p = 0; p < kCount; ++p, next = step_on(next, from_step))
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) __builtin_prefetch(next + v * kL, 0, 2);
#pragma GCC unroll 8
  for (int p = 0; p < kCount; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[p][v] = load(start + c + v * kL);
  for (const Reading<S, T>& reading : readings) {
    const S* from = reading.from + c;
    Vector<T> weight[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) weight[v] = load(reading.weights + c + v * kL);
#pragma GCC unroll 8
    for (int p = 0; p < kCount; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[p][v] += load_as<T, kPart>(from + v * kL, rest) * weight[v];
      from = step_on(from, from_step);
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kCount; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store_as<T, kPart>(to + c + p * to_step + v * kL, sum[p][v], rest);
}

template <class S, class T>
using WeighChannels = void (*)(const std::vector<Reading<S, T>>&, Index, Index, Index, const T*, S*, Index, Index);
template <class S, class T, int kVectors, bool kPart, int... kCounts>
WeighChannels<S, T> weigh_channels_of(Index count, std::integer_sequence<int, kCounts...>) {
  static constexpr WeighChannels<S, T> blocks[] = {weigh_channels<S, T, kCounts + 1, kVectors, kPart>...};
  return blocks[count - 1];
}

// `count` outputs that read with the same taps; `readings` are those of the first, and move on.
template <class S, class T>
void weigh_run(std::vector<Reading<S, T>>& readings, Index channels, Index from_step, const T* start, S* to,
               Index to_step, Index count, Index ahead) {
  constexpr Index kL = kLanes<T>, kMost = kRows / 2;
  const Index blocks = divide_up(count, kMost);
  for (Index b = 0, p = 0; b < blocks; ++b) {
    const Index outputs = balanced(count, p, blocks - b);
    S* const out = to + p * to_step;
    const Index vectors = channels / kL, parts = divide_up(vectors, 4);
    constexpr auto counts = std::make_integer_sequence<int, kMost>();
    Index c = 0;
    for (Index part = 0; part < parts; ++part) {
      const Index width = balanced(vectors, c / kL, parts - part);
      const auto block = width == 4   ? weigh_channels_of<S, T, 4, false>(outputs, counts)
                         : width == 3 ? weigh_channels_of<S, T, 3, false>(outputs, counts)
                         : width == 2 ? weigh_channels_of<S, T, 2, false>(outputs, counts)
                                      : weigh_channels_of<S, T, 1, false>(outputs, counts);
      block(readings, c, 0, from_step, start, out, to_step, ahead);
      c += width * kL;
    }
    if (c < channels)
      weigh_channels_of<S, T, 1, true>(outputs, counts)(readings, c, channels - c, from_step, start, out, to_step,
                                                        ahead);
    p += outputs;
    for (Reading<S, T>& reading : readings) reading.from += outputs * from_step;
  }
}

// Where along dimension d a tap with this shift reads for output i: -1 outside of the input and between its elements.
inline Index reads_at(const Window& w, Index d, Index i, Index shift) {
  const Index u = i * w.stride[d] + w.origin[d] + shift;
  if (w.upsampling[d] == 1) return u < 0 || u >= w.in[d] ? -1 : u;  // divisions take longer than all the rest
  return u < 0 || u % w.upsampling[d] != 0 || u / w.upsampling[d] >= w.in[d] ? -1 : u / w.upsampling[d];
}

// Taps side by side in a row that is read: where their first reads for the first output, which may lie outside, and the
// weights of each. Each vector of the input then serves as many outputs as there are taps.
template <class S, class T>
struct TapRow {
  const S* from;
  Index begin;  // position in the row of the input
  Index taps;
  const T* weights;
};
constexpr int kOutputs = 7, kMostOfTwo = 7;  // taps of rows that are made two vectors wide

// Adds the taps of a row, kTaps of them, to kOutputs outputs, kVectors vectors wide. Positions of the input outside of
// [0, in) read nothing.
template <int kTaps, class S, class T, int kVectors, bool kPart>
inline __attribute__((always_inline)) void add_tap_row(Vector<T> (&sum)[kOutputs][kVectors], const S* from, Index step,
                                                       Index begin, Index in, const T* weights, Index pitch,
                                                       Index rest) {
  constexpr bool kByMask = kMasks && kTaps > 7;  // the more taps, the more jumps
  Vector<T> weight[kTaps][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kTaps; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) weight[i][v] = load(weights + i * pitch + v * kLanes<T>);
#pragma GCC unroll 32
  for (int u = 0; u < kOutputs + kTaps - 1; ++u) {
    const bool inside = static_cast<uint64_t>(begin + u) < static_cast<uint64_t>(in);
    if (kByMask || inside) {
      Vector<T> x[kVectors];
      const uint32_t lanes = -static_cast<uint32_t>(inside) & ((kPart ? 1u << rest : 1u << kLanes<T>)-1);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v)
        x[v] = in_register(kByMask ? load_lanes_as<T>(from + v * kLanes<T>, lanes)
                                   : load_as<T, kPart>(from + v * kLanes<T>, rest));
#pragma GCC unroll 16
      for (int p = 0; p < kOutputs; ++p)
        if (0 <= u - p && u - p < kTaps)
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) sum[p][v] += x[v] * weight[u - p][v];
    }
    from = step_on(from, step);
  }
}

template <class S, class T, int kVectors, bool kPart>
void weigh_tap_rows(const std::vector<TapRow<S, T>>& rows, Index first, Index count, Index c, Index rest, Index step,
                    Index in, Index pitch, const T* start, S* to, Index to_step, Index ahead) {
  Vector<T> sum[kOutputs][kVectors];
#pragma GCC unroll 8
  for (int p = 0; p < kOutputs; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[p][v] = load(start + c + v * kLanes<T>);
  const S* next = rows.empty() ? to : rows.back().from + first * step + c + ahead;
  for (int p = 0; p < kOutputs; ++p, next = step_on(next, step))
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) __builtin_prefetch(next + v * kLanes<T>, 0, 2);
  for (const TapRow<S, T>& row : rows) {
    // Of two vectors wide there are no more than fit the registers.
    with_odd_count<kVectors == 1 ? kMostTaps : kMostOfTwo>(row.taps, [&](auto taps) __attribute__((always_inline)) {
      add_tap_row<taps(), S, T, kVectors, kPart>(sum, row.from + first * step + c, step, row.begin + first, in,
                                                 row.weights + c, pitch, rest);
    });
  }
#pragma GCC unroll 8
  for (int p = 0; p < kOutputs; ++p)
    if (p < count)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) store_as<T, kPart>(to + c + p * to_step + v * kLanes<T>, sum[p][v], rest);
}

// Three taps in each of at most three rows are few enough for their weights to stay in registers while a row goes by.
// What is read at a position is the third tap of one output, the second of the next, and the first of the one after.
// That is little work, which waits for memory: what is written comes near ahead of time, too.
template <int kRead, class S, class T, int kVectors, bool kPart>
void weigh_three_taps(const std::vector<TapRow<S, T>>& rows, Index outputs, Index c, Index rest, Index step, Index in,
                      Index pitch, const T* start, S* to, Index to_step, Ahead ahead) {
  constexpr Index kL = kLanes<T>;
  const S* from[kRead];
  Vector<T> weight[kRead][3][kVectors], none[kVectors], first[kVectors], second[kVectors], third[kVectors];
  for (int r = 0; r < kRead; ++r) {
    from[r] = rows[r].from + c;
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) weight[r][i][v] = load(rows[r].weights + i * pitch + c + v * kL);
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) first[v] = second[v] = none[v] = load(start + c + v * kL);
  S* out = to + c - 2 * to_step;
  for (Index u = 0; u < outputs + 2; ++u, out += to_step) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      third[v] = second[v], second[v] = first[v], first[v] = none[v];
      __builtin_prefetch(from[kRead - 1] + v * kL + ahead.read, 0, 2);
      __builtin_prefetch(out + v * kL + ahead.written, 1, 2);
    }
    const bool inside = static_cast<uint64_t>(rows[0].begin + u) < static_cast<uint64_t>(in);
#pragma GCC unroll 3
    for (int r = 0; r < kRead; ++r) {
      if (inside) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          const Vector<T> x = in_register(load_as<T, kPart>(from[r] + v * kL, rest));
          third[v] += x * weight[r][2][v], second[v] += x * weight[r][1][v], first[v] += x * weight[r][0][v];
        }
      }
      from[r] += step;
    }
    if (u >= 2)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) store_as<T, kPart>(out + v * kL, third[v], rest);
  }
}

// One row of outputs whose taps lie side by side in the rows that they read. `rows` are those of the first output.
template <class S, class T>
void weigh_rows(const std::vector<TapRow<S, T>>& rows, Index outputs, Index channels, Index step, Index in, Index pitch,
                const T* start, S* to, Index to_step, Ahead ahead) {
  constexpr Index kL = kLanes<T>;
  Index widest = 0;
  bool three = !rows.empty() && rows.size() <= 3;
  for (const TapRow<S, T>& row : rows) {
    widest = std::max(widest, row.taps);
    three &= row.taps == 3 && row.begin == rows[0].begin;
  }
  if (three) {
    auto weigh = [&](auto vectors, auto part, Index c) {
      constexpr int kVectors = decltype(vectors)::value;
      constexpr bool kPart = decltype(part)::value;
      const auto all = rows.size() == 3   ? weigh_three_taps<3, S, T, kVectors, kPart>
                       : rows.size() == 2 ? weigh_three_taps<2, S, T, kVectors, kPart>
                                          : weigh_three_taps<1, S, T, kVectors, kPart>;
      all(rows, outputs, c, channels - c, step, in, pitch, start, to, to_step, ahead);
    };
    Index c = 0;
    using One = std::integral_constant<int, 1>;
    if (kRows > 6)
      for (; c + 2 * kL <= channels; c += 2 * kL) weigh(std::integral_constant<int, 2>(), std::false_type(), c);
    for (; c + kL <= channels; c += kL) weigh(One(), std::false_type(), c);
    if (c < channels) weigh(One(), std::true_type(), c);
    return;
  }
  const Index blocks = divide_up(outputs, kOutputs);
  for (Index b = 0, first = 0; b < blocks; ++b) {
    const Index count = balanced(outputs, first, blocks - b);
    S* const out = to + first * to_step;
    Index c = 0;
    if (kRows > 6 && widest <= kMostOfTwo)
      for (; c + 2 * kL <= channels; c += 2 * kL)
        weigh_tap_rows<S, T, 2, false>(rows, first, count, c, 0, step, in, pitch, start, out, to_step, ahead.read);
    for (; c + kL <= channels; c += kL)
      weigh_tap_rows<S, T, 1, false>(rows, first, count, c, 0, step, in, pitch, start, out, to_step, ahead.read);
    if (c < channels)
      weigh_tap_rows<S, T, 1, true>(rows, first, count, c, channels - c, step, in, pitch, start, out, to_step,
                                    ahead.read);
    first += count;
  }
}

// What a row of outputs reads, in memory that serves the next row, too.
template <class S, class T>
struct RowReadings {
  struct Tap {
    const S* from;  // the row of the input
    Index shift;
    const T* weights;
  };
  std::vector<Tap> taps;
  std::vector<TapRow<S, T>> rows;
  std::vector<Reading<S, T>> readings;
};

// One row of outputs of all channels, which lie side by side. In the last dimension of an upsampled input, outputs that
// are `upsampling` apart read with the same taps.
template <class S, class T>
void weigh_row(const Activation<S>& x, const Activation<S>& y, const TapWeights<T>& taps, const Window& w, Index image,
               Index a, Index b, RowReadings<S, T>& memory) {
  const S* image_from = x.data + image * x.image_stride;
  S* const row = y.data + image * y.image_stride + a * y.stride[0] + b * y.stride[1];
  auto& [in_row, rows, readings] = memory;
  in_row.clear();
  for (Index t = 0; t < taps.count(); ++t) {
    const Index i = reads_at(w, 0, a, taps.shifts[t][0]), j = reads_at(w, 1, b, taps.shifts[t][1]);
    if (i >= 0 && j >= 0)
      in_row.push_back({image_from + i * x.stride[0] + j * x.stride[1], taps.shifts[t][2], taps.of(t)});
  }
  if (w.stride[2] == 1 && w.upsampling[2] == 1 && w.dilation[2] == 1) {
    rows.clear();
    const S* last = nullptr;
    bool fit = true;
    for (const auto& tap : in_row) {
      const Index at = w.origin[2] + tap.shift;
      if (!rows.empty() && tap.from == last && at == rows.back().begin + rows.back().taps)
        ++rows.back().taps;
      else
        rows.push_back({tap.from + at * x.stride[2], at, 1, tap.weights});
      last = tap.from;
    }
    for (const TapRow<S, T>& r : rows) fit &= r.taps % 2 == 1 && r.taps <= kMostTaps;
    if (fit)
      return weigh_rows<S, T>(rows, w.out[2], x.channels, x.stride[2], w.in[2], taps.pitch, taps.start(), row,
                              y.stride[2], {x.stride[1], y.stride[1]});
  }
  const Index gap = w.upsampling[2];
  auto run = [&, &in_row = in_row, &readings = readings](Index begin, Index count) {
    readings.clear();
    for (const auto& tap : in_row) {
      const Index k = reads_at(w, 2, begin, tap.shift);
      if (k >= 0) readings.push_back({tap.from + k * x.stride[2], tap.weights});
    }
    weigh_run<S, T>(readings, x.channels, w.stride[2] * x.stride[2], taps.start(), row + begin * y.stride[2],
                    gap * y.stride[2], count, w.stride[1] * x.stride[1]);
  };
  const Index reach = 2 * w.half[2] * w.dilation[2];
  for (Index r = 0; r < std::min(gap, w.out[2]); ++r) {
    const Index count = divide_up(w.out[2] - r, gap);
    // Outputs whose taps are all inside.
    Index first = 0, last = count;
    while (first < count && (r + first * gap) * w.stride[2] + w.origin[2] < 0) ++first;
    while (last > first && (r + (last - 1) * gap) * w.stride[2] + w.origin[2] + reach > (w.in[2] - 1) * gap) --last;
    for (Index m = 0; m < first; ++m) run(r + m * gap, 1);
    if (first < last) run(r + first * gap, last - first);
    for (Index m = last; m < count; ++m) run(r + m * gap, 1);
  }
}

// y of a depthwise layer. S: type in memory. T: type of sums.
template <class S, class T>
void weigh_taps(const Call& call, const Window& w) {
  const Activation<S> x(call.source), y(*call.y);
  const RingWeight<S> weight(*call.weight, call.groups, call.transposed, w.rings);
  const TapWeights<T> taps(weight, call.bias, x.channels, w);
  if (x.channel_stride != 1 || y.channel_stride != 1) return weigh_planes<S, T>(x, y, taps, w);
  const Index rows = w.out[0] * w.out[1];
  at::parallel_for(0, x.images * rows, 1, [&](Index begin, Index end) {
    RowReadings<S, T> memory;
    for (Index i = begin; i < end; ++i)
      weigh_row<S, T>(x, y, taps, w, i / rows, i % rows / w.out[1], i % w.out[1], memory);
  });
}

}  // namespace sre_triton
