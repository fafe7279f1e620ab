// The gradients of depthwise layers. Both are made of the same ring sums, which never leave the registers: there is
// nothing to share between channels, so to store and load partial sums would cost more than to add up every tap.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "activations.h"
#include "arguments.h"
#include "memory.h"
#include "ring_sums.h"
#include "ring_weights.h"
#include "taps.h"
#include "window.h"

namespace sre_triton {

// The most rings whose sums, weights and gradients fit the registers.
constexpr int kMostRings = 6;

// Where the taps of each ring lie in a tile of what is read, from where the first output begins to read.
struct RingOffsets {
  std::vector<Index> offsets;  // those of one ring after those of another
  std::vector<Index> ends;     // of each ring
};

inline RingOffsets ring_offsets(const std::vector<RingTap>& taps, const Window& w, const Triple& tile, Index channels) {
  const Triple size{reads(w, 0, tile[0]), reads(w, 1, tile[1]), reads(w, 2, tile[2])};
  RingOffsets found;
  for (Index ring = 0; ring < static_cast<Index>(w.rings.size()); ++ring) {
    for (const RingTap& tap : taps) {
      if (tap.ring != ring) continue;
      Triple shift;
      for (Index d = 0; d < 3; ++d) shift[d] = (tap.tap[d] + w.half[d]) * w.dilation[d];
      const Index step = w.stride[2], last = shift[2] % step * (size[2] / step) + shift[2] / step;
      found.offsets.push_back(((shift[0] * size[1] + shift[1]) * size[2] + last) * channels);
    }
    found.ends.push_back(found.offsets.size());
  }
  return found;
}

// One vector of channels of a row of positions.
template <class T>
struct RingRow {
  const T *from, *thin;
  const T* weights;  // one row per ring, or null where no outputs are wanted
  T* out;
  T* totals;  // one row per ring
  Index positions, channels, thin_pitch, weights_pitch, out_pitch, totals_pitch;
  Vector<T> start;
};

template <class T, int kRings, int kTogether>
inline __attribute__((always_inline)) void weigh_positions(const RingRow<T>& row, const RingOffsets& taps, Index p,
                                                           Vector<T> (&total)[kRings]) {
  Vector<T> thin[kTogether], out[kTogether];
#pragma GCC unroll 4
  for (int i = 0; i < kTogether; ++i) {
    thin[i] = load(row.thin + (p + i) * row.thin_pitch);
    out[i] = row.start;
  }
  const T* const from = row.from + p * row.channels;
  const Index *offset = taps.offsets.data(), *const first = offset;
#pragma GCC unroll 8
  for (int ring = 0; ring < kRings; ++ring) {
    Vector<T> sum[kTogether] = {};
    for (const Index* const end = first + taps.ends[ring]; offset < end; ++offset)
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) sum[i] += load(from + *offset + i * row.channels);
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) total[ring] += sum[i] * thin[i];
    if (row.weights) {
      const Vector<T> weight = load(row.weights + ring * row.weights_pitch);
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) out[i] += sum[i] * weight;
    }
  }
  if (row.weights)
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) store(row.out + (p + i) * row.out_pitch, out[i]);
}

template <class T, int kRings>
void weigh_ring_row(const RingRow<T>& row, const RingOffsets& taps) {
  constexpr int kTogether = 4;
  Vector<T> total[kRings] = {};
  Index p = 0;
  for (; p + kTogether <= row.positions; p += kTogether) weigh_positions<T, kRings, kTogether>(row, taps, p, total);
  for (; p < row.positions; ++p) weigh_positions<T, kRings, 1>(row, taps, p, total);
#pragma GCC unroll 8
  for (int ring = 0; ring < kRings; ++ring) {
    T* const to = row.totals + ring * row.totals_pitch;
    store(to, load(to) + total[ring]);
  }
}

template <class T, int... kBefore>
auto weigh_ring_row_of(Index rings, std::integer_sequence<int, kBefore...>) {
  static constexpr void (*rows[])(const RingRow<T>&, const RingOffsets&) = {weigh_ring_row<T, kBefore + 1>...};
  return rows[rings - 1];
}

// Whether weigh_rings() can do it: taps count once each.
inline bool has_few_plain_rings(const Window& w) {
  bool plain = w.rings.size() <= kMostRings;
  for (const Node& node : w.nodes) plain &= !node.weighed;
  return plain;
}

// The gradient of a depthwise layer's weight, and y where it is asked for. S: type in memory. T: type of sums.
template <class S, class T>
void weigh_rings(const Call& call, const Window& w) {
  const Activation<S> x(call.source), thin(*call.thin);
  const std::optional<Activation<S>> y = call.y ? std::optional<Activation<S>>(*call.y) : std::nullopt;
  const Index rings = w.rings.size(), channels = x.channels, pitch = round_up(channels, kLanes<T>);
  const std::vector<RingTap> taps = ring_taps(w);
  const Tiling tiling = cut(w, x.images, channels, false);
  const T* const weights =
      y ? pack_depthwise<T>(RingWeight<S>(*call.weight, call.groups, call.transposed, w.rings), channels, pitch)
        : nullptr;
  std::vector<T> start(pitch, T(0));
  if (call.bias) copy_run(start.data(), static_cast<const S*>(call.bias->const_data_ptr()), channels);

  const Index threads = at::get_num_threads(), size = rings * pitch;
  totals_memory.reset(Scratch::size<T>(threads * size));
  T* const totals = totals_memory.take<T>(threads * size);
  std::fill_n(totals, threads * size, T(0));
  const Triple whole = Adder<T, T>::extent(w, tiling.size, 0);
  const Index read_size = whole[0] * whole[1] * whole[2] * channels;
  const Index positions = tiling.size[0] * tiling.size[1] * tiling.size[2], row_size = tiling.size[2];
  const auto weigh_row = weigh_ring_row_of<T>(rings, std::make_integer_sequence<int, kMostRings>());

  at::parallel_for(0, tiling.count(), 1, [&](Index begin, Index end) {
    scratch.reset(Scratch::size<T>(read_size) + Scratch::size<T>(positions * pitch) +
                  Scratch::size<T>(row_size * pitch) + Scratch::size<Index>(row_size));
    T *const read = scratch.take<T>(read_size), *const thin_rows = scratch.take<T>(positions * pitch);
    T* const out = scratch.take<T>(row_size * pitch);
    Index* const places = scratch.take<Index>(row_size);
    for (Index task = begin; task < end; ++task) {
      const Tile tile = tiling.tile(task, x.images, w);
      const RingOffsets offsets = ring_offsets(taps, w, tile.size, channels);
      const Triple extent = Adder<T, T>::extent(w, tile.size, 0);
      for (Index n = 0; n < tile.images; ++n) {
        Tile one = tile;
        one.image += n, one.images = 1;
        load_input(read, x, w, one, one.image);
        load_positions(thin_rows, pitch, thin, one);
        for (Index i = 0; i < one.size[0]; ++i)
          for (Index j = 0; j < one.size[1]; ++j) {
            const T* const from = read + (i * w.stride[0] * extent[1] + j * w.stride[1]) * extent[2] * channels;
            const T* const thin_row = thin_rows + (i * one.size[1] + j) * one.size[2] * pitch;
            for (Index c = 0; c < channels; c += kLanes<T>)
              weigh_row({from + c, thin_row + c, weights ? weights + c : nullptr, out + c,
                         totals + at::get_thread_num() * size + c, one.size[2], channels, pitch, pitch, pitch, pitch,
                         load(start.data() + c)},
                        offsets);
            if (!y) continue;
            Tile row = one;
            for (Index d : {0, 1}) row.start[d] += d == 0 ? i : j, row.size[d] = 1;
            locate(places, *y, row);
            store_rows(out, pitch, *y, places, one.size[2], 0, channels);
          }
      }
    }
    scratch.shrink();
  });

  const RingWeight<S> grad(*call.grad, call.groups, call.transposed, w.rings);
  for (Index ring = 0; ring < rings; ++ring)
    for (Index c = 0; c < channels; ++c) {
      T total = 0;  // threads in the order of their numbers, so that every run gives the same bits
      for (Index t = 0; t < threads; ++t) total += totals[t * size + ring * pitch + c];
      grad.of(c, 0, 0)[w.rings[ring] * grad.ring] = cast_to<S>(total);
    }
  totals_memory.shrink();
  weights_memory.shrink();
}

}  // namespace sre_triton
