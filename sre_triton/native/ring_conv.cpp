// Ring convolution on the CPU, one tile of output positions at a time: load what the tile reads between zeros,
// add it up to ring sums, multiply them by the ring weights while they are in the cache.
//
// Everything that tells one convolution from another comes as data (see launch.py): the window, the additions, and
// tensors with any strides. Dimensions are always three; those that a 1-D or 2-D convolution lacks have size 1.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

using at::Tensor;
using Index = int64_t;
using Triple = std::array<Index, 3>;

// Vectors ----------------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRows = 14;  // 14 x 2 accumulators, 2 vectors of weights and a factor in 32 registers
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kRows = 6;  // of 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kRows = 6;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);
constexpr int kPanelVectors = 2;

template <class T>
inline Vector<T> load(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}
template <class T>
inline void store(T* p, Vector<T> v) {
  *reinterpret_cast<Vector<T>*>(p) = v;
}

inline Index divide_up(Index a, Index b) { return (a + b - 1) / b; }
inline Index round_up(Index a, Index b) { return divide_up(a, b) * b; }

// What the ring sums of a convolution are ---------------------------------------------------------

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
  Index split;  // the dimension whose positions are added up one after the other
  Index rings;
  std::vector<Index> levels;  // of each buffer: how many leading dimensions it is summed over
  std::vector<Node> nodes;
};

Window read_window(const Tensor& source, const Tensor& numbers, const Tensor& factors) {
  const Index* at = numbers.const_data_ptr<Index>();
  const double* factor = factors.const_data_ptr<double>();
  Window w;
  for (Index d = 0; d < 3; ++d) w.in[d] = d < 5 - source.dim() ? 1 : source.size(d - 3 + source.dim());
  for (Triple* t : {&w.out, &w.half, &w.origin, &w.stride, &w.dilation, &w.upsampling}) {
    std::copy_n(at, 3, t->begin());
    at += 3;
  }
  w.split = *at++;
  w.rings = *at++;
  w.levels.resize(*at++);
  for (Index& level : w.levels) level = *at++;
  w.nodes.resize(*at++);
  for (Node& node : w.nodes) {
    node.out = *at++;
    node.ring = *at++;
    node.terms.resize(*at++);
    node.weighed = false;
    for (Term& term : node.terms) {
      term.buffer = *at++;
      std::copy_n(at, 3, term.tap.begin());
      at += 3;
      term.factor = *factor++;
      node.weighed |= term.factor != 1.0;
    }
  }
  return w;
}

// An activation (N, C, *space) in memory.
template <class S>
struct Activation {
  S* data;
  Index images, channels, image_stride, channel_stride;
  Triple stride;

  explicit Activation(const Tensor& t) : data(static_cast<S*>(t.data_ptr())) {
    const Index lacking = 5 - t.dim();
    images = t.size(0);
    channels = t.size(1);
    image_stride = t.stride(0);
    channel_stride = t.stride(1);
    for (Index d = 0; d < 3; ++d) stride[d] = d < lacking ? 0 : t.stride(2 + d - lacking);
  }
};

// Tiles -------------------------------------------------------------------------------------------

struct Tile {
  Index image, images;
  Triple start, size;
  Index positions() const { return images * size[0] * size[1] * size[2]; }
};

// How the output is cut: extents of a tile, and how many lie along each dimension.
struct Tiling {
  Index images;
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
};

// Positions of the padded input that so many outputs read along dimension d. In the last dimension these are rounded
// up to whole strides: a row holds every stride-th position first, then those one further, and so on, so that what
// the outputs of a row read with one tap lies side by side.
Index reads(const Window& w, Index d, Index outputs) {
  const Index n = (outputs - 1) * w.stride[d] + 2 * w.half[d] * w.dilation[d] + 1;
  return d == 2 ? round_up(n, w.stride[d]) : n;
}

// Elements that fit the second-level cache next to the weights.
constexpr Index kSumElements = 96 << 10;
constexpr Index kReadElements = 96 << 10;
constexpr Index kFewestPositions = 48;

Tiling cut(const Window& w, Index images, Index channels) {
  const Index total = images * w.out[0] * w.out[1] * w.out[2];
  const Index tasks = at::get_num_threads() > 1 ? 4 * at::get_num_threads() : 1;
  Index budget = std::max(kFewestPositions, kSumElements / (channels * w.rings));
  budget = std::min(budget, std::max(kFewestPositions / 2, divide_up(total, tasks)));

  // Of all boxes of at most that many positions, the one that reads the fewest elements twice.
  Triple best{1, 1, 1};
  double least = -1;
  auto parts = [](Index n, Index part) { return divide_up(n, part); };
  for (Index a = 1; a <= w.out[2]; a = a < 4 ? a + 1 : a + divide_up(a, 3)) {
    const Index t2 = parts(w.out[2], a);
    for (Index b = 1; b <= w.out[1]; b = b < 4 ? b + 1 : b + divide_up(b, 3)) {
      const Index t1 = parts(w.out[1], b);
      if (t1 * t2 > budget && (t1 > 1 || t2 > 1)) continue;
      const Index t0 = parts(w.out[0], parts(w.out[0], std::max<Index>(1, budget / (t1 * t2))));
      const double read = double(reads(w, 0, t0)) * reads(w, 1, t1) * reads(w, 2, t2);
      const bool fits = read * channels <= kReadElements;
      // Short rows make short vector loops.
      const double cost = (read / (t0 * t1 * t2) + 4.0 / t2) * (fits ? 1 : 2);
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
  return t;
}

// Memory of one thread, kept from call to call unless it is large: fresh pages would cost more than the additions.
class Scratch {
 public:
  template <class T>
  static size_t size(Index elements) {
    return round_up(elements * sizeof(T) + 2 * kVectorBytes, 64);
  }
  template <class T>
  T* take(Index elements) {
    const size_t begin = used_;
    used_ += size<T>(elements);
    TORCH_INTERNAL_ASSERT(used_ <= size_);
    return reinterpret_cast<T*>(round_up(reinterpret_cast<Index>(memory_.get()), 64) + begin);
  }
  void reset(size_t bytes) {
    if (size_ < bytes) {
      memory_.reset(new char[bytes + 64]);
      size_ = bytes;
    }
    used_ = 0;
  }
  void shrink() {
    if (size_ > kKeptBytes) {
      memory_.reset();
      size_ = 0;
    }
  }

 private:
  static constexpr size_t kKeptBytes = 16 << 20;
  std::unique_ptr<char[]> memory_;
  size_t size_ = 0, used_ = 0;
};

thread_local Scratch weights_memory;
thread_local Scratch scratch;

// Copying -----------------------------------------------------------------------------------------

// Conversions are written so that the compiler can make vector loops of them.
template <class T, class S>
inline T cast_to(S value) {
  if constexpr (std::is_same_v<T, at::BFloat16> && !std::is_same_v<S, at::BFloat16>) {
    const float narrow = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &narrow, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    return at::BFloat16(static_cast<uint16_t>(nan ? 0x7fc0 : rounded), at::BFloat16::from_bits());
  } else if constexpr (std::is_same_v<S, at::BFloat16> && !std::is_same_v<T, at::BFloat16>) {
    const uint32_t bits = static_cast<uint32_t>(value.x) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return static_cast<T>(wide);
  } else {
    return static_cast<T>(value);
  }
}

template <class T, class S>
inline void copy_run(T* to, const S* from, Index n) {
  if constexpr (std::is_same_v<T, S>) {
    std::memcpy(to, from, n * sizeof(T));
  } else {
    for (Index i = 0; i < n; ++i) to[i] = cast_to<T>(from[i]);
  }
}

// Exchanges every second block of kStep rows of a square of vectors with the columns that it is to become.
template <int kStep, class V, size_t... kLane>
inline void exchange(V* rows, std::index_sequence<kLane...>) {
  constexpr size_t kCount = sizeof...(kLane);
  for (size_t i = 0; i < kCount; ++i) {
    if (i & kStep) continue;
    const V a = rows[i], b = rows[i + kStep];
    rows[i] = __builtin_shufflevector(a, b, (kLane & kStep ? kCount + kLane - kStep : kLane)...);
    rows[i + kStep] = __builtin_shufflevector(a, b, (kLane & kStep ? kCount + kLane : kLane + kStep)...);
  }
  if constexpr (2 * kStep < kCount) exchange<2 * kStep>(rows, std::make_index_sequence<kCount>());
}

// row_of(c)[r] = from[r * from_pitch + c] for all rows r and columns c; T is the type in between.
template <class T, class RowOf, class From>
void transpose(RowOf row_of, const From* from, Index from_pitch, Index rows, Index columns) {
  constexpr Index kSide = kLanes<T>;
  for (Index r = 0; r < rows; r += kSide)
    for (Index c = 0; c < columns; c += kSide) {
      const From* source = from + r * from_pitch + c;
      if (r + kSide > rows || c + kSide > columns) {
        for (Index i = 0; i < std::min(kSide, rows - r); ++i)
          for (Index j = 0; j < std::min(kSide, columns - c); ++j)
            copy_run(row_of(c + j) + r + i, source + i * from_pitch + j, 1);
        continue;
      }
      Vector<T> square[kSide];
      alignas(kVectorBytes) T one[kSide];
      for (Index i = 0; i < kSide; ++i) {
        copy_run(one, source + i * from_pitch, kSide);
        square[i] = load(one);
      }
      exchange<1>(square, std::make_index_sequence<kSide>());
      for (Index j = 0; j < kSide; ++j) {
        store(one, square[j]);
        copy_run(row_of(c + j) + r, one, kSide);
      }
    }
}

// `count` positions of all channels, `step` elements apart, to rows `pitch` apart.
template <class T, class S>
void copy_positions(T* to, Index pitch, const S* from, Index step, Index count, Index channels, Index channel_stride) {
  if (channel_stride == 1) {
    if (step == channels && pitch == channels) return copy_run(to, from, count * channels);
    for (Index i = 0; i < count; ++i) copy_run(to + i * pitch, from + i * step, channels);
  } else if (step == 1) {
    transpose<T>([=](Index i) { return to + i * pitch; }, from, channel_stride, channels, count);
  } else {
    for (Index i = 0; i < count; ++i)
      for (Index c = 0; c < channels; ++c) to[i * pitch + c] = cast_to<T>(from[i * step + c * channel_stride]);
  }
}

// What one image of a tile reads, zeros where the input has nothing.
template <class T, class S>
void load_input(T* to, const Activation<S>& x, const Window& w, const Tile& tile, Index image) {
  Triple extent, begin, first, last;
  for (Index d = 0; d < 3; ++d) {
    extent[d] = reads(w, d, tile.size[d]);
    begin[d] = tile.start[d] * w.stride[d] + w.origin[d];
    first[d] = std::max<Index>(0, begin[d] <= 0 ? 0 : divide_up(begin[d], w.upsampling[d]));
    const Index end = begin[d] + extent[d] - 1;
    last[d] = end < 0 ? -1 : std::min(end / w.upsampling[d], w.in[d] - 1);
  }
  const Index pitch = extent[2] * x.channels;
  const Index gap = w.upsampling[2], step = w.stride[2];  // one of them is 1
  for (Index i = 0; i < extent[0]; ++i) {
    for (Index j = 0; j < extent[1]; ++j, to += pitch) {
      const Index u0 = begin[0] + i, u1 = begin[1] + j;
      const bool inside = u0 >= 0 && u1 >= 0 && u0 % w.upsampling[0] == 0 && u1 % w.upsampling[1] == 0 &&
                          u0 / w.upsampling[0] < w.in[0] && u1 / w.upsampling[1] < w.in[1] && first[2] <= last[2];
      if (!inside) {
        std::fill_n(to, pitch, T(0));
        continue;
      }
      const S* row = x.data + image * x.image_stride + u0 / w.upsampling[0] * x.stride[0] +
                     u1 / w.upsampling[1] * x.stride[1];
      const Index lead = first[2] * gap - begin[2], count = last[2] - first[2] + 1;
      row += first[2] * x.stride[2];
      if (step == 1 && gap == 1) {
        std::fill_n(to, lead * x.channels, T(0));
        copy_positions(to + lead * x.channels, x.channels, row, x.stride[2], count, x.channels, x.channel_stride);
        std::fill_n(to + (lead + count) * x.channels, (extent[2] - lead - count) * x.channels, T(0));
        continue;
      }
      std::fill_n(to, pitch, T(0));
      for (Index phase = 0; phase < step; ++phase) {
        const Index skipped = ((phase - lead) % step + step) % step;
        if (skipped >= count) continue;
        T* place = to + (phase * (extent[2] / step) + (lead + skipped) / step) * x.channels;
        copy_positions(place, gap * x.channels, row + skipped * x.stride[2], step * x.stride[2],
                       divide_up(count - skipped, step), x.channels, x.channel_stride);
      }
    }
  }
}

// The tile's positions of an activation, one row of `pitch` elements each.
template <class T, class S>
void load_positions(T* to, Index pitch, const Activation<S>& a, const Tile& tile) {
  for (Index n = tile.image; n < tile.image + tile.images; ++n)
    for (Index i = tile.start[0]; i < tile.start[0] + tile.size[0]; ++i)
      for (Index j = tile.start[1]; j < tile.start[1] + tile.size[1]; ++j) {
        const S* row = a.data + n * a.image_stride + i * a.stride[0] + j * a.stride[1] + tile.start[2] * a.stride[2];
        copy_positions(to, pitch, row, a.stride[2], tile.size[2], a.channels, a.channel_stride);
        to += tile.size[2] * pitch;
      }
}

// Adding ------------------------------------------------------------------------------------------

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

// Multiplying -------------------------------------------------------------------------------------

// Pairs of bfloat16 factors that one instruction multiplies and adds up in float32.
struct BFloat16Pair {
  at::BFloat16 value[2];
};

// Factors are T itself or pairs of narrower numbers; products are added up in T.
template <class T>
inline void multiply_add(Vector<T>& sum, const T* factor, Vector<T> weights) {
  sum += *factor * weights;
}

#if defined(__AVX512BF16__)
inline void multiply_add(Vector<float>& sum, const BFloat16Pair* factor, Vector<float> weights) {
  int both;
  std::memcpy(&both, factor, sizeof both);
  sum = (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(both), (__m512bh)(__m512)weights);
}
#endif

// out (kHeight, kWidth vectors) = start + sums (kHeight positions, rings x depth) weights (rings x depth, kWidth vectors)
template <class T, class F, int kHeight, int kWidth>
__attribute__((noinline)) void mix_block(const F* sums, Index position_stride, Index ring_stride, Index rings, Index depth,
                                         const T* weights, const T* start, T* out) {
  constexpr int kGroups = (kHeight + 2) / 3;
  Vector<T> sum[kHeight][kWidth];
  for (int r = 0; r < kHeight; ++r)
    for (int v = 0; v < kWidth; ++v) sum[r][v] = load(start + v * kLanes<T>);
  for (Index ring = 0; ring < rings; ++ring) {
    // Three rows share a pointer: fourteen would not fit the registers.
    const F* rows[kGroups];
    for (int g = 0; g < kGroups; ++g) rows[g] = sums + ring * ring_stride + 3 * g * position_stride;
    for (Index c = 0; c < depth; ++c) {
      Vector<T> weight[kWidth];
      for (int v = 0; v < kWidth; ++v) weight[v] = load(weights + v * kLanes<T>);
      weights += kWidth * kLanes<T>;
#pragma GCC unroll 16
      for (int r = 0; r < kHeight; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kWidth; ++v)
          multiply_add(sum[r][v], rows[r / 3] + r % 3 * position_stride + c, weight[v]);
    }
  }
  for (int r = 0; r < kHeight; ++r)
    for (int v = 0; v < kWidth; ++v) store(out + (r * kWidth + v) * kLanes<T>, sum[r][v]);
}

// Terms of a weight gradient that are added up before they join the rest: rounding errors grow with such runs.
constexpr Index kAddedInTurn = 64;

// grad (kHeight channels, kWidth vectors) += sums (P, kHeight channels)^T thin (P, kWidth vectors)
template <class T, int kHeight, int kWidth>
__attribute__((noinline)) void grad_block(const T* sums, Index sums_pitch, const T* thin, Index thin_pitch, Index positions, T* grad,
                                          Index grad_pitch) {
  Vector<T> total[kHeight][kWidth] = {};
  for (Index p = 0; p < positions; ++p, sums += sums_pitch, thin += thin_pitch) {
    Vector<T> right[kWidth];
    for (int v = 0; v < kWidth; ++v) right[v] = load(thin + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < kHeight; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kWidth; ++v) total[r][v] += sums[r] * right[v];
  }
  for (int r = 0; r < kHeight; ++r)
    for (int v = 0; v < kWidth; ++v) {
      T* to = grad + r * grad_pitch + v * kLanes<T>;
      store(to, load(to) + total[r][v]);
    }
}

template <class T, class F>
using MixBlock = void (*)(const F*, Index, Index, Index, Index, const T*, const T*, T*);
template <class T>
using GradBlock = void (*)(const T*, Index, const T*, Index, Index, T*, Index);

template <class T, class F, int kWidth, int... kHeights>
MixBlock<T, F> mix_block_of(Index height, std::integer_sequence<int, kHeights...>) {
  static constexpr MixBlock<T, F> blocks[] = {mix_block<T, F, kHeights + 1, kWidth>...};
  return blocks[height - 1];
}
template <class T, int kWidth, int... kHeights>
GradBlock<T> grad_block_of(Index height, std::integer_sequence<int, kHeights...>) {
  static constexpr GradBlock<T> blocks[] = {grad_block<T, kHeights + 1, kWidth>...};
  return blocks[height - 1];
}

using Heights = std::make_integer_sequence<int, kRows>;

// Heights of the blocks that `rows` are cut into: as few and as equal as can be.
inline Index balanced(Index rows, Index done, Index blocks_left) { return divide_up(rows - done, blocks_left); }

// Columns of one group's weights, in panels of two vectors; the last may have one.
template <class T>
struct Panels {
  Index columns;
  Index count() const { return divide_up(columns, kPanelVectors * kLanes<T>); }
  Index start(Index panel) const { return panel * kPanelVectors * kLanes<T>; }
  Index vectors(Index panel) const {
    return std::min<Index>(kPanelVectors, divide_up(columns - start(panel), kLanes<T>));
  }
  Index padded() const { return round_up(columns, kLanes<T>); }
};

// One panel of ring weights (rings, inputs, columns), any strides: to[b, c, o] = from[b * sb + c * sc + o * so], rows
// `width` apart.
template <class T, class S>
void pack_panel(T* to, Index width, const S* from, Index rings, Index inputs, Index columns, Index sb, Index sc, Index so) {
  auto row_of = [=](Index b, Index c) { return to + (b * inputs + c) * width; };
  if (sb == 1 && sc == rings)  // the memory of one output holds all rows
    return transpose<T>([=](Index i) { return row_of(i % rings, i / rings); }, from, so, columns, rings * inputs);
  for (Index c = 0; c < inputs; ++c)
    for (Index b = 0; b < rings; ++b) {
      T* row = row_of(b, c);
      for (Index o = 0; o < columns; ++o) row[o] = cast_to<T>(from[b * sb + c * sc + o * so]);
    }
}

// Rows of bfloat16 numbers, held as float, to half as many rows of pairs.
template <class T>
void pair_rows(T* to, const T* from, Index pairs, Index width) {
  for (Index p = 0; p < pairs; ++p, to += width, from += 2 * width)
    for (Index o = 0; o < width; ++o) {
      uint32_t first, second;
      std::memcpy(&first, from + o, sizeof first);
      std::memcpy(&second, from + width + o, sizeof second);
      const uint32_t both = (first >> 16) | (second & 0xffff0000u);
      std::memcpy(to + o, &both, sizeof both);
    }
}

// Ring weights (groups, rings, inputs, outputs) as panels: all rows of the first columns, then those of the next. What
// lies in the columns that fill the last vector does not matter: it only meets itself.
template <class T, class F, class S>
T* pack(const Tensor& weight, Panels<T> panels) {
  constexpr bool kPairs = std::is_same_v<F, BFloat16Pair>;
  const Index groups = weight.size(0), rings = weight.size(1), inputs = weight.size(2);
  const Index rows = rings * inputs / (kPairs ? 2 : 1);
  const Index sg = weight.stride(0), sb = weight.stride(1), sc = weight.stride(2), so = weight.stride(3);
  const S* source = static_cast<const S*>(weight.const_data_ptr());
  weights_memory.reset(Scratch::size<T>(groups * rows * panels.padded()));
  T* const packed = weights_memory.take<T>(groups * rows * panels.padded());
  at::parallel_for(0, groups * panels.count(), 1, [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index group = task / panels.count(), panel = task % panels.count();
      const Index width = panels.vectors(panel) * kLanes<T>, first = panels.start(panel);
      const Index columns = std::min(width, panels.columns - first);
      T* to = packed + (group * panels.padded() + first) * rows;
      const S* from = source + group * sg + first * so;
      if constexpr (kPairs) {
        scratch.reset(Scratch::size<T>(2 * rows * width));
        T* singles = scratch.take<T>(2 * rows * width);
        pack_panel(singles, width, from, rings, inputs, columns, sb, sc, so);
        pair_rows(to, singles, rows, width);
      } else {
        pack_panel(to, width, from, rings, inputs, columns, sb, sc, so);
      }
    }
  });
  return packed;
}

// Rows of outputs, one per position of the tile from `first` on, to their places in y.
template <class T, class S>
void store_rows(const T* rows, Index pitch, const Activation<S>& y, const Index* offsets, Index count, Index channel,
                Index columns) {
  S* base = y.data + channel * y.channel_stride;
  if (y.channel_stride == 1) {
    for (Index r = 0; r < count; ++r) copy_run(base + offsets[r], rows + r * pitch, columns);
    return;
  }
  for (Index begin = 0, end; begin < count; begin = end) {
    end = begin + 1;
    while (end < count && offsets[end] == offsets[end - 1] + 1) ++end;
    S* run = base + offsets[begin];
    transpose<T>([&](Index c) { return run + c * y.channel_stride; }, rows + begin * pitch, pitch, end - begin, columns);
  }
}

// Elements from y.data to each of the tile's positions.
template <class S>
void locate(Index* offsets, const Activation<S>& y, const Tile& tile) {
  for (Index n = tile.image; n < tile.image + tile.images; ++n)
    for (Index i = tile.start[0]; i < tile.start[0] + tile.size[0]; ++i)
      for (Index j = tile.start[1]; j < tile.start[1] + tile.size[1]; ++j)
        for (Index k = tile.start[2]; k < tile.start[2] + tile.size[2]; ++k)
          *offsets++ = n * y.image_stride + i * y.stride[0] + j * y.stride[1] + k * y.stride[2];
}

// The operator ------------------------------------------------------------------------------------

// S: type in memory. T: type of additions and of their products' sums. P: type of ring sums. F: type of factors, P or
// pairs of it.
template <class S, class T, class P, class F>
void run(const Tensor& source, const Window& w, Index groups, const std::optional<Tensor>& weight,
         const std::optional<Tensor>& bias, const std::optional<Tensor>& y, const std::optional<Tensor>& thin,
         const std::optional<Tensor>& grad) {
  constexpr Index kPair = sizeof(F) / sizeof(P);
  const Activation<S> x(source);
  if (x.images * x.channels * w.out[0] * w.out[1] * w.out[2] == 0) return;
  const Index depth = x.channels / groups;
  const Tiling tiling = cut(w, x.images, x.channels);
  const Index most = tiling.images * tiling.size[0] * tiling.size[1] * tiling.size[2];

  std::optional<Activation<S>> to, left;
  Panels<T> outputs{0}, lefts{0};
  std::vector<T> starts;
  T* packed = nullptr;
  if (y) {
    to.emplace(*y);
    outputs.columns = to->channels / groups;
    packed = pack<T, F, S>(*weight, outputs);
    starts.assign(groups * outputs.padded() + kPanelVectors * kLanes<T>, T(0));
    if (bias)
      for (Index o = 0; o < to->channels; ++o)
        starts[o / outputs.columns * outputs.padded() + o % outputs.columns] =
            cast_to<T>(static_cast<const S*>(bias->const_data_ptr())[o]);
  }
  if (thin) {
    left.emplace(*thin);
    lefts.columns = left->channels / groups;
  }
  const Index thin_pitch = thin ? round_up(left->channels, kLanes<T>) : 0;

  std::vector<Index> buffer_sizes;
  for (Index level : w.levels) {
    const Triple e = Adder<T, P>::extent(w, tiling.size, level);
    buffer_sizes.push_back(e[0] * e[1] * e[2] * x.channels);
  }
  size_t bytes = Scratch::size<P>(w.rings * most * x.channels) + Scratch::size<Index>(most) +
                 Scratch::size<T>(most * kPanelVectors * kLanes<T>) + Scratch::size<T>(most * thin_pitch);
  for (Index size : buffer_sizes) bytes += Scratch::size<T>(size);

  at::parallel_for(0, tiling.count(), 1, [&](Index begin, Index end) {
    scratch.reset(bytes);
    P* sums = scratch.take<P>(w.rings * most * x.channels);
    Index* offsets = scratch.take<Index>(most);
    T* products = scratch.take<T>(most * kPanelVectors * kLanes<T>);
    T* rows = scratch.take<T>(most * thin_pitch);
    std::vector<T*> buffers;
    for (Index size : buffer_sizes) buffers.push_back(scratch.take<T>(size));

    for (Index i = begin; i < end; ++i) {
      const Tile tile = tiling.tile(i, x.images, w);
      const Index positions = tile.positions(), ring_stride = positions * x.channels;
      Adder<T, P> adder(w, x.channels, tile, buffers, sums, ring_stride);
      for (Index n = 0; n < tile.images; ++n) {
        load_input(buffers[0], x, w, tile, tile.image + n);
        adder.add(n);
      }

      if (y) {
        locate(offsets, *to, tile);
        const Index blocks = divide_up(positions, kRows);
        for (Index g = 0; g < groups; ++g)
          for (Index panel = 0; panel < outputs.count(); ++panel) {
            const Index first = outputs.start(panel), vectors = outputs.vectors(panel);
            const T* weights = packed + (g * outputs.padded() + first) * w.rings * (depth / kPair);
            const T* start = starts.data() + g * outputs.padded() + first;
            const Index width = vectors * kLanes<T>;
            for (Index b = 0, p = 0; b < blocks; ++b) {
              const Index height = balanced(positions, p, blocks - b);
              const auto mix = vectors == 1 ? mix_block_of<T, F, 1>(height, Heights()) : mix_block_of<T, F, 2>(height, Heights());
              mix(reinterpret_cast<const F*>(sums + p * x.channels + g * depth), x.channels / kPair, ring_stride / kPair,
                  w.rings, depth / kPair, weights, start, products + p * width);
              p += height;
            }
            store_rows(products, width, *to, offsets, positions, g * outputs.columns + first,
                       std::min(width, outputs.columns - first));
          }
      }
      if constexpr (std::is_same_v<T, F>) {
        if (!grad) continue;
        load_positions(rows, thin_pitch, *left, tile);
        const Index pitch = lefts.padded();
        T* totals = grad->mutable_data_ptr<T>() + at::get_thread_num() * w.rings * x.channels * pitch;
        const Index blocks = divide_up(depth, kRows);
        for (Index g = 0; g < groups; ++g)
          for (Index ring = 0; ring < w.rings; ++ring)
            for (Index b = 0, c = 0; b < blocks; ++b) {
              const Index height = balanced(depth, c, blocks - b);
              for (Index panel = 0; panel < lefts.count(); ++panel) {
                const Index first = lefts.start(panel);
                const auto add = lefts.vectors(panel) == 1 ? grad_block_of<T, 1>(height, Heights())
                                                           : grad_block_of<T, 2>(height, Heights());
                for (Index p = 0; p < positions; p += kAddedInTurn)
                  add(sums + ring * ring_stride + p * x.channels + g * depth + c, x.channels,
                      rows + p * thin_pitch + g * lefts.columns + first, thin_pitch,
                      std::min(kAddedInTurn, positions - p),
                      totals + (ring * x.channels + g * depth + c) * pitch + first, pitch);
              }
              c += height;
            }
      }
    }
    scratch.shrink();
  });
  weights_memory.shrink();
}

// y, if given, becomes the product of source's ring sums with weight, plus bias. grad, if given, is added the product
// of their transposes with thin; it has one slice per thread.
void ring_conv(const Tensor& source, const Tensor& numbers, const Tensor& factors, Index groups,
               const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& y,
               const std::optional<Tensor>& thin, const std::optional<Tensor>& grad) {
  const Window w = read_window(source, numbers, factors);
  auto go = [&](auto s, auto t, auto p, auto f) {
    run<decltype(s), decltype(t), decltype(p), decltype(f)>(source, w, groups, weight, bias, y, thin, grad);
  };
  switch (source.scalar_type()) {
    case at::kFloat:
      return go(float(), float(), float(), float());
    case at::kDouble:
      return go(double(), double(), double(), double());
    case at::kHalf:
      return go(at::Half(), float(), float(), float());
    case at::kBFloat16:
#if defined(__AVX512BF16__)
      if (!grad && source.size(1) / groups % 2 == 0)
        return go(at::BFloat16(), float(), at::BFloat16(), BFloat16Pair());
#endif
      return go(at::BFloat16(), float(), float(), float());
    default:
      TORCH_CHECK_TYPE(false, "source must be of a floating type, got ", source.scalar_type());
  }
}

}  // namespace

TORCH_LIBRARY(sre_triton_native, m) {
  m.def(
      "ring_conv(Tensor source, Tensor numbers, Tensor factors, int groups, Tensor? weight, Tensor? bias, "
      "Tensor(a!)? y, Tensor? thin, Tensor(b!)? grad) -> ()");
  m.impl("ring_conv", c10::DispatchKey::CPU, TORCH_FN(ring_conv));
}
