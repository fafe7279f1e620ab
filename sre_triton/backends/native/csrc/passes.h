// What ring sums are multiplied with: weights, which makes outputs, and activations, which makes weight gradients.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "activations.h"
#include "additions.h"
#include "products.h"
#include "ring_weights.h"
#include "window.h"

namespace sre_triton {

// What is done with outputs before they are stored.
struct Epilogue {
  const std::optional<Tensor>& residual;  // added; like the outputs, strides included
  std::optional<double> slope;            // what negative ones are multiplied with then
};

// out = activation(out + more) where there are such: what is negative is multiplied by slope.
template <class T>
void finish(T* out, const T* more, Index n, const std::optional<double>& slope) {
  if (more)
    for (Index i = 0; i < n; ++i) out[i] += more[i];
  if (!slope) return;
  const T factor = *slope;
  if (factor == 0)  // no product, so that -inf becomes 0
    for (Index i = 0; i < n; ++i) out[i] = out[i] < 0 ? T(0) : out[i];
  else
    for (Index i = 0; i < n; ++i) out[i] = out[i] < 0 ? out[i] * factor : out[i];
}

// S: type in memory. T: type of products. F: type of factors, T or pairs of something narrower.
template <class S, class T, class F>
class Mixer {
 public:
  using Factor = FactorOf<T, F>;

  Mixer(const Tensor& y, const RingWeight<S>& weight, const std::optional<Tensor>& bias, Groups groups,
        const Epilogue& epilogue)
      : y_(y),
        slope_(epilogue.slope),
        groups_(groups),
        rings_(weight.rings.size()),
        panels_{groups.depthwise() ? y_.channels : groups.outputs} {
    packed_ = groups.depthwise() ? pack_depthwise<T>(weight, y_.channels, panels_.padded())
                                 : pack<T, F>(weight, groups, panels_);
    if (epilogue.residual) residual_.emplace(*epilogue.residual);
    starts_.assign(groups.products() * panels_.padded() + kPanelVectors * kLanes<T>, T(0));
    if (!bias) return;
    const S* source = static_cast<const S*>(bias->const_data_ptr());
    for (Index o = 0; o < y_.channels; ++o)
      starts_[o / panels_.columns * panels_.padded() + o % panels_.columns] = cast_to<T>(source[o]);
  }

  // Elements of scratch memory for this many positions.
  Index products(Index positions) const { return (residual_ ? 2 : 1) * panel(std::min(positions, kAtOnce)); }

  // The outputs of a tile from its ring sums (rings, positions, channels). Additions for the next one are done on the
  // way.
  void write(const Tile& tile, const Factor* sums, Index channels, T* products, Index* offsets,
             Additions<T, Factor>& additions) const {
    locate(offsets, y_, tile);
    const Index positions = tile.positions(), ring_stride = positions * channels, run = even_run(y_, tile);
    additions.pace(groups_.products() * panels_.count() * divide_up(positions, kRows) * rings_ * groups_.inputs /
                   kPair);
    // Groups of few channels fill a vector together, one next to the other: what one computes too much, the next
    // overwrites.
    const Index most_groups = std::max<Index>(1, panels_.count() == 1 ? kLanes<T> / panels_.columns : 1);
    for (Index g = 0; g < groups_.products(); g += most_groups) {
      const Factor* group = sums + g * groups_.inputs;
      const Index together = std::min(most_groups, groups_.products() - g);
      for (Index panel = 0; panel < panels_.count(); ++panel) {
        const Index first = panels_.start(panel), width = panels_.vectors(panel) * kLanes<T>;
        const Index channel = g * panels_.columns + first, own = std::min(width, panels_.columns - first);
        const Index columns = together * own, pitch = together > 1 ? kPanelVectors * kLanes<T> : width;
        if constexpr (std::is_same_v<S, T>) {
          // Whole vectors go where they belong, unless that cuts the products into small pieces.
          if (y_.channel_stride == 1 && own == width && run >= kRows) {
            for (Index begin = 0; begin < positions; begin += run) {
              T* out = y_.data + offsets[begin] + channel;
              mix(group + begin * channels, channels, ring_stride, run, g, panel, out, y_.stride[2], additions);
              if (!residual_ && !slope_) continue;
              const T* more = residual_ ? residual_->data + offsets[begin] + channel : nullptr;
              for (Index p = 0; p < run; ++p)
                finish(out + p * y_.stride[2], more ? more + p * y_.stride[2] : nullptr, width, slope_);
            }
            continue;
          }
        }
        for (Index p = 0; p < positions; p += kAtOnce) {
          const Index count = std::min(kAtOnce, positions - p);
          for (Index i = 0; i < together; ++i)
            mix(group + i * groups_.inputs + p * channels, channels, ring_stride, count, g + i, panel,
                products + i * own, pitch, additions);
          T* more = residual_ ? products + this->panel(count) : nullptr;
          if (more) load_rows(more, pitch, *residual_, offsets + p, count, channel, columns);
          if (more || slope_)
            for (Index i = 0; i < count; ++i)
              finish(products + i * pitch, more ? more + i * pitch : nullptr, columns, slope_);
          store_rows(products, pitch, y_, offsets + p, count, channel, columns);
        }
      }
    }
  }

 private:
  static constexpr Index kPair = sizeof(F) / sizeof(Factor);
  // Positions that are kept in the first-level cache until they are stored: whole blocks, and whole vectors of them.
  static constexpr Index kAtOnce = 8 * kRows;
  static Index panel(Index positions) { return positions * kPanelVectors * kLanes<T>; }

  // One panel of one group, for some positions.
  void mix(const Factor* sums, Index channels, Index ring_stride, Index positions, Index g, Index panel, T* out,
           Index out_pitch, Additions<T, Factor>& additions) const {
    const Index first = panels_.start(panel), vectors = panels_.vectors(panel);
    const T* start = starts_.data() + g * panels_.padded() + first;
    if (groups_.depthwise()) {
      if constexpr (std::is_same_v<T, F>)
        mix_depthwise(sums + first, channels, ring_stride, rings_, positions, packed_ + first, panels_.padded(), start,
                      vectors * kLanes<T>, out, out_pitch);
      return;
    }
    const Index depth = groups_.inputs / kPair;
    const T* weights = packed_ + (g * panels_.padded() + first) * rings_ * depth;
    const Index blocks = divide_up(positions, kRows);
    for (Index b = 0, p = 0; b < blocks; ++b) {
      const Index height = balanced(positions, p, blocks - b);
      const auto block = vectors == 1 ? mix_block_of<T, F, Additions<T, Factor>, 1>(height, Heights())
                                      : mix_block_of<T, F, Additions<T, Factor>, 2>(height, Heights());
      block(reinterpret_cast<const F*>(sums + p * channels), channels / kPair, ring_stride / kPair, rings_, depth,
            weights, start, 0, out + p * out_pitch, out_pitch, additions);
      p += height;
    }
  }

  Activation<S> y_;
  std::optional<Activation<S>> residual_;
  std::optional<double> slope_;
  Groups groups_;
  Index rings_;
  Panels<T> panels_;
  T* packed_;
  std::vector<T> starts_;
};

template <class S, class T, class F>
class Gradient {
 public:
  using Factor = FactorOf<T, F>;

  Gradient(const Tensor& thin, Index rings, Groups groups)
      : thin_(thin),
        groups_(groups),
        rings_(rings),
        channels_(groups.count * groups.inputs),
        pitch_(round_up(groups.outputs, kLanes<T>)),
        size_(rings * channels_ * pitch_),
        started_(at::get_num_threads()) {
    totals_memory.reset(Scratch::size<T>(started_.size() * size_));
    totals_ = totals_memory.take<T>(started_.size() * size_);
  }

  // What a tile of this many positions needs to be multiplied.
  struct Rows {
    Factor* thin;           // (positions, thin_pitch)
    T *thin_pairs, *pairs;  // positions in pairs: of all that, and of one ring's sums
  };
  size_t bytes(Index positions) const {
    return Scratch::size<Factor>(positions * thin_pitch()) + Scratch::size<T>(pairs(positions) * thin_pitch()) +
           Scratch::size<T>(pairs(positions) * channels_);
  }
  Rows take(Scratch& memory, Index positions) const {
    return {memory.take<Factor>(positions * thin_pitch()), memory.take<T>(pairs(positions) * thin_pitch()),
            memory.take<T>(pairs(positions) * channels_)};
  }

  // Adds what a tile contributes, from its ring sums (rings, positions, channels).
  void add(const Tile& tile, const Factor* sums, const Rows& rows) {
    load_positions(rows.thin, thin_pitch(), thin_, tile);
    const Index positions = tile.positions();
    char& started = started_[at::get_thread_num()];
    T* part = totals_ + at::get_thread_num() * size_;
    if constexpr (kPairs) pair_positions(rows.thin_pairs, rows.thin, positions, thin_pitch());
    for (Index ring = 0; ring < rings_; ++ring, sums += positions * channels_, part += channels_ * pitch_) {
      if constexpr (kPairs) {
        pair_positions(rows.pairs, sums, positions, channels_);
        add_ring(reinterpret_cast<const F*>(rows.pairs), rows.thin_pairs, pairs(positions), started, part);
      } else if (groups_.depthwise()) {
        if (!started) std::fill_n(part, channels_ * pitch_, T(0));
        add_depthwise(sums, channels_, rows.thin, thin_pitch(), positions, part, pitch_);
      } else {
        add_ring(sums, rows.thin, positions, started, part);
      }
    }
    started = true;
  }

  // After all tiles. Threads are added up in the order of their numbers, so that every run gives the same bits.
  void finish(const RingWeight<S>& grad) {
    std::vector<const T*> parts;
    for (size_t t = 0; t < started_.size(); ++t)
      if (started_[t]) parts.push_back(totals_ + t * size_);
    T* const total = const_cast<T*>(parts[0]);
    if (parts.size() > 1)
      at::parallel_for(0, size_, 1 << 15, [&](Index begin, Index end) {
        for (size_t t = 1; t < parts.size(); ++t)
          for (Index i = begin; i < end; ++i) total[i] += parts[t][i];
      });
    unpack(total, pitch_, grad, groups_);
    totals_memory.shrink();
  }

 private:
  static constexpr bool kPairs = !std::is_same_v<T, F>;
  static Index pairs(Index positions) { return kPairs ? divide_up(positions, 2) : 0; }
  Index thin_pitch() const { return round_up(thin_.channels, kLanes<T>); }

  // One ring's sums (steps, channels) and what they are multiplied with (steps, thin_pitch).
  void add_ring(const F* sums, const T* thin, Index steps, bool started, T* part) const {
    for (Index g = 0; g < groups_.count; ++g)
      add_outer(sums + g * groups_.inputs, channels_, groups_.inputs, thin + g * groups_.outputs, thin_pitch(),
                groups_.outputs, steps, started, part + g * groups_.inputs * pitch_, pitch_);
  }

  Activation<S> thin_;
  Groups groups_;
  Index rings_, channels_, pitch_, size_;
  std::vector<char> started_;  // by thread
  T* totals_;                  // (threads, rings, channels, pitch)
};

}  // namespace sre_triton
