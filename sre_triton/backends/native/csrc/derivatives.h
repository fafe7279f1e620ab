// Differences along rows of features and what is made of them, a vector of elements at a time and in registers.

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
  Index reach() const { return *std::max_element(dilation.begin(), dilation.end()); }
  bool has(Kind k) const { return std::find(kind.begin(), kind.end(), k) != kind.end(); }
  bool needs_center() const { return has(kIsophote) || has(kFlow); }
};

// What derivatives are cut off at, so that no product of three of them overflows.
template <class T>
constexpr T kBound = std::is_same_v<T, double> ? T(0x1p300) : T(0x1p40);

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
    T all = 0;  // NaN from the first element that is not small on
    for (Index i = 0; i < width * features; ++i) all += std::abs(row[i]) < kBound<T> / 16 ? T(0) : T(1);
    tame &= all == 0;
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

// A step of -1, 0 or 1 along each axis: first across planes, last along rows, in 3-D across lines in between.
template <int kDims>
using Move = std::array<int, kDims>;

template <int kDims>
constexpr Move<kDims> moved(int a, int step, int b = 0, int other = 0) {
  Move<kDims> move{};
  move[b] = other;
  move[a] = step;
  return move;
}

// Pairs of axes, in the order of mixed derivatives.
template <int kDims>
constexpr int kPairCount = kDims * (kDims - 1) / 2;
constexpr int kPairs[][2] = {{0, 1}, {0, 2}, {1, 2}};

// The rows around one, a dilation away from it.
template <class T, int kDims>
class Around {
 public:
  static constexpr int kRowCount = kDims == 2 ? 3 : 9;

  Around(const FeatureRows<T>& rows, Index dilation, Index plane, Index line) : step_(dilation * rows.features) {
    for (int r = 0; r < kRowCount; ++r)
      row_[r] = kDims == 2 ? rows.nearest(plane + (r - 1) * dilation, line)
                           : rows.nearest(plane + (r / 3 - 1) * dilation, line + (r % 3 - 1) * dilation);
  }
  static constexpr int row_of(const Move<kDims>& m) { return kDims == 2 ? m[0] + 1 : 3 * (m[0] + 1) + m[1] + 1; }
  // The step that leads to row r, and then along it.
  static constexpr Move<kDims> move_to(int r, int along) {
    if constexpr (kDims == 2)
      return {r - 1, along};
    else
      return {r / 3 - 1, r % 3 - 1, along};
  }
  T* row(int r) const { return row_[r]; }
  Vector<T> at(const Move<kDims>& m, Index i) const { return load(row_[row_of(m)] + m[kDims - 1] * step_ + i); }

 private:
  std::array<T*, kRowCount> row_;
  Index step_;
};

// The derivatives of a vector of elements, or gradients of them: by axis, by axis, and by pair of axes. Terms that a
// symmetry of the plane exchanges are rounded alike where it is said (`kAlike`), so that what is made of them turns bit
// by bit; it costs the backward pass a tenth of its time, so that there it is not.
template <class T, int kDims>
struct Derivatives {
  using V = Vector<T>;
  static constexpr int kCount = 2 * kDims + kPairCount<kDims>;
  static constexpr T kSmoothing = T(1) / 6, kAcross = kSmoothing / 2, kMixed = T(0.25);
  static constexpr T kAlong = T(0.5) * (1 - 2 * kSmoothing * (kDims - 1));
  static constexpr T kSpread = kDims == 2 ? 2 : 1;

  V first[kDims] = {}, second[kDims] = {}, mixed[kPairCount<kDims>] = {};

  // Of the elements from number i of a row on. `has_center`: second derivatives are needed one by one, and not only
  // their differences. `is_tame`: none of them can have to be cut off.
  Derivatives(const Around<T, kDims>& near, Index i, bool has_center, bool is_tame) {
    const auto at = [&](int a, int s, int b = 0, int t = 0) { return near.at(moved<kDims>(a, s, b, t), i); };
#pragma GCC unroll 3
    for (int a = 0; a < kDims; ++a) {
      const V ahead = at(a, 1), behind = at(a, -1);
      first[a] = (ahead - behind) * kAlong;
      second[a] = ahead + behind;
      if (has_center) second[a] -= 2 * at(0, 0);
    }
#pragma GCC unroll 3
    for (int p = 0; p < kPairCount<kDims>; ++p) {
      const int a = kPairs[p][0], b = kPairs[p][1];
      const V pp = at(a, 1, b, 1), mm = at(a, -1, b, -1), pm = at(a, 1, b, -1), mp = at(a, -1, b, 1);
      const V u = pp - mm, v = pm - mp;
      first[a] += (u + v) * kAcross;
      first[b] += (u - v) * kAcross;
      mixed[p] = ((pp + mm) - (pm + mp)) * kMixed;
    }
    if (!is_tame) each([](V& d) { d = d < -kBound<T> ? V{} - kBound<T> : d > kBound<T> ? V{} + kBound<T> : d; });
  }
  // None yet.
  Derivatives() = default;

  template <class Function>
  void each(Function function) {
#pragma GCC unroll 3
    for (int a = 0; a < kDims; ++a) function(first[a]), function(second[a]);
#pragma GCC unroll 3
    for (int p = 0; p < kPairCount<kDims>; ++p) function(mixed[p]);
  }

  template <bool kAlike>
  V square_of_gradient() const {
    const auto term = [&](int a) { return alike<kAlike>(first[a] * first[a]); };
    V total = term(0);
#pragma GCC unroll 3
    for (int a = 1; a < kDims; ++a) total += term(a);
    return total;
  }
  V square_of_anisotropy() const {
    V total = {};
#pragma GCC unroll 3
    for (int p = 0; p < kPairCount<kDims>; ++p) {
      const V unlike = second[kPairs[p][0]] - second[kPairs[p][1]];
      total += unlike * unlike * (kSpread / kDims) + mixed[p] * mixed[p] * (2 * kSpread);
    }
    return total;
  }
  template <bool kAlike>
  V along_gradient() const {
    const auto term = [&](int a) { return alike<kAlike>(first[a] * first[a] * second[a]); };
    V total = term(0);
#pragma GCC unroll 3
    for (int a = 1; a < kDims; ++a) total += term(a);
#pragma GCC unroll 3
    for (int p = 0; p < kPairCount<kDims>; ++p) total += 2 * (first[kPairs[p][0]] * first[kPairs[p][1]]) * mixed[p];
    return total;
  }
  V trace() const {
    V total = second[0];
#pragma GCC unroll 3
    for (int a = 1; a < kDims; ++a) total += second[a];
    return total;
  }

  // To values, `stride` elements apart, the invariants of every kind. With gradients of them, as many elements apart,
  // adds gradients of the derivatives to `back`.
  template <bool kBack>
  void invariants(const Form& form, T* values, Index stride, const T* grads, Derivatives* back) const {
    const T eps = form.eps;
    for (Index kind : form.kind) {
      const V grad = kBack ? load(grads) : V{};
      if (kind == kGradient) {
        const V root = square_root(square_of_gradient<!kBack>() + eps * eps);
        store(values, root - eps);
        if (kBack) back->pull_gradient(*this, grad / root);
      } else if (kind == kAnisotropy) {
        const V root = square_root(square_of_anisotropy() + eps * eps);
        store(values, root - eps);
        if (kBack) back->pull_anisotropy(*this, grad / root * kSpread);
      } else if (kind == kFlow) {
        store(values, along_gradient<!kBack>());
        if (kBack) back->pull_flow(*this, grad);
      } else {
        const V square = square_of_gradient<!kBack>(), sum = trace();
        store(values, square * sum - along_gradient<!kBack>());
        if (kBack) {
          back->pull_flow(*this, -grad);
#pragma GCC unroll 3
          for (int a = 0; a < kDims; ++a) {
            back->first[a] += 2 * grad * sum * first[a];
            back->second[a] += grad * square;
          }
        }
      }
      values += stride;
      grads += stride;
    }
  }
  // Where a derivative was cut off it does not depend on the map.
  void cut(const Derivatives& of) {
    const auto cut_one = [](V& grad, const V& value) { grad = (value < kBound<T>)&(value > -kBound<T>) ? grad : V{}; };
#pragma GCC unroll 3
    for (int a = 0; a < kDims; ++a) cut_one(first[a], of.first[a]), cut_one(second[a], of.second[a]);
#pragma GCC unroll 3
    for (int p = 0; p < kPairCount<kDims>; ++p) cut_one(mixed[p], of.mixed[p]);
  }

 private:
  template <bool kAlike>
  static V alike(V v) {
    return kAlike ? rounded(v) : v;
  }
  void pull_gradient(const Derivatives& d, V share) {
#pragma GCC unroll 3
    for (int a = 0; a < kDims; ++a) first[a] += share * d.first[a];
  }
  void pull_anisotropy(const Derivatives& d, V share) {
#pragma GCC unroll 3
    for (int p = 0; p < kPairCount<kDims>; ++p) {
      const int a = kPairs[p][0], b = kPairs[p][1];
      const V unlike = share * (d.second[a] - d.second[b]) * (T(1) / kDims);
      second[a] += unlike;
      second[b] -= unlike;
      mixed[p] += 2 * share * d.mixed[p];
    }
  }
  void pull_flow(const Derivatives& d, V grad) {
#pragma GCC unroll 3
    for (int a = 0; a < kDims; ++a) {
      V bent = d.first[a] * d.second[a];
#pragma GCC unroll 3
      for (int p = 0; p < kPairCount<kDims>; ++p)
        if (kPairs[p][0] == a || kPairs[p][1] == a) bent += d.first[kPairs[p][0] + kPairs[p][1] - a] * d.mixed[p];
      first[a] += 2 * grad * bent;
      second[a] += grad * d.first[a] * d.first[a];
    }
#pragma GCC unroll 3
    for (int p = 0; p < kPairCount<kDims>; ++p) mixed[p] += 2 * grad * d.first[kPairs[p][0]] * d.first[kPairs[p][1]];
  }
};

// Gradients of the derivatives of one row and one scale, between as many zeros as taps reach.
template <class T, int kDims>
class RowGradients {
 public:
  using D = Derivatives<T, kDims>;

  // Room for `run` elements, of which taps lie up to `step` apart.
  static Index size(Index run, Index step) { return D::kCount * pitch(run, step); }
  RowGradients(T* memory, Index run, Index step)
      : data_(memory + 2 * step), run_(run), step_(step), pitch_(pitch(run, step)) {}

  // Before the first row.
  void clear() const { std::fill_n(data_ - 2 * step_, D::kCount * pitch_, T(0)); }
  // Those of the elements from number i on.
  void put(Index i, D& d) const {
    T* to = data_ + i;
    d.each([&](const Vector<T>& v) {
      store(to, v);
      to += pitch_;
    });
  }
  // After the last of a row: what filled its last vector is no gradient.
  void end() const {
    for (int k = 0; k < D::kCount; ++k) std::fill_n(data_ + k * pitch_ + run_, kLanes<T>, T(0));
  }
  // Adds to the gradients of the rows around, in whole vectors from element `from` on and no further than to `to`, what
  // the derivatives contribute: the adjoint of taking them. Returns where it ended.
  Index give(const Around<T, kDims>& near, bool has_center, Index from, Index to) const {
    for (; from + kLanes<T> <= to; from += kLanes<T>) {
#pragma GCC unroll 9
      for (int r = 0; r < Around<T, kDims>::kRowCount; ++r) {
        Vector<T> total = {};
#pragma GCC unroll 3
        for (int along = -1; along <= 1; ++along)
          add_share(total, Around<T, kDims>::move_to(r, along), from - along * step_, has_center);
        T* row = near.row(r) + from;
        store(row, load(row) + total);
      }
    }
    return from;
  }

 private:
  static Index pitch(Index run, Index step) { return run + 4 * step + 2 * kLanes<T>; }

  // What the derivatives of element i and those after it contribute to where a move leads from there.
  void add_share(Vector<T>& total, const Move<kDims>& move, Index i, bool has_center) const {
    int count = 0, axis[kDims] = {};
    for (int a = 0; a < kDims; ++a)
      if (move[a]) axis[count++] = a;
    const int a = axis[0], b = axis[1];
    if (count == 0 && has_center) {
      for (int c = 0; c < kDims; ++c) total -= 2 * second(c, i);
    } else if (count == 1) {
      total += first(a, i) * (move[a] * D::kAlong) + second(a, i);
    } else if (count == 2) {
      total += first(a, i) * (move[a] * D::kAcross) + first(b, i) * (move[b] * D::kAcross);
      total += mixed(a + b - 1, i) * (move[a] * move[b] * D::kMixed);
    }
  }
  // In the order of `D::each`.
  Vector<T> first(int a, Index i) const { return load(data_ + 2 * a * pitch_ + i); }
  Vector<T> second(int a, Index i) const { return load(data_ + (2 * a + 1) * pitch_ + i); }
  Vector<T> mixed(int p, Index i) const { return load(data_ + (2 * kDims + p) * pitch_ + i); }

  T* data_;
  Index run_, step_, pitch_;
};

}  // namespace sre_triton
