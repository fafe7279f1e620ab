// Activations of any strides and types: what a tile reads and writes of them.

#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <type_traits>
#include <utility>

#include "conversions.h"
#include "vectors.h"
#include "window.h"

namespace sre_triton {

// An activation (N, C, *space) in memory.
template <class S>
struct Activation {
  S* data;
  Index images, channels, image_stride, channel_stride;
  Triple stride;

  explicit Activation(const Tensor& t) : data(static_cast<S*>(t.data_ptr())) {
    const Index lacking = 5 - t.dim();
    images = t.size(0);
    channels = t.size(1);
    image_stride = t.stride(0);
    channel_stride = t.stride(1);
    for (Index d = 0; d < 3; ++d) stride[d] = d < lacking ? 0 : t.stride(2 + d - lacking);
  }
};

// Exchanges every second block of kStep rows of a square of vectors with the columns that it is to become.
template <int kStep, class V, size_t... kLane>
inline void exchange(V* rows, std::index_sequence<kLane...>) {
  constexpr size_t kCount = sizeof...(kLane);
  for (size_t i = 0; i < kCount; ++i) {
    if (i & kStep) continue;
    const V a = rows[i], b = rows[i + kStep];
    rows[i] = __builtin_shufflevector(a, b, (kLane & kStep ? kCount + kLane - kStep : kLane)...);
    rows[i + kStep] = __builtin_shufflevector(a, b, (kLane & kStep ? kCount + kLane : kLane + kStep)...);
  }
  if constexpr (2 * kStep < kCount) exchange<2 * kStep>(rows, std::make_index_sequence<kCount>());
}

// How far ahead of what is read or written the next comes to be: what lies far from one another the processor does not
// see coming.
struct Ahead {
  Index read = 0, written = 0;  // elements; 0: not known
};

// row_of(c)[r] = from[r * from_pitch + c] for all rows r and columns c; T is the type in between.
template <class T, class RowOf, class From>
void transpose(RowOf row_of, const From* from, Index from_pitch, Index rows, Index columns, Ahead ahead = {}) {
  constexpr Index kSide = kLanes<T>, kWorthwhile = kSide * kSide / 4;
  for (Index r = 0; r < rows; r += kSide)
    for (Index c = 0; c < columns; c += kSide) {
      const From* source = from + r * from_pitch + c;
      const Index height = std::min(kSide, rows - r), width = std::min(kSide, columns - c);
      if (height * width < kWorthwhile) {
        for (Index i = 0; i < height; ++i)
          for (Index j = 0; j < width; ++j) copy_run(row_of(c + j) + r + i, source + i * from_pitch + j, 1);
        continue;
      }
      if (ahead.read)
        for (Index i = 0; i < height; ++i) __builtin_prefetch(source + i * from_pitch + ahead.read, 0, 2);
      if (ahead.written)
        for (Index j = 0; j < width; ++j) __builtin_prefetch(row_of(c + j) + r + ahead.written, 1, 2);
      Vector<T> square[kSide];
      for (Index i = 0; i < kSide; ++i)
        square[i] = i < height ? load_as<T>(source + i * from_pitch, width) : Vector<T>{};
      exchange<1>(square, std::make_index_sequence<kSide>());
      for (Index j = 0; j < width; ++j) store_as<T>(row_of(c + j) + r, square[j], height);
    }
}

// The same of kChannels channels, too few to be transposed in vectors: numbers that the compiler knows make loops of
// few instructions.
template <Index kChannels, Index kStep, class T, class S>
void copy_few(T* to, Index pitch, const S* from, Index step, Index count, Index channel_stride) {
  const Index by = kStep ? kStep : step;
  const S* rows[kChannels];
  for (Index c = 0; c < kChannels; ++c) rows[c] = from + c * channel_stride;
  if (pitch == kChannels) {
    for (Index i = 0; i < count; ++i)
#pragma GCC unroll 4
      for (Index c = 0; c < kChannels; ++c) to[i * kChannels + c] = cast_to<T>(rows[c][i * by]);
  } else {
    for (Index i = 0; i < count; ++i)
#pragma GCC unroll 4
      for (Index c = 0; c < kChannels; ++c) to[i * pitch + c] = cast_to<T>(rows[c][i * by]);
  }
}
template <Index kChannels, class T, class S>
void copy_few(T* to, Index pitch, const S* from, Index step, Index count, Index channel_stride) {
  if (channel_stride == 1 && step == 2 * kChannels)
    copy_few<kChannels, 2 * kChannels>(to, pitch, from, step, count, 1);
  else if (step == 1)
    copy_few<kChannels, 1>(to, pitch, from, step, count, channel_stride);
  else if (step == 2)
    copy_few<kChannels, 2>(to, pitch, from, step, count, channel_stride);
  else
    copy_few<kChannels, 0>(to, pitch, from, step, count, channel_stride);
}

// `count` positions of all channels, `step` elements apart, to rows `pitch` apart.
template <class T, class S>
void copy_positions(T* to, Index pitch, const S* from, Index step, Index count, Index channels, Index channel_stride,
                    Index ahead = 0) {
  if (channel_stride == 1 && step == channels && pitch == channels) return copy_run(to, from, count * channels);
  if (channels == 1) return copy_few<1>(to, pitch, from, step, count, channel_stride);
  if (channels == 2) return copy_few<2>(to, pitch, from, step, count, channel_stride);
  if (channels == 3) return copy_few<3>(to, pitch, from, step, count, channel_stride);
  if (channels == 4) return copy_few<4>(to, pitch, from, step, count, channel_stride);
  if (channel_stride == 1) {
    for (Index i = 0; i < count; ++i) {
      if (channels < 16)  // too few for a call of memcpy
        for (Index c = 0; c < channels; ++c) to[i * pitch + c] = cast_to<T>(from[i * step + c]);
      else
        copy_run(to + i * pitch, from + i * step, channels);
    }
  } else if (step == 1) {
    using Between = std::conditional_t<std::is_arithmetic_v<T>, T, float>;
    transpose<Between>([=](Index i) { return to + i * pitch; }, from, channel_stride, channels, count, {ahead, 0});
  } else {
    for (Index i = 0; i < count; ++i)
      for (Index c = 0; c < channels; ++c) to[i * pitch + c] = cast_to<T>(from[i * step + c * channel_stride]);
  }
}

// Whether what there is of a row that a tile reads lies side by side in memory as it does where it is copied to: one
// run of elements.
template <class S>
bool are_runs(const Activation<S>& x, const Window& w) {
  return w.stride[2] == 1 && w.upsampling[2] == 1 && x.channel_stride == 1 && x.stride[2] == x.channels;
}

// The rows that a tile reads of an image, zeros where the input has nothing.
template <class S>
class InputRows {
 public:
  InputRows(const Activation<S>& x, const Window& w, const Tile& tile, const S* zeros = nullptr)
      : x_(x), w_(w), zeros_(zeros) {
    for (Index d = 0; d < 3; ++d) {
      extent[d] = reads(w, d, tile.size[d]);
      begin_[d] = tile.start[d] * w.stride[d] + w.origin[d];
    }
    const Index gap = w.upsampling[2], end = begin_[2] + extent[2] - 1;
    first_ = begin_[2] <= 0 ? 0 : divide_up(begin_[2], gap);
    const Index last = end < 0 ? -1 : std::min(end / gap, w.in[2] - 1);
    lead_ = first_ * gap - begin_[2];
    count_ = last - first_ + 1;
  }

  // Where what there is of row (i, j) begins; null where there is nothing.
  const S* find(Index image, Index i, Index j) const {
    const Index u0 = begin_[0] + i, u1 = begin_[1] + j;
    if (count_ <= 0 || u0 < 0 || u1 < 0) return nullptr;
    if (u0 % w_.upsampling[0] != 0 || u1 % w_.upsampling[1] != 0) return nullptr;
    const Index a = u0 / w_.upsampling[0], b = u1 / w_.upsampling[1];
    if (a >= w_.in[0] || b >= w_.in[1]) return nullptr;
    return x_.data + image * x_.image_stride + a * x_.stride[0] + b * x_.stride[1] + first_ * x_.stride[2];
  }

  template <class T>
  void load(T* to, const S* row) const {
    const Index channels = x_.channels, gap = w_.upsampling[2], step = w_.stride[2];  // one of these is 1
    if (!row || (step == 1 && gap == 1)) {
      clear_around(to, row);
      if (row)
        copy_positions(to + lead(), channels, row, x_.stride[2], count_, channels, x_.channel_stride, x_.stride[1]);
    } else {
      std::fill_n(to, extent[2] * channels, T(0));
      for (Index phase = 0; phase < step; ++phase) {
        const Index skipped = ((phase - lead_) % step + step) % step;
        if (skipped >= count_) continue;
        T* place = to + (phase * (extent[2] / step) + (lead_ + skipped) / step) * channels;
        copy_positions(place, gap * channels, row + skipped * x_.stride[2], step * x_.stride[2],
                       divide_up(count_ - skipped, step), channels, x_.channel_stride);
      }
    }
  }

  // Elements of a row before those that there are, and how many these are, where rows are runs.
  Index lead() const { return lead_ * x_.channels; }
  Index run() const { return std::max<Index>(count_, 0) * x_.channels; }
  // Element `element` of row (i, j), which there is unless there is nothing of the row: zeros then.
  const S* at(Index image, Index i, Index j, Index element) const {
    const S* const row = find(image, i, j);
    return row ? row + element - lead() : zeros_;
  }
  template <class T>
  void clear_around(T* to, bool is_there) const {
    const bool any = is_there && count_ > 0;
    const Index lead = any ? lead_ : extent[2], end = any ? lead_ + count_ : extent[2];
    std::fill_n(to, lead * x_.channels, T(0));
    std::fill_n(to + end * x_.channels, (extent[2] - end) * x_.channels, T(0));
  }

  Triple extent;  // positions

 private:
  const Activation<S>& x_;
  const Window& w_;
  const S* zeros_;  // a whole row
  Triple begin_;
  Index first_, lead_, count_;  // the first position of the input in a row, where it goes, and how many there are
};

// What one image of a tile reads.
template <class T, class S>
void load_input(T* to, const Activation<S>& x, const Window& w, const Tile& tile, Index image) {
  const InputRows<S> rows(x, w, tile);
  for (Index i = 0; i < rows.extent[0]; ++i)
    for (Index j = 0; j < rows.extent[1]; ++j, to += rows.extent[2] * x.channels) rows.load(to, rows.find(image, i, j));
}

// The tile's positions of an activation, one row of `pitch` elements each.
template <class T, class S>
void load_positions(T* to, Index pitch, const Activation<S>& a, const Tile& tile) {
  for (Index n = tile.image; n < tile.image + tile.images; ++n)
    for (Index i = tile.start[0]; i < tile.start[0] + tile.size[0]; ++i)
      for (Index j = tile.start[1]; j < tile.start[1] + tile.size[1]; ++j) {
        const S* row = a.data + n * a.image_stride + i * a.stride[0] + j * a.stride[1] + tile.start[2] * a.stride[2];
        copy_positions(to, pitch, row, a.stride[2], tile.size[2], a.channels, a.channel_stride, a.stride[1]);
        to += tile.size[2] * pitch;
      }
}

// Where the run of positions that lie side by side and starts with `begin` ends.
inline Index run_end(const Index* offsets, Index begin, Index count) {
  Index end = begin + 1;
  while (end < count && offsets[end] == offsets[end - 1] + 1) ++end;
  return end;
}

// Rows of outputs, one per position of the tile from `first` on, to their places in y.
template <class T, class S>
void store_rows(const T* rows, Index pitch, const Activation<S>& y, const Index* offsets, Index count, Index channel,
                Index columns) {
  S* base = y.data + channel * y.channel_stride;
  if (y.channel_stride == 1) {
    for (Index r = 0; r < count; ++r) copy_run(base + offsets[r], rows + r * pitch, columns);
    return;
  }
  for (Index begin = 0, end; begin < count; begin = end) {
    end = run_end(offsets, begin, count);
    // The whole run of a vector of channels before the next channels: planes whose size is a power of two meet in the
    // same few lines of the cache.
    for (Index c = 0; c < columns; c += kLanes<T>) {
      S* run = base + offsets[begin] + c * y.channel_stride;
      transpose<T>([&](Index i) { return run + i * y.channel_stride; }, rows + begin * pitch + c, pitch, end - begin,
                   std::min<Index>(kLanes<T>, columns - c), {0, end - begin});
    }
  }
}

// The same the other way round.
template <class T, class S>
void load_rows(T* rows, Index pitch, const Activation<S>& a, const Index* offsets, Index count, Index channel,
               Index columns) {
  const S* base = a.data + channel * a.channel_stride;
  if (a.channel_stride == 1) {
    for (Index r = 0; r < count; ++r) copy_run(rows + r * pitch, base + offsets[r], columns);
    return;
  }
  for (Index begin = 0, end; begin < count; begin = end) {
    end = run_end(offsets, begin, count);
    transpose<T>([&](Index r) { return rows + (begin + r) * pitch; }, base + offsets[begin], a.channel_stride, columns,
                 end - begin);
  }
}

// Elements from y.data to each of the tile's positions.
template <class S>
void locate(Index* offsets, const Activation<S>& y, const Tile& tile) {
  const Index width = tile.size[2], step = y.stride[2];
  for (Index n = tile.image; n < tile.image + tile.images; ++n)
    for (Index i = tile.start[0]; i < tile.start[0] + tile.size[0]; ++i)
      for (Index j = tile.start[1]; j < tile.start[1] + tile.size[1]; ++j, offsets += width) {
        const Index row = n * y.image_stride + i * y.stride[0] + j * y.stride[1] + tile.start[2] * step;
        for (Index k = 0; k < width; ++k) offsets[k] = row + k * step;
      }
}

// Positions of a tile that lie as far apart as those of a row: one row, or all rows that follow upon one another.
template <class S>
Index even_run(const Activation<S>& y, const Tile& tile) {
  Index run = tile.size[2];
  for (Index d : {1, 0}) {
    if (tile.size[d] > 1 && y.stride[d] != run * y.stride[2]) return run;
    run *= tile.size[d];
  }
  return tile.images == 1 || y.image_stride == run * y.stride[2] ? run * tile.images : run;
}

}  // namespace sre_triton
