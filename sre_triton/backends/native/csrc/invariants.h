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

// out (positions, columns) = start (positions, or zeros) + sums (rings, positions, depth) times a matrix (rings, depth,
// columns)
template <class T>
class Product {
 public:
  // `entry(ring, c, o)` is the matrix.
  template <class Entry>
  Product(Index rings, Index depth, Index columns, Entry entry)
      : rings_(rings), depth_(depth), panels_{columns}, zeros_(kPanelVectors * kLanes<T>, T(0)) {
    // Vectors of half the width where the other half would be idle: these take half the time.
    is_half_ = kVectorBytes > 16 && 2 * columns <= kLanes<T>;
    packed_.assign(rings * depth * pitch() + kPanelVectors * kLanes<T>, T(0));
    for (Index panel = 0; panel < panels_.count(); ++panel) {
      const Index first = panels_.start(panel), width = std::min(pitch(), panels_.vectors(panel) * kLanes<T>);
      T* to = packed_.data() + first * rings * depth;
      for (Index ring = 0; ring < rings; ++ring)
        for (Index c = 0; c < depth; ++c, to += width)
          for (Index o = 0; o < std::min(width, columns - first); ++o) to[o] = entry(ring, c, first + o);
    }
  }

  // Elements of `out` that are written of each position.
  Index pitch() const { return is_half_ ? kLanes<T> / 2 : panels_.padded(); }

  void operator()(const T* sums, Index position_stride, Index ring_stride, Index positions, T* out, Index out_pitch,
                  const T* start = nullptr, Index start_pitch = 0) const {
    for (Index panel = 0; panel < panels_.count(); ++panel) {
      const Index first = panels_.start(panel);
      const T* weights = packed_.data() + first * rings_ * depth_;
      const Index blocks = divide_up(positions, kRows);
      for (Index b = 0, p = 0; b < blocks; ++b) {
        const Index height = balanced(positions, p, blocks - b);
        Ahead between = start ? outputs_ahead(out + (p + 4 * kRows) * out_pitch + first, out_pitch)
                              : inputs_ahead(sums + (p + 4 * kRows) * position_stride);
        block_of(panel, height)(sums + p * position_stride, position_stride, ring_stride, rings_, depth_, weights,
                                start ? start + p * start_pitch + first : zeros_.data(), start ? start_pitch : 0,
                                out + p * out_pitch + first, out_pitch, between);
        p += height;
      }
    }
  }

 private:
  // Brings to the cache what the fourth block from here reads or writes, two lines of it at each of so many places
  // after every four factors.
  struct Ahead {
    static constexpr Index kLine = 64, kEvery = 4;
    const char* next;
    Index step, places;
    bool writes;
    Index until_due(Index most) const { return std::min(most, kEvery); }
    void done(Index) {
      for (Index i = 0; i < places; ++i, next += step)
        for (Index line = 0; line < 2 * kLine; line += kLine)
          writes ? __builtin_prefetch(next + line, 1, 3) : __builtin_prefetch(next + line, 0, 3);
    }
  };
  // What comes from far away: inputs that lie side by side, and where those that have a start are added to it, outputs.
  Ahead inputs_ahead(const T* next) const {
    const Index lines = divide_up(kRows * Ahead::kEvery * Index(sizeof(T)), Ahead::kLine);
    return {reinterpret_cast<const char*>(next), 2 * Ahead::kLine, divide_up(lines, 2), false};
  }
  Ahead outputs_ahead(const T* next, Index pitch) const {
    const Index places = divide_up(kRows * Ahead::kEvery, rings_ * depth_);
    return {reinterpret_cast<const char*>(next), pitch * Index(sizeof(T)), places, true};
  }
  MixBlock<T, T, Ahead> block_of(Index panel, Index height) const {
    constexpr int kHalf = kVectorBytes > 16 ? kVectorBytes / 2 : kVectorBytes;
    if (is_half_) return mix_block_of<T, T, Ahead, 1, kHalf>(height, Heights());
    return panels_.vectors(panel) == 1 ? mix_block_of<T, T, Ahead, 1>(height, Heights())
                                       : mix_block_of<T, T, Ahead, 2>(height, Heights());
  }

  Index rings_, depth_;
  Panels<T> panels_;
  bool is_half_;
  std::vector<T> packed_, zeros_;
};

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
  S* at(Index image, Index plane, Index line, Index position = 0) const {
    return map.data + image * map.image_stride + plane * map.stride[0] + line * map.stride[1] +
           position * map.stride[2];
  }
  // Whether rows lie in memory as products read and write them.
  template <class T>
  bool as_is(Index pitch) const {
    return std::is_same_v<S, T> && map.channel_stride == 1 && map.stride[2] == pitch && map.channels == pitch;
  }
  // A row where it lies, or brought to `to`.
  template <class T>
  const T* bring(T* to, Index pitch, Index image, Index plane, Index line) const {
    if (as_is<T>(pitch)) return reinterpret_cast<const T*>(at(image, plane, line));
    copy_positions(to, pitch, const_cast<const S*>(at(image, plane, line)), map.stride[2], width, map.channels,
                   map.channel_stride, lines > 1 ? map.stride[1] : map.stride[0]);
    return to;
  }
  // `count` positions, which `make` writes to where they belong or, if they do not lie there as products write them, to
  // `room`.
  template <class T, class Make>
  void put(T* room, Index pitch, Index image, Index plane, Index line, Index position, Index count, Make make) const {
    if (as_is<T>(pitch)) return make(reinterpret_cast<T*>(at(image, plane, line, position)));
    make(room);
    write(room, pitch, at(image, plane, line, position), count);
  }

 private:
  template <class T>
  void write(const T* from, Index pitch, S* to, Index count) const {
    if (map.channel_stride == 1) {
      for (Index p = 0; p < count; ++p) copy_run(to + p * map.stride[2], from + p * pitch, map.channels);
    } else if (map.stride[2] == 1) {
      transpose<T>([&](Index c) { return to + c * map.channel_stride; }, from, pitch, count, map.channels, {0, count});
    } else {
      for (Index p = 0; p < count; ++p)
        for (Index c = 0; c < map.channels; ++c)
          to[p * map.stride[2] + c * map.channel_stride] = cast_to<S>(from[p * pitch + c]);
    }
  }
};

// Rows of the last planes of a map as products read them: where they lie, or brought to memory of their own.
template <class S, class T>
class RecentRows {
 public:
  RecentRows(const Lines<S>& lines, Index pitch, Index depth)
      : lines_(lines), pitch_(pitch), depth_(lines.template as_is<T>(pitch) ? 0 : depth) {}

  Index size() const { return depth_ * lines_.lines * lines_.width * pitch_; }
  void use(T* memory) {
    memory_ = memory;
    std::fill_n(memory, size(), T(0));  // what fills up the last vector of a position stays so
  }
  const T* load(Index image, Index plane, Index line) const {
    return lines_.bring(place(plane, line), pitch_, image, plane, line);
  }
  const T* at_hand(Index image, Index plane, Index line) const {
    return depth_ ? place(plane, line) : reinterpret_cast<const T*>(lines_.at(image, plane, line));
  }

 private:
  T* place(Index plane, Index line) const {
    return depth_ ? memory_ + (plane % depth_ * lines_.lines + line) * lines_.width * pitch_ : nullptr;
  }
  const Lines<S>& lines_;
  Index pitch_, depth_;
  T* memory_ = nullptr;
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

// A band of planes of one image.
struct Band {
  Index image, begin, end;
};

// How images are cut into bands: no more than there is work for, since what lies around a band is computed twice.
struct Bands {
  Index images, planes, height;

  Bands(Index images, Index planes, Index halo) : images(images), planes(planes) {
    const Index tasks = at::get_num_threads() > 1 ? 4 * at::get_num_threads() : 1;
    const Index parts = std::clamp<Index>(divide_up(tasks, images), 1, std::max<Index>(1, planes / (8 * halo)));
    height = divide_up(planes, parts);
  }
  Index per_image() const { return divide_up(planes, height); }
  Index count() const { return images * per_image(); }
  Band band(Index i) const {
    const Index start = i % per_image() * height;
    return {i / per_image(), start, std::min(start + height, planes)};
  }
};

// Elements of what is computed of features at a time. Twenty times as many fit the first-level cache.
constexpr Index kChunk = 640;

// Calls `function` with the first position and the number of positions of each chunk of a row.
template <class Function>
void in_chunks(Index width, Index features, Function function) {
  const Index most = std::max<Index>(kRows, kChunk / features), parts = divide_up(width, most);
  const Index height = divide_up(width, parts);
  for (Index p = 0; p < width; p += height) function(p, std::min(height, width - p));
}
inline Index chunk_positions(Index width, Index features) {
  return std::min(width, std::max<Index>(kRows, kChunk / features));
}

// The features of a plane, each row between repeats of its ends.
template <class S, class T>
void load_features(const Addition<T>& addition, const RecentRows<S, T>& z, Index image, Index plane, Index pitch,
                   T* mixed, FeatureRows<T>& rows) {
  for (Index line = 0; line < rows.lines; ++line) {
    const T* channels = z.load(image, plane, line);
    T* row = rows.row(plane, line);
    in_chunks(rows.width, rows.features, [&](Index p, Index count) {
      T* to = row + p * rows.features;
      const Index out_pitch = addition.project.pitch();
      if (out_pitch == rows.features) return addition.project(channels + p * pitch, pitch, 0, count, to, out_pitch);
      addition.project(channels + p * pitch, pitch, 0, count, mixed, out_pitch);
      copy_runs(to, rows.features, mixed, out_pitch, count, rows.features);
    });
    rows.repeat_ends(row);
    rows.look_at(row);
  }
}

// y = z + weight . invariants(project . z)
template <int kDims, class S, class T>
void add_invariants_of(const Tensor& z_map, const Addition<T>& addition, const Tensor& y_map) {
  const Lines<S> z(z_map), y(y_map);
  const Form& form = addition.form;
  const Index halo = form.reach(), features = addition.features, pitch = round_up(addition.channels, kLanes<T>);
  const Index depth = std::min(2 * halo + 1, z.planes), positions = chunk_positions(z.width, features);
  const Index stride = round_up(positions * features, kLanes<T>);
  const Bands bands(z.map.images, z.planes, halo);

  at::parallel_for(0, bands.count(), 1, [&](Index begin, Index end) {
    RecentRows<S, T> recent(z, pitch, depth);
    FeatureRows<T> rows{nullptr, depth, z.planes, z.lines, z.width, features, halo};
    const Index mixed_size = positions * std::max(pitch, addition.project.pitch());
    const Index values_size = form.count() * stride;
    scratch.reset(Scratch::size<T>(recent.size()) + Scratch::size<T>(rows.size()) + Scratch::size<T>(mixed_size) +
                  Scratch::size<T>(values_size));
    recent.use(scratch.take<T>(recent.size()));
    rows.memory = scratch.take<T>(rows.size());
    T *mixed = scratch.take<T>(mixed_size), *values = scratch.take<T>(values_size);
    for (Index i = begin; i < end; ++i) {
      const Band band = bands.band(i);
      rows.tame = true;
      Index loaded = std::max<Index>(0, band.begin - halo);
      for (Index a = band.begin; a < band.end; ++a) {
        for (; loaded <= std::min(a + halo, z.planes - 1); ++loaded)
          load_features(addition, recent, band.image, loaded, pitch, mixed, rows);
        for (Index b = 0; b < z.lines; ++b) {
          const T* row = recent.at_hand(band.image, a, b);
          in_chunks(z.width, features, [&](Index p, Index count) {
            for (Index scale = 0; scale < form.scales(); ++scale) {
              const Around<T, kDims> near(rows, form.dilation[scale], a, b);
              T* to = values + scale * form.kinds() * stride;
              for (Index e = 0; e < count * features; e += kLanes<T>)
                Derivatives<T, kDims>(near, p * features + e, form.needs_center(), rows.tame)
                    .template invariants<false>(form, to + e, stride, nullptr, nullptr);
            }
            y.put(mixed, pitch, band.image, a, b, p, count,
                  [&](T* to) { addition.weight(values, features, stride, count, to, pitch, row + p * pitch, pitch); });
          });
        }
      }
    }
    scratch.shrink();
  });
}

// Gradients of the same: of z, and of both matrices, added up in T.
template <int kDims, class S, class T>
void add_invariants_backward_of(const Tensor& grad_map, const Tensor& z_map, const Addition<T>& addition,
                                const Tensor& grad_z_map, const Tensor& grad_project, const Tensor& grad_weight) {
  const Lines<S> grad(grad_map), z(z_map), grad_z(grad_z_map);
  const Form& form = addition.form;
  const Index halo = form.reach(), features = addition.features, maps = form.count() * features;
  const Index pitch = round_up(addition.channels, kLanes<T>);
  const Index depth = std::min(2 * halo + 1, z.planes), positions = chunk_positions(z.width, features);
  const Index run = z.width * features, stride = round_up(positions * features, kLanes<T>);
  const Bands bands(z.map.images, z.planes, halo);
  std::vector<std::vector<T>> totals(at::get_num_threads());

  at::parallel_for(0, bands.count(), 1, [&](Index begin, Index end) {
    RecentRows<S, T> recent(z, pitch, depth), recent_grads(grad, pitch, depth);
    FeatureRows<T> rows{nullptr, depth, z.planes, z.lines, z.width, features, halo}, grad_rows = rows;
    const Index mixed_size = positions * std::max({pitch, addition.project.pitch(), addition.weight_back.pitch()});
    const Index values_size = form.count() * stride;
    const Index of_row_size = RowGradients<T, kDims>::size(run, halo * features);
    scratch.reset(Scratch::size<T>(recent.size()) + Scratch::size<T>(recent_grads.size()) +
                  2 * Scratch::size<T>(rows.size()) + Scratch::size<T>(mixed_size) + 2 * Scratch::size<T>(values_size) +
                  form.scales() * Scratch::size<T>(of_row_size));
    recent.use(scratch.take<T>(recent.size()));
    recent_grads.use(scratch.take<T>(recent_grads.size()));
    rows.memory = scratch.take<T>(rows.size());
    grad_rows.memory = scratch.take<T>(rows.size());
    T *mixed = scratch.take<T>(mixed_size), *values = scratch.take<T>(values_size);
    T* shares = scratch.take<T>(values_size);
    std::vector<RowGradients<T, kDims>> of_row;  // by scale
    for (Index dilation : form.dilation)
      of_row.emplace_back(scratch.take<T>(of_row_size), run, dilation * features).clear();
    std::vector<Index> given(form.scales());
    std::vector<T>& total = totals[at::get_thread_num()];
    if (total.empty()) total.assign((features + maps) * pitch, T(0));
    T *of_project = total.data(), *of_weight = of_project + features * pitch;

    // What the invariants of a row contribute to the gradients of the features around it and, inside of the band, to
    // that of the weight.
    auto pull_back = [&](Index image, Index a, Index b, bool inside) {
      const T* grad_row = recent_grads.load(image, a, b);
      for (Index scale = 0; scale < form.scales(); ++scale) given[scale] = -form.dilation[scale] * features;
      in_chunks(z.width, features, [&](Index p, Index count) {
        const Index size = count * features, start = p * features, end = start + size;
        addition.weight_back(grad_row + p * pitch, pitch, 0, count, mixed, addition.weight_back.pitch());
        for (Index k = 0; k < form.count(); ++k)
          copy_runs(shares + k * stride, features, mixed + k * features, addition.weight_back.pitch(), count, features);
        for (Index scale = 0; scale < form.scales(); ++scale) {
          const Index step = form.dilation[scale] * features, first = scale * form.kinds() * stride;
          const Around<T, kDims> near(rows, form.dilation[scale], a, b), to(grad_rows, form.dilation[scale], a, b);
          for (Index e = 0; e < size; e += kLanes<T>) {
            const Derivatives<T, kDims> d(near, start + e, form.needs_center(), rows.tame);
            Derivatives<T, kDims> back;
            d.template invariants<true>(form, values + first + e, stride, shares + first + e, &back);
            if (!rows.tame) back.cut(d);
            of_row[scale].put(start + e, back);
          }
          if (end == run) of_row[scale].end();
          const Index known = end == run ? run + step + kLanes<T> - 1 : end - step;
          given[scale] = of_row[scale].give(to, form.needs_center(), given[scale], known);
        }
        for (Index k = 0; k < form.count() && inside; ++k)
          add_outer(values + k * stride, features, features, grad_row + p * pitch, pitch, addition.channels, count,
                    true, of_weight + k * features * pitch, pitch);
      });
    };
    // The gradient of a row of z, and what it contributes to that of the projection.
    auto finish = [&](Index image, Index a, Index b) {
      T* row = grad_rows.row(a, b);
      grad_rows.fold_ends(row);
      const T *z_row = recent.at_hand(image, a, b), *grad_row = recent_grads.at_hand(image, a, b);
      in_chunks(z.width, features, [&](Index p, Index count) {
        const T* of_features = row + p * features;
        add_outer(of_features, features, features, z_row + p * pitch, pitch, addition.channels, count, true, of_project,
                  pitch);
        grad_z.put(mixed, pitch, image, a, b, p, count, [&](T* to) {
          addition.project_back(of_features, features, 0, count, to, pitch, grad_row + p * pitch, pitch);
        });
      });
    };

    for (Index i = begin; i < end; ++i) {
      const Band band = bands.band(i);
      rows.tame = true;
      Index loaded = std::max<Index>(0, band.begin - 2 * halo), finished = band.begin;
      const Index last = std::min(band.end + halo, z.planes);
      for (Index a = std::max<Index>(0, band.begin - halo); a < last; ++a) {
        for (; loaded <= std::min(a + halo, z.planes - 1); ++loaded) {
          load_features(addition, recent, band.image, loaded, pitch, mixed, rows);
          std::fill_n(grad_rows.row(loaded, 0) - halo * features, z.lines * rows.pitch(), T(0));
        }
        for (Index b = 0; b < z.lines; ++b) pull_back(band.image, a, b, band.begin <= a && a < band.end);
        for (; finished < band.end && (finished + halo <= a || a + 1 == last); ++finished)
          for (Index b = 0; b < z.lines; ++b) finish(band.image, finished, b);
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
