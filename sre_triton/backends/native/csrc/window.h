// Which sums of which inputs make an output, and how the outputs are cut into tiles.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <vector>

#include "vectors.h"

namespace sre_triton {

using at::Tensor;
using Triple = std::array<Index, 3>;

struct Term {
  Index buffer;
  Triple tap;
  double factor;
};

// A partial sum: its buffer, or the ring that it completes.
struct Node {
  Index out;
  Index ring;  // -1: none
  bool weighed;
  std::vector<Term> terms;
};

struct Window {
  Triple in, out, half, origin, stride, dilation, upsampling;
  Index split;                // the dimension whose positions are added up one after the other
  std::vector<Index> rings;   // that have a tap
  std::vector<Index> levels;  // of each buffer: how many leading dimensions it is summed over
  std::vector<Node> nodes;
};

struct Tile {
  Index image, images;
  Triple start, size;
  Index positions() const { return images * size[0] * size[1] * size[2]; }
};

// How the output is cut: extents of a tile, and how many lie along each dimension. What a tile reads is loaded at once,
// and summed and multiplied one slab after the other, of so many rows in the split dimension.
struct Tiling {
  Index images, rows;
  Triple size;
  Index image_tiles;
  Triple tiles;
  Index count() const { return image_tiles * tiles[0] * tiles[1] * tiles[2]; }

  Tile tile(Index i, Index all_images, const Window& w) const {
    Tile t;
    for (Index d = 2; d >= 0; --d) {
      t.start[d] = i % tiles[d] * size[d];
      t.size[d] = std::min(size[d], w.out[d] - t.start[d]);
      i /= tiles[d];
    }
    t.image = i * images;
    t.images = std::min(images, all_images - t.image);
    return t;
  }
  Tile slab(Tile tile, Index row, const Window& w) const {
    const Index left = tile.size[w.split] - row;
    tile.start[w.split] += row;
    tile.size[w.split] = divide_up(left, divide_up(left, rows));  // as equal as can be
    return tile;
  }
};

// Positions of the padded input that so many outputs read along dimension d. In the last dimension these are rounded
// up to whole strides: a row holds every stride-th position first, then those one further, and so on, so that what
// the outputs of a row read with one tap lies side by side.
inline Index reads(const Window& w, Index d, Index outputs) {
  const Index n = (outputs - 1) * w.stride[d] + 2 * w.half[d] * w.dilation[d] + 1;
  return d == 2 ? round_up(n, w.stride[d]) : n;
}

// Elements that fit the second-level cache next to the weights: ring sums of small maps, which are made at once. Tiles
// of larger ones keep those of a slab alone, and are as large as what they read allows, so that little is read twice.
// Where input is read in place, that is what a slab reads: tiles are strips, as long as can be.
constexpr Index kSumElements = 96 << 10;
constexpr Index kTileElements = 40 << 10;
constexpr Index kReadElements = 96 << 10;
constexpr Index kFewestPositions = 48;
constexpr Index kSlabPositions = 64, kMostSlabPositions = 128;

inline Tiling cut(const Window& w, Index images, Index channels, bool in_place) {
  const Index total = images * w.out[0] * w.out[1] * w.out[2];
  const Index tasks = at::get_num_threads() > 1 ? 4 * at::get_num_threads() : 1;
  Index budget = std::max(kFewestPositions, kSumElements / (channels * static_cast<Index>(w.rings.size())));
  const Index of_slabs = kTileElements / channels;
  const bool strips = in_place && total / images > budget;
  // Measured: less than half as much again does not pay.
  Index most = strips                                                             ? total / images
               : of_slabs >= 2 * kSlabPositions && of_slabs > budget + budget / 2 ? of_slabs
                                                                                  : budget;
  for (Index* n : {&budget, &most}) *n = std::min(*n, std::max(kFewestPositions / 2, divide_up(total, tasks)));

  // Of all boxes of at most so many positions, the one that reads the fewest elements twice.
  Triple best{1, 1, 1};
  double least = -1;
  auto parts = [](Index n, Index part) { return divide_up(n, part); };
  for (Index a = 1; a <= w.out[2]; a = a < 4 ? a + 1 : a + divide_up(a, 3)) {
    const Index t2 = parts(w.out[2], a);
    for (Index b = 1; b <= w.out[1]; b = b < 4 ? b + 1 : b + divide_up(b, 3)) {
      const Index t1 = parts(w.out[1], b);
      if (t1 * t2 > most && (t1 > 1 || t2 > 1)) continue;
      const Index t0 = parts(w.out[0], parts(w.out[0], std::max<Index>(1, most / (t1 * t2))));
      const double read = double(reads(w, 0, t0)) * reads(w, 1, t1) * reads(w, 2, t2);
      const Index length = w.split == 0 ? t0 : t1, row = t0 * t1 * t2 / length;
      if (strips && row > kMostSlabPositions) continue;
      const Index at_once = strips ? std::min(length, divide_up(kSlabPositions, row)) : length;
      const bool fits = read / reads(w, w.split, length) * reads(w, w.split, at_once) * channels <= kReadElements;
      // Short rows make short vector loops.
      const double cost = (read / (t0 * t1 * t2) + 30.0 / t2) * (fits ? 1 : 2);
      if (least < 0 || cost < least) least = cost, best = {t0, t1, t2};
    }
  }
  Tiling t;
  t.size = best;
  for (Index d = 0; d < 3; ++d) t.tiles[d] = divide_up(w.out[d], best[d]);
  const bool whole = t.tiles[0] * t.tiles[1] * t.tiles[2] == 1;
  t.images = whole ? std::clamp<Index>(budget / (best[0] * best[1] * best[2]), 1, images) : 1;
  t.images = divide_up(images, divide_up(images, t.images));
  t.image_tiles = divide_up(images, t.images);
  const Index row = best[0] * best[1] * best[2] / best[w.split];
  t.rows =
      t.images > 1 ? best[w.split] : divide_up(best[w.split], std::max<Index>(1, best[w.split] * row / kSlabPositions));
  return t;
}

}  // namespace sre_triton
