// Differential invariants of a few features, added to all channels: z + weight . invariants(project . z), a band of
// rows at a time. invariants/README.md has the formulas; names are those of invariants/formulas.py.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "activations.h"
#include "derivatives.h"
#include "memory.h"
#include "products.h"
#include "vectors.h"

namespace sre_triton {

// out (positions, columns) = sums (rings, positions, depth) times a matrix (rings, depth, columns)
template <class T>
class Product {
 public:
  // `entry(ring, c, o)` is the matrix.
  template <class Entry>
  Product(Index rings, Index depth, Index columns, Entry entry)
      : rings_(rings), depth_(depth), panels_{columns}, start_(kPanelVectors * kLanes<T>, T(0)) {
    packed_.assign(rings * depth * panels_.padded() + kPanelVectors * kLanes<T>, T(0));
    for (Index panel = 0; panel < panels_.count(); ++panel) {
      const Index first = panels_.start(panel), width = panels_.vectors(panel) * kLanes<T>;
      T* to = packed_.data() + first * rings * depth;
      for (Index ring = 0; ring < rings; ++ring)
        for (Index c = 0; c < depth; ++c, to += width)
          for (Index o = 0; o < std::min(width, columns - first); ++o) to[o] = entry(ring, c, first + o);
    }
  }

  Index pitch() const { return panels_.padded(); }  // of `out`

  void operator()(const T* sums, Index position_stride, Index ring_stride, Index positions, T* out) const {
    for (Index panel = 0; panel < panels_.count(); ++panel) {
      const Index first = panels_.start(panel), vectors = panels_.vectors(panel);
      const T* weights = packed_.data() + first * rings_ * depth_;
      const Index blocks = divide_up(positions, kRows);
      for (Index b = 0, p = 0; b < blocks; ++b) {
        const Index height = balanced(positions, p, blocks - b);
        const auto block =
            vectors == 1 ? mix_block_of<T, T, 1>(height, Heights()) : mix_block_of<T, T, 2>(height, Heights());
        block(sums + p * position_stride, position_stride, ring_stride, rings_, depth_, weights, start_.data(),
              out + p * pitch() + first, pitch());
        p += height;
      }
    }
  }

 private:
  Index rings_, depth_;
  Panels<T> panels_;
  std::vector<T> packed_, start_;
};

// total (rows, columns in `pitch`) += left (positions, rows)^T right (positions, columns)
template <class T>
void add_outer(const T* left, Index left_pitch, Index rows, const T* right, Index pitch, Index columns, Index positions,
               T* total) {
  const Panels<T> panels{columns};
  const Index blocks = divide_up(rows, kRows);
  for (Index b = 0, r = 0; b < blocks; ++b) {
    const Index height = balanced(rows, r, blocks - b);
    for (Index panel = 0; panel < panels.count(); ++panel) {
      const Index first = panels.start(panel);
      const auto block =
          panels.vectors(panel) == 1 ? grad_block_of<T, 1>(height, Heights()) : grad_block_of<T, 2>(height, Heights());
      for (Index p = 0; p < positions; p += kAddedInTurn)
        block(left + p * left_pitch + r, left_pitch, right + p * pitch + first, pitch,
              std::min(kAddedInTurn, positions - p), total + r * pitch + first, pitch);
    }
    r += height;
  }
}

// Runs of `features` elements, `pitch` elements apart. Constants make vector moves of what else were calls.
template <class T, Index kFeatures>
void copy_runs_of(T* to, Index to_pitch, const T* from, Index from_pitch, Index runs) {
  for (Index r = 0; r < runs; ++r, to += to_pitch, from += from_pitch)
    for (Index f = 0; f < kFeatures; ++f) to[f] = from[f];
}
template <class T>
void copy_runs(T* to, Index to_pitch, const T* from, Index from_pitch, Index runs, Index features) {
  switch (features) {
    case 4:
      return copy_runs_of<T, 4>(to, to_pitch, from, from_pitch, runs);
    case 8:
      return copy_runs_of<T, 8>(to, to_pitch, from, from_pitch, runs);
    case 16:
      return copy_runs_of<T, 16>(to, to_pitch, from, from_pitch, runs);
    case 32:
      return copy_runs_of<T, 32>(to, to_pitch, from, from_pitch, runs);
    default:
      for (Index r = 0; r < runs; ++r) std::copy_n(from + r * from_pitch, features, to + r * to_pitch);
  }
}

// Maps as rows along the last dimension, each of (positions, channels); planes of such rows along the first one.
template <class S>
struct Lines {
  Activation<S> map;
  Index planes, lines, width;  // sizes of the spatial dimensions; without a middle one, `lines` is 1

  explicit Lines(const Tensor& t) : map(t), planes(t.size(2)), lines(t.dim() == 5 ? t.size(3) : 1), width(t.size(-1)) {
    if (t.dim() == 4) map.stride = {map.stride[1], 0, map.stride[2]};
  }
  S* at(Index image, Index plane, Index line) const {
    return map.data + image * map.image_stride + plane * map.stride[0] + line * map.stride[1];
  }
  // Whether rows lie in memory as products read and write them.
  template <class T>
  bool as_is(Index pitch) const {
    return std::is_same_v<S, T> && map.channel_stride == 1 && map.stride[2] == pitch && map.channels == pitch;
  }
  // A row where it lies, or brought to `to`.
  template <class T>
  const T* row(T* to, Index pitch, Index image, Index plane, Index line) const {
    if (as_is<T>(pitch)) return reinterpret_cast<const T*>(at(image, plane, line));
    read(to, pitch, image, plane, line);
    return to;
  }
  // The same of a row that was brought to memory which begins with plane `first`.
  template <class T>
  const T* at_hand(const T* memory, Index pitch, Index image, Index plane, Index line, Index first) const {
    if (as_is<T>(pitch)) return reinterpret_cast<const T*>(at(image, plane, line));
    return memory + ((plane - first) * lines + line) * width * pitch;
  }
  template <class T>
  void read(T* to, Index pitch, Index image, Index plane, Index line) const {
    copy_positions(to, pitch, const_cast<const S*>(at(image, plane, line)), map.stride[2], width, map.channels,
                   map.channel_stride);
  }
  // A row becomes the sum of two, of which the first may change.
  template <class T>
  void write_sum(T* one, const T* other, Index pitch, Index image, Index plane, Index line) const {
    T* to = as_is<T>(pitch) ? reinterpret_cast<T*>(at(image, plane, line)) : one;
    for (Index e = 0; e < width * pitch; ++e) to[e] = one[e] + other[e];
    if (to == one) write(one, pitch, image, plane, line);
  }

 private:
  template <class T>
  void write(const T* from, Index pitch, Index image, Index plane, Index line) const {
    S* to = at(image, plane, line);
    if (map.channel_stride == 1) {
      for (Index p = 0; p < width; ++p) copy_run(to + p * map.stride[2], from + p * pitch, map.channels);
    } else if (map.stride[2] == 1) {
      transpose<T>([&](Index c) { return to + c * map.channel_stride; }, from, pitch, width, map.channels);
    } else {
      for (Index p = 0; p < width; ++p)
        for (Index c = 0; c < map.channels; ++c)
          to[p * map.stride[2] + c * map.channel_stride] = cast_to<S>(from[p * pitch + c]);
    }
  }
};

// What is added, and how.
template <class T>
struct Addition {
  Form form;
  Index channels, features;
  Product<T> project, weight;            // channels to features, invariants to channels
  Product<T> weight_back, project_back;  // and their transposes

  template <class S>
  static Addition of(const Form& form, const Tensor& project, const Tensor& weight, S) {
    const Index features = project.size(0), channels = project.size(1), kinds = form.count();
    const S *p = project.const_data_ptr<S>(), *w = weight.const_data_ptr<S>();
    const Index maps = kinds * features;
    return {form,
            channels,
            features,
            {1, channels, features, [=](Index, Index c, Index f) { return cast_to<T>(p[f * channels + c]); }},
            {kinds, features, channels,
             [=](Index k, Index f, Index c) { return cast_to<T>(w[c * maps + k * features + f]); }},
            {1, channels, maps, [=](Index, Index c, Index m) { return cast_to<T>(w[c * maps + m]); }},
            {1, features, channels, [=](Index, Index f, Index c) { return cast_to<T>(p[f * channels + c]); }}};
  }
};

// A band of planes of one image, and the planes around it that it depends on.
struct Band {
  Index image, begin, end;
  Index from(Index halo) const { return std::max<Index>(0, begin - halo); }
  Index to(Index halo, Index planes) const { return std::min(planes, end + halo); }
};

struct Bands {
  Index images, planes, height;
  Index per_image() const { return divide_up(planes, height); }
  Index count() const { return images * per_image(); }
  Band band(Index i) const {
    const Index start = i % per_image() * height;
    return {i / per_image(), start, std::min(start + height, planes)};
  }
};

constexpr Index kBandElements = 192 << 10;

inline Bands cut_bands(Index images, Index planes, Index plane_elements, Index halo) {
  const Index most = std::max(std::max<Index>(4 * halo, 1), kBandElements / std::max<Index>(1, plane_elements));
  const Index parts = divide_up(planes, std::min(most, planes));
  return {images, planes, divide_up(planes, parts)};
}

// Features of the planes of a band, each row between repeats of its ends.
template <class T, class S>
void load_features(const Addition<T>& addition, const Lines<S>& z, const Band& band, Index halo, T* channels,
                   Index pitch, T* mixed, FeatureRows<T>& rows) {
  const Index line = z.width * pitch;
  for (Index i = band.from(halo); i < band.to(halo, z.planes); ++i)
    for (Index j = 0; j < z.lines; ++j, channels += line) {
      addition.project(z.row(channels, pitch, band.image, i, j), pitch, 0, z.width, mixed);
      T* row = rows.row(i, j);
      copy_runs(row, addition.features, mixed, addition.project.pitch(), z.width, addition.features);
      rows.repeat_ends(row);
      rows.look_at(row);
    }
}

// y = z + weight . invariants(project . z)
template <class S, class T>
void add_invariants_of(const Tensor& z_map, const Addition<T>& addition, const Tensor& y_map) {
  const Lines<S> z(z_map), y(y_map);
  const Form& form = addition.form;
  const Index halo = form.reach(), features = addition.features, width = z.width;
  const Index pitch = round_up(addition.channels, kLanes<T>);
  const Bands bands = cut_bands(z.map.images, z.planes, z.lines * width * pitch, halo);
  const Index planes = bands.height + 2 * halo, run = width * features;

  at::parallel_for(0, bands.count(), 1, [&](Index begin, Index end) {
    const Index channels_size = planes * z.lines * width * pitch,
                mixed_size = width * std::max(pitch, addition.project.pitch());
    const Index rows_size = FeatureRows<T>::size(planes, z.lines, width, features, halo);
    const Index values_size = form.count() * run, parts_size = Derivatives<T>::size(form, run);
    scratch.reset(Scratch::size<T>(channels_size) + Scratch::size<T>(mixed_size) + Scratch::size<T>(rows_size) +
                  Scratch::size<T>(values_size) + Scratch::size<T>(parts_size));
    T *channels = scratch.take<T>(channels_size), *mixed = scratch.take<T>(mixed_size);
    T *memory = scratch.take<T>(rows_size), *values = scratch.take<T>(values_size),
      *parts = scratch.take<T>(parts_size);
    for (Index i = begin; i < end; ++i) {
      const Band band = bands.band(i);
      const Index from = band.from(halo);
      FeatureRows<T> rows{memory, from, z.planes, z.lines, width, features, halo};
      load_features(addition, z, band, halo, channels, pitch, mixed, rows);
      for (Index a = band.begin; a < band.end; ++a)
        for (Index b = 0; b < z.lines; ++b) {
          for (Index scale = 0; scale < form.scales(); ++scale) {
            Derivatives<T> d(form, scale, parts, run);
            d.take(rows, a, b);
            d.values(values + scale * form.kinds() * run);
          }
          addition.weight(values, features, run, width, mixed);
          const T* row = z.at_hand(channels, pitch, band.image, a, b, from);
          y.write_sum(mixed, row, pitch, band.image, a, b);
        }
    }
    scratch.shrink();
  });
}

// Gradients of the same: of z, and of both matrices, added up in T.
template <class S, class T>
void add_invariants_backward_of(const Tensor& grad_map, const Tensor& z_map, const Addition<T>& addition,
                                const Tensor& grad_z_map, const Tensor& grad_project, const Tensor& grad_weight) {
  const Lines<S> grad(grad_map), z(z_map), grad_z(grad_z_map);
  const Form& form = addition.form;
  const Index halo = form.reach(), features = addition.features, width = z.width, maps = form.count() * features;
  const Index pitch = round_up(addition.channels, kLanes<T>);
  const Bands bands = cut_bands(z.map.images, z.planes, 2 * z.lines * width * pitch, halo);
  const Index planes = bands.height + 4 * halo, run = width * features;
  const Index total_size = (features + maps) * pitch;
  std::vector<std::vector<T>> totals(at::get_num_threads());

  at::parallel_for(0, bands.count(), 1, [&](Index begin, Index end) {
    const Index channels_size = planes * z.lines * width * pitch;
    const Index mixed_size = width * std::max({pitch, addition.project.pitch(), addition.weight_back.pitch()});
    const Index rows_size = FeatureRows<T>::size(planes, z.lines, width, features, halo);
    const Index values_size = form.count() * run, parts_size = Derivatives<T>::size(form, run);
    scratch.reset(2 * Scratch::size<T>(channels_size) + Scratch::size<T>(mixed_size) + 2 * Scratch::size<T>(rows_size) +
                  2 * Scratch::size<T>(values_size) + 2 * Scratch::size<T>(parts_size));
    T *channels = scratch.take<T>(channels_size), *grads = scratch.take<T>(channels_size);
    T *mixed = scratch.take<T>(mixed_size), *memory = scratch.take<T>(rows_size), *back = scratch.take<T>(rows_size);
    T *values = scratch.take<T>(values_size), *shares = scratch.take<T>(values_size);
    T *parts = scratch.take<T>(parts_size), *back_parts = scratch.take<T>(parts_size);
    std::fill_n(channels, channels_size, T(0));  // what fills up the last vector of a position stays so
    std::fill_n(grads, channels_size, T(0));
    std::vector<T>& total = totals[at::get_thread_num()];
    if (total.empty()) total.assign(total_size, T(0));
    T *of_project = total.data(), *of_weight = of_project + features * pitch;

    for (Index i = begin; i < end; ++i) {
      const Band band = bands.band(i);
      const Index first = band.from(2 * halo), grad_first = band.from(halo);
      FeatureRows<T> rows{memory, first, z.planes, z.lines, width, features, halo};
      FeatureRows<T> grad_rows{back, first, z.planes, z.lines, width, features, halo};
      load_features(addition, z, band, 2 * halo, channels, pitch, mixed, rows);
      std::fill_n(back, rows_size, T(0));
      for (Index a = grad_first; a < band.to(halo, z.planes); ++a)
        for (Index b = 0; b < z.lines; ++b) {
          const T* grad_row =
              grad.row(grads + ((a - grad_first) * z.lines + b) * width * pitch, pitch, band.image, a, b);
          addition.weight_back(grad_row, pitch, 0, width, mixed);
          for (Index k = 0; k < form.count(); ++k)
            copy_runs(shares + k * run, features, mixed + k * features, addition.weight_back.pitch(), width, features);
          for (Index scale = 0; scale < form.scales(); ++scale) {
            const Index start = scale * form.kinds() * run;
            Derivatives<T> d(form, scale, parts, run), c(form, scale, back_parts, run);
            d.take(rows, a, b);
            d.values(values + start);
            d.pull_back(shares + start, values + start, c);
            c.give(grad_rows, a, b);
          }
          if (band.begin <= a && a < band.end)
            for (Index k = 0; k < form.count(); ++k)
              add_outer(values + k * run, features, features, grad_row, pitch, addition.channels, width,
                        of_weight + k * features * pitch);
        }
      for (Index a = band.begin; a < band.end; ++a)
        for (Index b = 0; b < z.lines; ++b) {
          T* row = grad_rows.row(a, b);
          grad_rows.fold_ends(row);
          const T* z_row = z.at_hand(channels, pitch, band.image, a, b, first);
          const T* grad_row = grad.at_hand(grads, pitch, band.image, a, b, grad_first);
          add_outer(row, features, features, z_row, pitch, addition.channels, width, of_project);
          addition.project_back(row, features, 0, width, mixed);
          grad_z.write_sum(mixed, grad_row, pitch, band.image, a, b);
        }
    }
    scratch.shrink();
  });

  // Threads are added up in the order of their numbers, so that every run gives the same bits.
  S *project = static_cast<S*>(grad_project.data_ptr()), *weight = static_cast<S*>(grad_weight.data_ptr());
  for (Index r = 0; r < features + maps; ++r)
    for (Index c = 0; c < addition.channels; ++c) {
      T sum = 0;
      for (const std::vector<T>& total : totals)
        if (!total.empty()) sum += total[r * pitch + c];
      (r < features ? project[r * addition.channels + c] : weight[c * maps + r - features]) = cast_to<S>(sum);
    }
}

}  // namespace sre_triton
