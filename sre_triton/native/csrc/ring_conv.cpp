// Ring convolution on the CPU, one tile of output positions at a time: load what the tile reads between zeros,
// add it up to ring sums, multiply them by the ring weights while they are in the cache.
//
// Everything that tells one convolution from another comes as data (see launch.py): the window, the additions, and
// tensors with any strides. Dimensions are always three; those that a 1-D or 2-D convolution lacks have size 1.

#include <torch/library.h>

#include "passes.h"
#include "ring_sums.h"

namespace sre_triton {

template <class S, class T, class P, class F>
void run(const Tensor& source, const Window& w, Index groups, const std::optional<Tensor>& weight,
         const std::optional<Tensor>& bias, const std::optional<Tensor>& y, const std::optional<Tensor>& thin,
         const std::optional<Tensor>& total) {
  const Activation<S> x(source);
  if (x.images * x.channels * w.out[0] * w.out[1] * w.out[2] == 0) return;
  const Tiling tiling = cut(w, x.images, x.channels);
  const Index most = tiling.images * tiling.size[0] * tiling.size[1] * tiling.size[2];

  std::optional<Mixer<S, T, P, F>> mixer;
  std::optional<Gradient<S, T>> gradient;
  if (y) mixer.emplace(*y, *weight, bias, Groups{groups, x.channels / groups, y->size(1) / groups});
  if (thin) gradient.emplace(*thin, *total, Groups{groups, x.channels / groups, thin->size(1) / groups});

  const Index sums_size = w.rings * most * x.channels, products_size = Mixer<S, T, P, F>::products(most);
  const Index rows_size = gradient ? most * gradient->thin_pitch() : 0;
  size_t bytes = Scratch::size<P>(sums_size) + Scratch::size<Index>(most) + Scratch::size<T>(products_size) +
                 Scratch::size<T>(rows_size);
  std::vector<Index> buffer_sizes;
  for (Index level : w.levels) {
    const Triple e = Adder<T, P>::extent(w, tiling.size, level);
    buffer_sizes.push_back(e[0] * e[1] * e[2] * x.channels);
    bytes += Scratch::size<T>(buffer_sizes.back());
  }

  at::parallel_for(0, tiling.count(), 1, [&](Index begin, Index end) {
    scratch.reset(bytes);
    P* sums = scratch.take<P>(sums_size);
    Index* offsets = scratch.take<Index>(most);
    T* products = scratch.take<T>(products_size);
    T* rows = scratch.take<T>(rows_size);
    std::vector<T*> buffers;
    for (Index size : buffer_sizes) buffers.push_back(scratch.take<T>(size));

    for (Index i = begin; i < end; ++i) {
      const Tile tile = tiling.tile(i, x.images, w);
      Adder<T, P> adder(w, x.channels, tile, buffers, sums, tile.positions() * x.channels);
      for (Index n = 0; n < tile.images; ++n) {
        load_input(buffers[0], x, w, tile, tile.image + n);
        adder.add(n);
      }
      if (mixer) mixer->write(tile, sums, x.channels, products, offsets);
      if constexpr (std::is_same_v<T, P>)
        if (gradient) gradient->add(tile, sums, rows);
    }
    scratch.shrink();
  });
  weights_memory.shrink();
}

// y, if given, becomes the product of source's ring sums with weight, plus bias. total, if given, is added the product
// of their transposes with thin; it has one slice per thread.
void ring_conv(const Tensor& source, const Tensor& numbers, const Tensor& factors, Index groups,
               const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& y,
               const std::optional<Tensor>& thin, const std::optional<Tensor>& total) {
  const Window w = read_window(source, numbers, factors);
  auto go = [&](auto s, auto t, auto p, auto f) {
    run<decltype(s), decltype(t), decltype(p), decltype(f)>(source, w, groups, weight, bias, y, thin, total);
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
      if (!total && source.size(1) / groups % 2 == 0)
        return go(at::BFloat16(), float(), at::BFloat16(), BFloat16Pair());
#endif
      return go(at::BFloat16(), float(), float(), float());
    default:
      TORCH_CHECK_TYPE(false, "source must be of a floating type, got ", source.scalar_type());
  }
}

}  // namespace sre_triton

TORCH_LIBRARY(sre_triton_native, m) {
  m.def(
      "ring_conv(Tensor source, Tensor numbers, Tensor factors, int groups, Tensor? weight, Tensor? bias, "
      "Tensor(a!)? y, Tensor? thin, Tensor(b!)? total) -> ()");
  m.impl("ring_conv", c10::DispatchKey::CPU, TORCH_FN(sre_triton::ring_conv));
}
