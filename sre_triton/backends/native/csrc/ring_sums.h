// Ring sums of a tile, by the additions of its window.

#pragma once

#include <vector>

#include "additions.h"
#include "window.h"

namespace sre_triton {

// The additions that lead from what a tile reads of an image (buffer 0) to ring sums of a slab of it (rings, P,
// channels). All that divides is done once for all tiles of a size.
template <class T, class P>
class Adder {
 public:
  Adder(const Window& w, Index channels, const Triple& tile_size, const std::vector<T*>& buffers)
      : tile_size_(tile_size), split_(w.split), channels_(channels) {
    for (const Node& node : w.nodes) {
      const Index level = node.ring >= 0 ? 3 : w.levels[node.out];
      Sum sum{node.ring, node.ring >= 0 ? nullptr : buffers[node.out], extent(w, tile_size, level), {}, {}};
      for (const Term& term : node.terms) {
        sum.sources.push_back(source(w, term, level, buffers));
        if (node.weighed) sum.factors.push_back(static_cast<T>(term.factor));
      }
      sums_.push_back(std::move(sum));
    }
  }

  const Triple& tile_size() const { return tile_size_; }

  void put(Index image, const Tile& tile, const Tile& slab, P* ring_sums, Additions<T, P>& additions) const {
    const Index above = slab.start[split_] - tile.start[split_], ring_stride = slab.positions() * channels_;
    for (Index q = 0; q < slab.size[split_]; ++q)
      for (const Sum& sum : sums_) {
        const Index n = sum.size[2] * channels_;
        for (Index i = 0; i < sum.size[0]; ++i)
          for (Index j = 0; j < sum.size[1]; ++j) {
            void* out = sum.out + (i * sum.size[1] + j) * n;
            if (sum.ring >= 0) {
              const Index a = split_ == 0 ? q : i, b = split_ == 1 ? q : j;
              const Index position = ((image * slab.size[0] + a) * slab.size[1] + b) * slab.size[2];
              out = ring_sums + sum.ring * ring_stride + position * channels_;
            }
            const T** term = additions.sum(out, n, sum.sources.size(),
                                           sum.factors.empty() ? nullptr : sum.factors.data(), sum.ring >= 0);
            for (const Source& from : sum.sources)
              *term++ = from.first + i * from.step[0] + j * from.step[1] + (above + q) * from.split_step;
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
  // Where the first output of the first row reads, and elements from there to where those of the next row read.
  struct Source {
    const T* first;
    Index step[2], split_step;
  };
  struct Sum {
    Index ring;  // -1: none
    T* out;      // the buffer, if it is no ring
    Triple size;
    std::vector<Source> sources;
    std::vector<T> factors;  // none: all are 1
  };

  Source source(const Window& w, const Term& term, Index out_level, const std::vector<T*>& buffers) const {
    const Index level = w.levels[term.buffer];
    const Triple size = extent(w, tile_size_, level);
    Source source{buffers[term.buffer], {0, 0}, 0};
    Index pitch = channels_;
    for (Index d = 2; d >= 0; pitch *= size[d--]) {
      const bool is_summed_here = level <= d && out_level > d;
      const Index shift = is_summed_here ? (term.tap[d] + w.half[d]) * w.dilation[d] : 0, step = w.stride[d];
      if (d == 2) {
        source.first += (shift % step * (size[d] / step) + shift / step) * pitch;
      } else {
        source.first += shift * pitch;
        (is_summed_here && d == split_ ? source.split_step : source.step[d]) += (is_summed_here ? step : 1) * pitch;
      }
    }
    return source;
  }

  Triple tile_size_;
  Index split_, channels_;
  std::vector<Sum> sums_;
};

}  // namespace sre_triton
