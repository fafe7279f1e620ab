// Ring sums of a tile, by the additions of its window.

#pragma once

#include <vector>

#include "additions.h"
#include "window.h"

namespace sre_triton {

// The additions that lead from what a tile reads of an image (buffer 0) to ring sums of a slab of it (rings, P,
// channels).
template <class T, class P>
class Adder {
 public:
  Adder(const Window& w, Index channels, const Tile& tile, const Tile& slab, const std::vector<T*>& buffers, P* sums)
      : w_(w), channels_(channels), tile_(tile), slab_(slab), buffers_(buffers), sums_(sums) {}

  void put(Index image, Additions<T, P>& additions) const {
    for (Index q = 0; q < slab_.size[w_.split]; ++q)
      for (const Node& node : w_.nodes) put(node, image, q, additions);
  }

  // Positions of a buffer of this level. All but the input hold one position of the split dimension.
  static Triple extent(const Window& w, const Triple& size, Index level) {
    Triple e;
    for (Index d = 0; d < 3; ++d) e[d] = level > d ? (d == w.split ? 1 : size[d]) : reads(w, d, size[d]);
    return e;
  }

 private:
  void put(const Node& node, Index image, Index q, Additions<T, P>& additions) const {
    const Index level = node.ring >= 0 ? 3 : w_.levels[node.out];
    const Triple size = extent(w_, tile_.size, level);
    for (Index i = 0; i < size[0]; ++i)
      for (Index j = 0; j < size[1]; ++j) {
        void* out;
        if (node.ring >= 0) {
          const Index a = w_.split == 0 ? q : i, b = w_.split == 1 ? q : j;
          const Index position = ((image * slab_.size[0] + a) * slab_.size[1] + b) * slab_.size[2];
          out = sums_ + (node.ring * slab_.positions() + position) * channels_;
        } else {
          out = buffers_[node.out] + (i * size[1] + j) * size[2] * channels_;
        }
        additions.begin(out, size[2] * channels_, node.weighed, node.ring >= 0);
        for (const Term& term : node.terms)
          additions.term(source(term, level, {i, j, 0}, q + slab_.start[w_.split] - tile_.start[w_.split]),
                         term.factor);
      }
  }

  // Where the first output of a row reads.
  const T* source(const Term& term, Index out_level, const Triple& at, Index q) const {
    const Index level = w_.levels[term.buffer];
    const Triple size = extent(w_, tile_.size, level);
    Index position = 0;
    for (Index d = 0; d < 3; ++d) {
      Index i = at[d];
      if (level <= d && out_level > d) {
        const Index shift = (term.tap[d] + w_.half[d]) * w_.dilation[d], step = w_.stride[d];
        i = d < 2 ? (d == w_.split ? q : i) * step + shift : shift % step * (size[d] / step) + shift / step;
      }
      position = position * size[d] + i;
    }
    return buffers_[term.buffer] + position * channels_;
  }

  const Window& w_;
  Index channels_;
  const Tile &tile_, &slab_;
  const std::vector<T*>& buffers_;
  P* sums_;
};

}  // namespace sre_triton
