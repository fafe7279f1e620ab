// Depthwise layers: every output is one weighed sum over taps. There are no channels to mix, so ring sums would save
// nothing: a weighed addition costs a processor no more than a plain one.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "activations.h"
#include "arguments.h"
#include "memory.h"
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
        for (Index d = 0; d < 3; ++d) shift[d] = (parts[i].tap[d] + w.half[d]) * w.dilation[d];
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

// A tap that reads something, for some outputs: where the first of them reads, and the tap's weights.
template <class S, class T>
struct Reading {
  const S* from;
  const T* weights;
};

// Of a sum of pointer and steps a compiler would work out every value ahead, and run out of registers for them.
template <class T>
inline const T* step_on(const T* at, Index step) {
  at += step;
  asm("" : "+r"(at));
  return at;
}

template <class T, class S>
inline Vector<T> load_as(const S* from) {
  if constexpr (std::is_same_v<S, T>) {
    return load(from);
  } else {
    alignas(kVectorBytes) T wide[kLanes<T>];
    copy_run(wide, from, kLanes<T>);
    return load(wide);
  }
}

template <class T, class S>
inline void store_as(S* to, Vector<T> v) {
  if constexpr (std::is_same_v<S, T>) {
    store(to, v);
  } else {
    alignas(kVectorBytes) T wide[kLanes<T>];
    store(wide, v);
    copy_run(to, wide, kLanes<T>);
  }
}

// Channels side by side: kCount outputs, kVectors vectors of their channels from `c` on.
template <class S, class T, int kCount, int kVectors>
void weigh_channels(const std::vector<Reading<S, T>>& readings, Index c, Index from_step, const T* start, S* to,
                    Index to_step) {
  constexpr Index kL = kLanes<T>;
  Vector<T> sum[kCount][kVectors];
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
      for (int v = 0; v < kVectors; ++v) sum[p][v] += load_as<T>(from + v * kL) * weight[v];
      from = step_on(from, from_step);
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kCount; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store_as<T>(to + c + p * to_step + v * kL, sum[p][v]);
}

template <class S, class T>
using WeighChannels = void (*)(const std::vector<Reading<S, T>>&, Index, Index, const T*, S*, Index);
template <class S, class T, int kVectors, int... kCounts>
WeighChannels<S, T> weigh_channels_of(Index count, std::integer_sequence<int, kCounts...>) {
  static constexpr WeighChannels<S, T> blocks[] = {weigh_channels<S, T, kCounts + 1, kVectors>...};
  return blocks[count - 1];
}

// `count` outputs that read with the same taps; `readings` are those of the first, and move on.
template <class S, class T>
void weigh_run(std::vector<Reading<S, T>>& readings, Index channels, Index from_step, const T* start, S* to,
               Index to_step, Index count) {
  constexpr Index kL = kLanes<T>, kMost = kRows / 2;
  const Index blocks = divide_up(count, kMost);
  for (Index b = 0, p = 0; b < blocks; ++b) {
    const Index outputs = balanced(count, p, blocks - b);
    S* const out = to + p * to_step;
    const Index vectors = channels / kL, parts = divide_up(vectors, 4);
    Index c = 0;
    for (Index part = 0; part < parts; ++part) {
      const Index width = balanced(vectors, c / kL, parts - part);
      constexpr auto counts = std::make_integer_sequence<int, kMost>();
      const auto block = width == 4   ? weigh_channels_of<S, T, 4>(outputs, counts)
                         : width == 3 ? weigh_channels_of<S, T, 3>(outputs, counts)
                         : width == 2 ? weigh_channels_of<S, T, 2>(outputs, counts)
                                      : weigh_channels_of<S, T, 1>(outputs, counts);
      block(readings, c, from_step, start, out, to_step);
      c += width * kL;
    }
    for (; c < channels; ++c)
      for (Index i = 0; i < outputs; ++i) {
        T sum = start[c];
        for (const Reading<S, T>& reading : readings)
          sum += cast_to<T>(reading.from[i * from_step + c]) * reading.weights[c];
        out[i * to_step + c] = cast_to<S>(sum);
      }
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

// One row of outputs of all channels, which lie side by side. In the last dimension of an upsampled input, outputs that
// are `upsampling` apart read with the same taps.
template <class S, class T>
void weigh_row(const Activation<S>& x, const Activation<S>& y, const TapWeights<T>& taps, const Window& w, Index image,
               Index a, Index b) {
  const S* image_from = x.data + image * x.image_stride;
  S* const row = y.data + image * y.image_stride + a * y.stride[0] + b * y.stride[1];
  struct InRow {
    const S* from;
    Index shift;
    const T* weights;
  };
  std::vector<InRow> in_row;
  for (Index t = 0; t < taps.count(); ++t) {
    const Index i = reads_at(w, 0, a, taps.shifts[t][0]), j = reads_at(w, 1, b, taps.shifts[t][1]);
    if (i >= 0 && j >= 0)
      in_row.push_back({image_from + i * x.stride[0] + j * x.stride[1], taps.shifts[t][2], taps.of(t)});
  }
  const Index gap = w.upsampling[2];
  std::vector<Reading<S, T>> readings;
  auto run = [&](Index begin, Index count) {
    readings.clear();
    for (const InRow& tap : in_row) {
      const Index k = reads_at(w, 2, begin, tap.shift);
      if (k >= 0) readings.push_back({tap.from + k * x.stride[2], tap.weights});
    }
    weigh_run<S, T>(readings, x.channels, w.stride[2] * x.stride[2], taps.start(), row + begin * y.stride[2],
                    gap * y.stride[2], count);
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

// Taps one above the other, next to one another: each vector of the input serves as many outputs as there are.
template <class T>
struct Column {
  Index from, height;  // of the first tap, in the padded tile
  Index first;         // number of its tap
};

// Adds the taps of a column, kHeight of them, to kRowsOfSums rows of sums, kVectors vectors wide.
constexpr int kRowsOfSums = 4, kHighest = 11;
template <class T, int kHeight, int kVectors>
inline __attribute__((always_inline)) void add_column(Vector<T> (&sum)[kRowsOfSums][kVectors], const T* from,
                                                      Index pitch, const T* weights) {
  Vector<T> weight[kHeight];
#pragma GCC unroll 16
  for (int i = 0; i < kHeight; ++i) {
    weight[i] = Vector<T>{} + weights[i];
#if defined(__AVX512F__)
    asm("" : "+v"(weight[i]));  // or every product would read its weight again
#endif
  }
#pragma GCC unroll 16
  for (int u = 0; u < kRowsOfSums + kHeight - 1; ++u) {
    Vector<T> row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = load(from + v * kLanes<T>);
    from = step_on(from, pitch);
#pragma GCC unroll 4
    for (int r = 0; r < kRowsOfSums; ++r)
      if (0 <= u - r && u - r < kHeight)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[r][v] += row[v] * weight[u - r];
  }
}

template <class T, int kVectors>
void weigh_block(const T* from, Index pitch, const std::vector<Column<T>>& columns, const T* weights, T start, T* to,
                 Index to_pitch) {
  Vector<T> sum[kRowsOfSums][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRowsOfSums; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = Vector<T>{} + start;
  for (const Column<T>& column : columns) {
    const T *source = from + column.from, *weight = weights + column.first;
    switch (column.height) {
      case 1:
        add_column<T, 1>(sum, source, pitch, weight);
        break;
      case 3:
        add_column<T, 3>(sum, source, pitch, weight);
        break;
      case 5:
        add_column<T, 5>(sum, source, pitch, weight);
        break;
      case 7:
        add_column<T, 7>(sum, source, pitch, weight);
        break;
      case 9:
        add_column<T, 9>(sum, source, pitch, weight);
        break;
      case 11:
        add_column<T, 11>(sum, source, pitch, weight);
        break;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRowsOfSums; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(to + r * to_pitch + v * kLanes<T>, sum[r][v]);
}

// Taps by column; where those of a column do not lie next to one another, one by one.
template <class T>
std::vector<Column<T>> columns_of(const TapWeights<T>& taps, const Window& w, const Triple& read,
                                  std::vector<Index>& order) {
  order.resize(taps.count());
  for (Index t = 0; t < taps.count(); ++t) order[t] = t;
  auto key = [&](Index t) {
    const Triple& shift = taps.shifts[t];
    return Triple{shift[0], shift[2], shift[1]};
  };
  std::sort(order.begin(), order.end(), [&](Index a, Index b) { return key(a) < key(b); });
  std::vector<Column<T>> columns;
  const bool together = w.stride[1] == 1;
  for (Index begin = 0, end; begin < taps.count(); begin = end) {
    const Triple first = key(order[begin]);
    for (end = begin + 1; end < taps.count(); ++end)
      if (key(order[end]) != Triple{first[0], first[1], first[2] + end - begin}) break;
    const Index step = w.stride[2], count = end - begin;
    const Index from = (first[0] * read[1] + first[2]) * read[2] + first[1] % step * (read[2] / step) + first[1] / step;
    if (together && count % 2 == 1 && count <= kHighest) {
      columns.push_back({from, count, begin});
    } else {
      for (Index i = 0; i < count; ++i) columns.push_back({from + i * read[2], 1, begin + i});
    }
  }
  return columns;
}

// What a tile of a plane reads. Where neither strides nor gaps are in the way only what lies inside is written: what
// lies beside it in the rows of a plane is zero once and for all.
template <class S, class T>
void load_plane(T* to, const Activation<S>& x, const Window& w, const Tile& tile, Index image) {
  if (w.upsampling != Triple{1, 1, 1} || w.stride[2] != 1 || x.stride[2] != 1) return load_input(to, x, w, tile, image);
  const Triple read{reads(w, 0, tile.size[0]), reads(w, 1, tile.size[1]), reads(w, 2, tile.size[2])};
  const Index lead = std::max<Index>(0, -w.origin[2]), skipped = std::max<Index>(0, w.origin[2]);
  const Index count = std::min(read[2] - lead, w.in[2] - skipped);
  const S* image_from = x.data + image * x.image_stride + skipped;
  for (Index i = 0; i < read[0]; ++i)
    for (Index j = 0; j < read[1]; ++j, to += read[2]) {
      const Index a = tile.start[0] * w.stride[0] + w.origin[0] + i, b = tile.start[1] * w.stride[1] + w.origin[1] + j;
      if (a < 0 || a >= w.in[0] || b < 0 || b >= w.in[1] || count <= 0)
        std::fill_n(to, read[2], T(0));
      else
        copy_row(to + lead, image_from + a * x.stride[0] + b * x.stride[1], count);
    }
}

template <class S, class T>
void weigh_planes(const Activation<S>& x, const Activation<S>& y, const TapWeights<T>& taps, const Window& w) {
  constexpr Index kL = kLanes<T>;
  const Tiling tiling = cut_planes(w, x.images * x.channels);
  const Triple most{reads(w, 0, tiling.size[0]), reads(w, 1, tiling.size[1]), reads(w, 2, tiling.size[2])};
  const Index pitch = most[2], width = round_up(tiling.size[2], kL);
  // Blocks may begin in the last row and read what nobody asked for.
  const Index padded_size = (most[0] * most[1] + kRowsOfSums * w.stride[1]) * pitch + 4 * kL;
  Activation<S> plane = x;
  plane.channels = plane.channel_stride = 1;

  at::parallel_for(0, tiling.count(), 1, [&](Index begin, Index end) {
    scratch.reset(Scratch::size<T>(padded_size) + Scratch::size<T>(kRowsOfSums * width) +
                  Scratch::size<T>(taps.count()));
    T *padded = scratch.take<T>(padded_size), *rows = scratch.take<T>(kRowsOfSums * width);
    T* weights = scratch.take<T>(taps.count());
    std::fill_n(padded, padded_size, T(0));
    std::vector<Column<T>> columns;
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

// y of a depthwise layer. S: type in memory. T: type of sums.
template <class S, class T>
void weigh_taps(const Call& call, const Window& w) {
  const Activation<S> x(call.source), y(*call.y);
  const RingWeight<S> weight(*call.weight, call.groups, call.transposed, w.rings);
  const TapWeights<T> taps(weight, call.bias, x.channels, w);
  if (x.channel_stride != 1 || y.channel_stride != 1) return weigh_planes<S, T>(x, y, taps, w);
  const Index rows = w.out[0] * w.out[1];
  at::parallel_for(0, x.images * rows, 1, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) weigh_row<S, T>(x, y, taps, w, i / rows, i % rows / w.out[1], i % w.out[1]);
  });
}

}  // namespace sre_triton
