// Ring sums of a tile, by the additions of its window.

#pragma once

#include <utility>
#include <vector>

#include "activations.h"
#include "window.h"

namespace sre_triton {

// out[i] = sum of factor * term[i]; the type of ring sums may be narrower than that of additions.
template <bool kWeighed, class T, class Out>
void add_run(Out* out, const T* const* terms, const T* factors, Index count, Index n) {
  constexpr int kLanesT = kLanes<T>, kUnroll = 4;
  Index i = 0;
  for (; i + kUnroll * kLanesT <= n; i += kUnroll * kLanesT) {
    Vector<T> sum[kUnroll];
    for (int u = 0; u < kUnroll; ++u) {
      sum[u] = load(terms[0] + i + u * kLanesT);
      if (kWeighed) sum[u] *= factors[0];
    }
    for (Index t = 1; t < count; ++t) {
      const T* term = terms[t] + i;
      for (int u = 0; u < kUnroll; ++u)
        sum[u] += kWeighed ? load(term + u * kLanesT) * factors[t] : load(term + u * kLanesT);
    }
    if constexpr (std::is_same_v<T, Out>) {
      for (int u = 0; u < kUnroll; ++u) store(out + i + u * kLanesT, sum[u]);
    } else {
      alignas(kVectorBytes) T block[kUnroll * kLanesT];
      for (int u = 0; u < kUnroll; ++u) store(block + u * kLanesT, sum[u]);
      copy_run(out + i, block, kUnroll * kLanesT);
    }
  }
  for (; i < n; ++i) {
    T sum = kWeighed ? terms[0][i] * factors[0] : terms[0][i];
    for (Index t = 1; t < count; ++t) sum += kWeighed ? terms[t][i] * factors[t] : terms[t][i];
    out[i] = cast_to<Out>(sum);
  }
}

// Ring sums of one image of a tile, from what it reads (buffer 0), to `sums` (rings, P, channels).
template <class T, class P>
class Adder {
 public:
  Adder(const Window& w, Index channels, const Tile& tile, std::vector<T*> buffers, P* sums, Index ring_stride)
      : w_(w), channels_(channels), tile_(tile), buffers_(std::move(buffers)), sums_(sums), ring_stride_(ring_stride) {
    for (const Node& node : w.nodes) {
      pointers_.resize(std::max(pointers_.size(), node.terms.size()));
      factors_.resize(pointers_.size());
    }
  }

  void add(Index image) {
    for (Index q = 0; q < tile_.size[w_.split]; ++q)
      for (const Node& node : w_.nodes) node.weighed ? run<true>(node, image, q) : run<false>(node, image, q);
  }

  // Positions of a buffer of this level. All but the input hold one position of the split dimension.
  static Triple extent(const Window& w, const Triple& size, Index level) {
    Triple e;
    for (Index d = 0; d < 3; ++d) e[d] = level > d ? (d == w.split ? 1 : size[d]) : reads(w, d, size[d]);
    return e;
  }

 private:
  template <bool kWeighed>
  void run(const Node& node, Index image, Index q) {
    const Index level = node.ring >= 0 ? 3 : w_.levels[node.out];
    const Triple size = extent(w_, tile_.size, level);
    const Index count = node.terms.size();
    for (Index t = 0; t < count; ++t) factors_[t] = static_cast<T>(node.terms[t].factor);
    for (Index i = 0; i < size[0]; ++i)
      for (Index j = 0; j < size[1]; ++j) {
        for (Index t = 0; t < count; ++t) pointers_[t] = source(node.terms[t], level, {i, j, 0}, q);
        const Index length = size[2] * channels_;
        if (node.ring >= 0) {
          const Index a = w_.split == 0 ? q : i, b = w_.split == 1 ? q : j;
          const Index position = ((image * tile_.size[0] + a) * tile_.size[1] + b) * tile_.size[2];
          P* out = sums_ + node.ring * ring_stride_ + position * channels_;
          add_run<kWeighed>(out, pointers_.data(), factors_.data(), count, length);
        } else {
          T* out = buffers_[node.out] + (i * size[1] + j) * size[2] * channels_;
          add_run<kWeighed>(out, pointers_.data(), factors_.data(), count, length);
        }
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
  const Tile& tile_;
  std::vector<T*> buffers_;
  P* sums_;
  Index ring_stride_;
  std::vector<const T*> pointers_;
  std::vector<T> factors_;
};

}  // namespace sre_triton
