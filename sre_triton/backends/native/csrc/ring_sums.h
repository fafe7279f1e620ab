// Ring sums of a tile, by the additions of its window.

#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "activations.h"
#include "additions.h"
#include "window.h"

namespace sre_triton {

// Whether sums can read the input where it lies: its rows are runs, and what is read beside an output's own position,
// where there may be nothing, are partial sums.
template <class S>
bool is_summed_in_place(const Activation<S>& x, const Window& w) {
  const Index first = w.origin[2] + w.half[2] * w.dilation[2];  // of what outputs read at their own positions
  bool possible = are_runs(x, w);
  for (const Node& node : w.nodes)
    for (const Term& term : node.terms)
      if (term.buffer == 0 && (node.ring >= 0 || w.levels[node.out] == 3))
        possible &= term.tap[2] == 0 && first >= 0 && first + w.out[2] <= w.in[2];
  return possible;
}

// The additions that lead from what a tile reads of an image to ring sums of a slab of it (rings, P, channels). All
// that divides is done once for all tiles of a size. Buffer 0 holds a copy of what is read; if it is null, sums are
// made in place.
template <class T, class P>
class Adder {
 public:
  Adder(const Window& w, Index channels, const Triple& tile_size, const std::vector<T*>& buffers)
      : tile_size_(tile_size), split_(w.split), channels_(channels), in_place_(!buffers[0]) {
    for (const Node& node : w.nodes) {
      const Index level = node.ring >= 0 ? 3 : w.levels[node.out];
      Sum sum{node.ring, level, node.ring >= 0 ? nullptr : buffers[node.out], extent(w, tile_size, level)};
      for (const Term& term : node.terms) {
        sum.sources.push_back(source(w, term, level, buffers));
        if (node.weighed) sum.factors.push_back(static_cast<T>(term.factor));
      }
      sums_.push_back(std::move(sum));
    }
  }

  const Triple& tile_size() const { return tile_size_; }

  // Zeros where sums that are made in place stay without any term.
  template <class S>
  void clear_around(const InputRows<S>& rows) const {
    for (const Sum& sum : sums_)
      if (sum.level < 3)
        for (Index row = 0; row < sum.size[0] * sum.size[1]; ++row)
          rows.clear_around(sum.out + row * sum.size[2] * channels_, true);
  }

  template <class S>
  void put(Index image, const Tile& tile, const Tile& slab, P* ring_sums, Additions<T, P>& additions,
           const InputRows<S>& rows) const {
    const Index above = slab.start[split_] - tile.start[split_], ring_stride = slab.positions() * channels_;
    for (Index q = 0; q < slab.size[split_]; ++q)
      for (const Sum& sum : sums_) {
        const Index row_size = sum.size[2] * channels_;
        const bool in_part = in_place_ && sum.level < 3;
        const Index skipped = in_part ? rows.lead() : 0, n = in_part ? rows.run() : row_size;
        for (Index i = 0; i < sum.size[0]; ++i)
          for (Index j = 0; j < sum.size[1]; ++j) {
            void* out = sum.out + (i * sum.size[1] + j) * row_size + skipped;
            if (sum.ring >= 0) {
              const Index a = split_ == 0 ? q : i, b = split_ == 1 ? q : j;
              const Index position = ((image * slab.size[0] + a) * slab.size[1] + b) * slab.size[2];
              out = ring_sums + sum.ring * ring_stride + position * channels_;
            }
            const T** term = additions.sum(out, n, sum.sources.size(),
                                           sum.factors.empty() ? nullptr : sum.factors.data(), sum.ring >= 0);
            for (const Source& from : sum.sources) {
              Index at[2] = {from.row[0] + i * from.step[0], from.row[1] + j * from.step[1]};
              at[split_] += (above + q) * from.split_step;
              if (from.buffer)
                *term++ = from.buffer + at[0] + at[1] + skipped;
              else if constexpr (std::is_same_v<S, T>)
                *term++ = rows.at(tile.image + image, at[0], at[1], in_part ? skipped : from.shift);
            }
          }
      }
  }

  // Positions of a buffer of this level. All but the input hold one position of the split dimension.
  static Triple extent(const Window& w, const Triple& size, Index level) {
    Triple e;
    for (Index d = 0; d < 3; ++d) e[d] = level > d ? (d == w.split ? 1 : size[d]) : reads(w, d, size[d]);
    return e;
  }

 private:
  // Where the first output of the first row reads, and how far from there those of the next row do: in elements of a
  // buffer, or in place in rows of the input, of which it reads from element `shift` on.
  struct Source {
    const T* buffer;  // null: none
    Index row[2], step[2], split_step, shift;
  };
  struct Sum {
    Index ring;  // -1: none
    Index level;
    T* out;  // the buffer, if it is no ring
    Triple size;
    std::vector<Source> sources;
    std::vector<T> factors;  // none: all are 1
  };

  Source source(const Window& w, const Term& term, Index out_level, const std::vector<T*>& buffers) const {
    const Index level = w.levels[term.buffer];
    const Triple size = extent(w, tile_size_, level);
    Source source{buffers[term.buffer], {0, 0}, {0, 0}, 0, 0};
    Index pitch = channels_;
    for (Index d = 2; d >= 0; pitch *= size[d--]) {
      const bool is_summed_here = level <= d && out_level > d;
      const Index shift = is_summed_here ? (term.tap[d] + w.half[d]) * w.dilation[d] : 0, step = w.stride[d];
      if (d == 2) {
        source.shift = (shift % step * (size[d] / step) + shift / step) * pitch;
        if (source.buffer) source.buffer += source.shift;
      } else {
        const Index unit = source.buffer ? pitch : 1;
        source.row[d] = shift * unit;
        (is_summed_here && d == split_ ? source.split_step : source.step[d]) = (is_summed_here ? step : 1) * unit;
      }
    }
    return source;
  }

  Triple tile_size_;
  Index split_, channels_;
  bool in_place_;
  std::vector<Sum> sums_;
};

}  // namespace sre_triton
