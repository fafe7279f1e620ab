// Differences along rows of features and what is made of them, all positions of a row at once.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace sre_triton {

enum Kind : Index { kGradient, kAnisotropy, kIsophote, kFlow, kKinds };

// Which invariants, at which scales.
struct Form {
  Index ndim;
  std::vector<Index> kind, dilation;
  double eps;

  Index kinds() const { return kind.size(); }
  Index scales() const { return dilation.size(); }
  Index count() const { return kinds() * scales(); }
  Index pairs() const { return ndim == 2 ? 1 : 3; }
  Index reach() const { return *std::max_element(dilation.begin(), dilation.end()); }
  bool has(Kind k) const { return std::find(kind.begin(), kind.end(), k) != kind.end(); }
  bool needs_first() const { return kind.size() != 1 || kind[0] != kAnisotropy; }
  bool needs_second() const { return kind.size() != 1 || kind[0] != kGradient; }
  bool needs_center() const { return has(kIsophote) || has(kFlow); }
};

// What derivatives are cut off at, so that no product of three of them overflows.
template <class T>
constexpr T kBound = std::is_same_v<T, double> ? T(0x1p300) : T(0x1p40);

using Pair = std::array<Index, 2>;
constexpr Pair kPairs[] = {{0, 1}, {0, 2}, {1, 2}};

// Rows (width, features) of the last `depth` planes, each with `margin` positions more at both ends.
template <class T>
struct FeatureRows {
  T* memory;
  Index depth, planes, lines, width, features, margin;  // `planes` of the whole map
  bool tame = true;                                     // nothing is so large that a derivative has to be cut off

  Index size() const { return depth * lines * pitch(); }
  Index pitch() const { return (width + 2 * margin) * features; }
  T* row(Index plane, Index line) const {
    return memory + (plane % depth * lines + line) * pitch() + margin * features;
  }
  // The nearest row that there is.
  T* nearest(Index plane, Index line) const {
    return row(std::clamp<Index>(plane, 0, planes - 1), std::clamp<Index>(line, 0, lines - 1));
  }
  void repeat_ends(T* row) const {
    const Index run = width * features;
    for (Index i = 0; i < margin * features; ++i) {
      row[-1 - i] = row[features - 1 - i % features];
      row[run + i] = row[run - features + i % features];
    }
  }
  void look_at(const T* row) {
    bool all = true;
    for (Index i = 0; i < width * features; ++i) all &= std::abs(row[i]) < kBound<T> / 16;
    tame &= all;
  }
  // The adjoint of `repeat_ends`.
  void fold_ends(T* row) const {
    const Index run = width * features;
    for (Index i = 0; i < margin * features; ++i) {
      row[features - 1 - i % features] += row[-1 - i];
      row[run - features + i % features] += row[run + i];
    }
  }
};

// The derivatives at some positions of a row, or gradients of them: by axis, by axis, and by pair of axes.
template <class T>
class Derivatives {
 public:
  static Index size(const Form& form, Index run) { return (2 * form.ndim + form.pairs() + 2) * run; }

  // `run` elements of a row from element `start` on.
  Derivatives(const Form& form, Index scale, T* memory, Index start, Index run)
      : form_(form), dilation_(form.dilation[scale]), start_(start), run_(run) {
    for (Index a = 0; a < form.ndim; ++a, memory += 2 * run) first_[a] = memory, second_[a] = memory + run;
    for (Index p = 0; p < form.pairs(); ++p, memory += run) mixed_[p] = memory;
    share_ = memory;
    trace_ = memory + run;
  }

  // Sets them to those of a row.
  void take(const FeatureRows<T>& rows, Index plane, Index line) {
    const T *center = rows.row(plane, line) + start_, length = lengthwise(), smooth = kSmoothing / 2;
    const bool one_by_one = form_.needs_center(), has_first = form_.needs_first(), has_second = form_.needs_second();
    for (Index a = 0; a < form_.ndim; ++a) {
      const T *ahead = tap(rows, plane, line, a, 1), *behind = tap(rows, plane, line, a, -1);
      T *f = first_[a], *s = second_[a];
      if (has_first)
        for (Index i = 0; i < run_; ++i) f[i] = (ahead[i] - behind[i]) * length;
      if (has_second && one_by_one)
        for (Index i = 0; i < run_; ++i) s[i] = (ahead[i] + behind[i]) - 2 * center[i];
      else if (has_second)
        for (Index i = 0; i < run_; ++i) s[i] = ahead[i] + behind[i];
    }
    for (Index p = 0; p < form_.pairs(); ++p) {
      const auto [a, b] = kPairs[p];
      const auto corner = corners(rows, plane, line, a, b);
      const T *pp = corner[0], *mm = corner[1], *pm = corner[2], *mp = corner[3];
      T *fa = first_[a], *fb = first_[b], *m = mixed_[p];
      if (has_first)
        for (Index i = 0; i < run_; ++i) {
          const T u = (pp[i] - mm[i]) * smooth, v = (pm[i] - mp[i]) * smooth;
          fa[i] += u + v;
          fb[i] += u - v;
        }
      if (has_second)
        for (Index i = 0; i < run_; ++i) m[i] = ((pp[i] + mm[i]) - (pm[i] + mp[i])) * T(0.25);
    }
    tame_ = rows.tame;
    if (!tame_)
      each(
          [&](T* x) {
            for (Index i = 0; i < run_; ++i) x[i] = std::min(std::max(x[i], -kBound<T>), kBound<T>);
          },
          has_first, has_second);
  }

  // Adds gradients of them to those of the rows: the adjoint of `take`.
  void give(const FeatureRows<T>& rows, Index plane, Index line) const {
    T* center = rows.row(plane, line) + start_;
    const T length = lengthwise(), smooth = kSmoothing / 2;
    const bool one_by_one = form_.needs_center(), has_first = form_.needs_first(), has_second = form_.needs_second();
    for (Index a = 0; a < form_.ndim; ++a) {
      T *ahead = tap(rows, plane, line, a, 1), *behind = tap(rows, plane, line, a, -1);
      const T *f = first_[a], *s = second_[a];
      // One after the other: taps of a row overlap, and at a border they are one row.
      for (Index i = 0; i < run_; ++i) ahead[i] += (has_first ? f[i] * length : 0) + (has_second ? s[i] : 0);
      for (Index i = 0; i < run_; ++i) behind[i] += (has_second ? s[i] : 0) - (has_first ? f[i] * length : 0);
      if (one_by_one)
        for (Index i = 0; i < run_; ++i) center[i] -= 2 * s[i];
    }
    for (Index p = 0; p < form_.pairs(); ++p) {
      const auto [a, b] = kPairs[p];
      const auto corner = corners(rows, plane, line, a, b);
      const T *fa = first_[a], *fb = first_[b], *m = mixed_[p];
      for (Index q = 0; q < 4; ++q) {
        T* to = corner[q];
        const T along = has_first ? (q % 2 ? -smooth : smooth) : 0, across = q < 2 ? along : -along;
        const T both = has_second ? (q < 2 ? T(0.25) : T(-0.25)) : 0;
        if (has_first && has_second)
          for (Index i = 0; i < run_; ++i) to[i] += (fa[i] * along + fb[i] * across) + m[i] * both;
        else if (has_first)
          for (Index i = 0; i < run_; ++i) to[i] += fa[i] * along + fb[i] * across;
        else
          for (Index i = 0; i < run_; ++i) to[i] += m[i] * both;
      }
    }
  }

  // The invariants (kinds, run).
  void values(T* to) {
    const T eps = form_.eps;
    for (Index kind : form_.kind) {
      if (kind == kGradient || kind == kAnisotropy) {
        kind == kGradient ? square_of_gradient(to) : square_of_anisotropy(to);
        for (Index i = 0; i < run_; ++i) to[i] = std::sqrt(to[i] + eps * eps) - eps;
      } else {
        along_gradient(to);
        if (kind == kIsophote) {
          square_of_gradient(share_);
          trace();
          for (Index i = 0; i < run_; ++i) to[i] = share_[i] * trace_[i] - to[i];
        }
      }
      to += run_;
    }
  }

  // `back`: gradients of the derivatives, from gradients and values of the invariants (kinds, run).
  void pull_back(const T* grads, const T* values, Derivatives& back) {
    const T eps = form_.eps;
    bool first = !form_.needs_first(), second = !form_.needs_second();  // whether these have been written
    auto clear = [&] {
      back.each([&](T* x) { std::fill_n(x, run_, T(0)); }, !first, !second);
      first = second = true;
    };
    for (Index kind : form_.kind) {
      if (kind == kGradient || kind == kAnisotropy) {
        for (Index i = 0; i < run_; ++i) share_[i] = grads[i] / (values[i] + eps);
        if (kind == kAnisotropy && form_.ndim == 3) clear();  // its pairs of axes add up
        bool& written = kind == kGradient ? first : second;
        if (kind == kGradient)
          written ? pull_gradient<true>(back) : pull_gradient<false>(back);
        else
          written ? pull_anisotropy<true>(back) : pull_anisotropy<false>(back);
        written = true;
      } else {
        clear();
        pull_curvature(grads, kind == kFlow ? 1 : -1, back);
        if (kind == kIsophote) pull_product(grads, back);
      }
      grads += run_;
      values += run_;
    }
    clear();
    if (tame_) return;
    // Where a derivative was cut off it does not depend on the map.
    for (Index a = 0; a < form_.ndim; ++a) {
      if (form_.needs_first()) cut(back.first_[a], first_[a]);
      if (form_.needs_second()) cut(back.second_[a], second_[a]);
    }
    if (form_.needs_second())
      for (Index p = 0; p < form_.pairs(); ++p) cut(back.mixed_[p], mixed_[p]);
  }

 private:
  static constexpr T kSmoothing = T(1) / 6;

  T lengthwise() const { return T(0.5) * (1 - 2 * kSmoothing * (form_.ndim - 1)); }
  T spread() const { return form_.ndim == 2 ? 2 : 1; }

  // The last axis runs along rows, the first across planes, the middle one across lines.
  T* tap(const FeatureRows<T>& rows, Index plane, Index line, Index a, Index step, Index b = -1,
         Index other = 0) const {
    std::array<Index, 3> move{};
    for (const auto& [axis, by] : {std::array<Index, 2>{a, step}, std::array<Index, 2>{b, other}})
      if (axis >= 0) move[axis == 0 ? 0 : axis + 3 - form_.ndim] = by * dilation_;
    return rows.nearest(plane + move[0], line + move[1]) + move[2] * rows.features + start_;
  }
  std::array<T*, 4> corners(const FeatureRows<T>& rows, Index plane, Index line, Index a, Index b) const {
    auto at = [&](Index i, Index j) { return tap(rows, plane, line, a, i, b, j); };
    return {at(1, 1), at(-1, -1), at(1, -1), at(-1, 1)};
  }
  template <class Function>
  void each(Function function, bool of_first, bool of_second) {
    for (Index a = 0; a < form_.ndim; ++a) {
      if (of_first) function(first_[a]);
      if (of_second) function(second_[a]);
    }
    if (of_second)
      for (Index p = 0; p < form_.pairs(); ++p) function(mixed_[p]);
  }

  void square_of_gradient(T* to) const {
    const T *x = first_[0], *y = first_[1], *z = first_[2];
    for (Index i = 0; i < run_; ++i) to[i] = x[i] * x[i] + y[i] * y[i];
    if (form_.ndim == 3)
      for (Index i = 0; i < run_; ++i) to[i] += z[i] * z[i];
  }
  void square_of_anisotropy(T* to) const {
    const T unlike = spread() / form_.ndim, both = 2 * spread();
    for (Index p = 0; p < form_.pairs(); ++p) {
      const T *x = second_[kPairs[p][0]], *y = second_[kPairs[p][1]], *m = mixed_[p];
      for (Index i = 0; i < run_; ++i) {
        const T part = (x[i] - y[i]) * (x[i] - y[i]) * unlike + m[i] * m[i] * both;
        to[i] = p ? to[i] + part : part;
      }
    }
  }
  void along_gradient(T* to) const {
    std::fill_n(to, run_, T(0));
    for (Index a = 0; a < form_.ndim; ++a)
      for (Index i = 0; i < run_; ++i) to[i] += first_[a][i] * first_[a][i] * second_[a][i];
    for (Index p = 0; p < form_.pairs(); ++p) {
      const T *x = first_[kPairs[p][0]], *y = first_[kPairs[p][1]], *m = mixed_[p];
      for (Index i = 0; i < run_; ++i) to[i] += 2 * (x[i] * y[i]) * m[i];
    }
  }
  void trace() {
    for (Index i = 0; i < run_; ++i) trace_[i] = second_[0][i] + second_[1][i];
    if (form_.ndim == 3)
      for (Index i = 0; i < run_; ++i) trace_[i] += second_[2][i];
  }

  template <bool kAdd>
  void pull_gradient(Derivatives& back) const {
    for (Index a = 0; a < form_.ndim; ++a) {
      T* to = back.first_[a];
      const T* f = first_[a];
      for (Index i = 0; i < run_; ++i) to[i] = (kAdd ? to[i] : T(0)) + share_[i] * f[i];
    }
  }
  template <bool kAdd>
  void pull_anisotropy(Derivatives& back) const {
    const T unlike = spread() / form_.ndim, both = 2 * spread();
    for (Index p = 0; p < form_.pairs(); ++p) {
      const auto [a, b] = kPairs[p];
      const T *x = second_[a], *y = second_[b], *m = mixed_[p];
      T *of_x = back.second_[a], *of_y = back.second_[b], *of_m = back.mixed_[p];
      for (Index i = 0; i < run_; ++i) {
        const T difference = share_[i] * unlike * (x[i] - y[i]);
        of_x[i] = (kAdd ? of_x[i] : T(0)) + difference;
        of_y[i] = (kAdd ? of_y[i] : T(0)) - difference;
        of_m[i] = (kAdd ? of_m[i] : T(0)) + share_[i] * both * m[i];
      }
    }
  }
  void pull_curvature(const T* grads, T sign, Derivatives& back) const {
    for (Index a = 0; a < form_.ndim; ++a)
      for (Index i = 0; i < run_; ++i) {
        T bent = first_[a][i] * second_[a][i];
        for (Index p = 0; p < form_.pairs(); ++p)
          if (kPairs[p][0] == a || kPairs[p][1] == a) bent += first_[kPairs[p][0] + kPairs[p][1] - a][i] * mixed_[p][i];
        back.first_[a][i] += 2 * sign * grads[i] * bent;
        back.second_[a][i] += sign * grads[i] * first_[a][i] * first_[a][i];
      }
    for (Index p = 0; p < form_.pairs(); ++p) {
      const T *x = first_[kPairs[p][0]], *y = first_[kPairs[p][1]];
      for (Index i = 0; i < run_; ++i) back.mixed_[p][i] += 2 * sign * grads[i] * x[i] * y[i];
    }
  }
  void pull_product(const T* grads, Derivatives& back) {
    square_of_gradient(share_);
    trace();
    for (Index a = 0; a < form_.ndim; ++a)
      for (Index i = 0; i < run_; ++i) {
        back.first_[a][i] += 2 * grads[i] * first_[a][i] * trace_[i];
        back.second_[a][i] += grads[i] * share_[i];
      }
  }
  void cut(T* grad, const T* value) const {
    for (Index i = 0; i < run_; ++i) grad[i] = std::abs(value[i]) < kBound<T> ? grad[i] : T(0);
  }

  const Form& form_;
  Index dilation_, start_, run_;
  std::array<T*, 3> first_{}, second_{}, mixed_{};
  bool tame_ = true;
  T *share_, *trace_;  // room for what is needed in between
};

}  // namespace sre_triton
