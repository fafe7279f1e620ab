// Ring convolution on the CPU, one tile of output positions at a time: load what the tile reads between zeros,
// add it up to ring sums, multiply them by the ring weights while they are in the cache.
//
// Everything that tells one convolution from another comes as data (see passes.py): the window, the additions, and
// tensors with any strides. Dimensions are always three; those that a 1-D or 2-D convolution lacks have size 1.

#include <ATen/ops/leaky_relu.h>
#include <torch/library.h>

#include <optional>
#include <utility>
#include <vector>

#include "arguments.h"
#include "depthwise.h"
#include "depthwise_gradients.h"
#include "operators.h"
#include "passes.h"
#include "ring_sums.h"
#include "thin_planes.h"

namespace sre_triton {

Groups channels(const Call& call, const Tensor& other) {
  return {call.groups, call.source.size(1) / call.groups, other.size(1) / call.groups};
}

// What outputs are without inputs.
void fill(const Call& call) {
  const Tensor& y = *call.y;
  y.zero_();
  if (call.bias) y.transpose(1, -1).add_(*call.bias);
  if (call.residual) y.add_(*call.residual);
  if (call.slope) at::leaky_relu_(const_cast<Tensor&>(y), *call.slope);
}

// S: type in memory. T: type of additions and products. F: type of factors, T or pairs of something narrower.
template <class S, class T, class F>
void run(const Call& call, const Window& w) {
  const Activation<S> x(call.source);
  const Index others = (call.y ? *call.y : *call.thin).size(1);
  const bool empty = x.images * x.channels * others * w.out[0] * w.out[1] * w.out[2] == 0;
  if (call.grad && (empty || call.grad->size(2) != static_cast<Index>(w.rings.size()))) clear<S>(*call.grad);
  if (empty) {
    if (call.y) fill(call);
    return;
  }
  if (channels(call, call.y ? *call.y : *call.thin).depthwise() && !call.residual && !call.slope) {
    // A weight gradient wants ring sums, which then serve both.
    if (!call.grad) return weigh_taps<S, T>(call, w);
    if (has_few_plain_rings(w)) return weigh_rings<S, T>(call, w);
  }
  if constexpr (std::is_same_v<S, T>)
    if (!call.grad && are_thin_planes(x, Activation<S>(*call.y), w, call.groups))
      return convolve_thin_planes<S>(call, w);
  const bool in_place = std::is_same_v<S, T> && is_summed_in_place(x, w);
  const Tiling tiling = cut(w, x.images, x.channels, in_place);
  const Index most = tiling.slab(tiling.tile(0, x.images, w), 0, w).positions();
  const Index rings = w.rings.size();
  const bool is_far = call.source.nbytes() > kNearBytes;

  using Factor = FactorOf<T, F>;
  std::optional<Mixer<S, T, F>> mixer;
  std::optional<Gradient<S, T, F>> gradient;
  if (call.y) {
    const RingWeight<S> weight(*call.weight, call.groups, call.transposed, w.rings);
    mixer.emplace(*call.y, weight, call.bias, channels(call, *call.y), Epilogue{call.residual, call.slope});
  }
  if (call.thin) gradient.emplace(*call.thin, rings, channels(call, *call.thin));

  const Index sums_size = rings * most * x.channels, products_size = mixer ? mixer->products(most) : 0;
  size_t bytes = 2 * Scratch::size<Factor>(sums_size) + Scratch::size<Index>(most) + Scratch::size<T>(products_size) +
                 (gradient ? gradient->bytes(most) : 0);
  std::vector<Index> buffer_sizes;
  for (Index level : w.levels) {
    const Triple e = Adder<T, Factor>::extent(w, tiling.size, level);
    const bool is_row = in_place && buffer_sizes.empty();  // of zeros, in place of the input
    buffer_sizes.push_back((is_row ? 1 : e[0] * e[1]) * e[2] * x.channels);
    bytes += Scratch::size<T>(buffer_sizes.back());
  }

  at::parallel_for(0, tiling.count(), 1, [&](Index begin, Index end) {
    scratch.reset(bytes);
    // Of a slab and of the next one.
    Factor *sums = scratch.take<Factor>(sums_size), *next_sums = scratch.take<Factor>(sums_size);
    Index* offsets = scratch.take<Index>(most);
    T* products = scratch.take<T>(products_size);
    std::vector<T*> buffers;
    for (Index size : buffer_sizes) buffers.push_back(scratch.take<T>(size));
    const S* zeros = nullptr;
    if constexpr (std::is_same_v<S, T>)
      if (in_place) {
        std::fill_n(buffers[0], buffer_sizes[0], T(0));
        zeros = std::exchange(buffers[0], nullptr);
      }
    typename Gradient<S, T, F>::Rows rows;
    if (gradient) rows = gradient->take(scratch, most);

    // Slabs of one tile after another. What is read and added up for the next one, whose tile is `tile`, is done while
    // one is multiplied.
    Additions<T, Factor> additions;
    std::optional<Adder<T, Factor>> adder;
    std::optional<InputRows<S>> input;
    Tile tile;
    Index i = begin, row = 0, loaded = 0;  // rows in the split dimension
    auto each_new_row = [&](Index until, const auto& f) {
      for (Index a = w.split == 0 ? loaded : 0; a < (w.split == 0 ? until : input->extent[0]); ++a)
        for (Index b = w.split == 1 ? loaded : 0; b < (w.split == 1 ? until : input->extent[1]); ++b) f(a, b);
    };
    auto load = [&](Index image, Index until) {
      bool waits = false;
      if constexpr (std::is_same_v<S, Factor>) waits = are_runs(x, w) && input->run() >= Additions<T, Factor>::kStep;
      if (!waits && image > 0) additions.finish(), additions.clear();  // what it replaces is read until then
      each_new_row(until, [&](Index a, Index b) {
        T* const to = buffers[0] + (a * input->extent[1] + b) * input->extent[2] * x.channels;
        const S* const from = input->find(tile.image + image, a, b);
        if (!waits) return input->load(to, from);
        if (image == 0) input->clear_around(to, from);  // zeros are where those of all images of the tile are
        if constexpr (std::is_same_v<S, Factor>)
          if (from) additions.copy(to + input->lead(), from, input->run());
      });
    };
    auto fetch = [&](Index image, Index until) {
      each_new_row(until, [&](Index a, Index b) {
        if constexpr (std::is_same_v<S, Factor>)
          if (const S* from = input->find(tile.image + image, a, b)) additions.fetch(from, input->run());
      });
    };
    auto prepare = [&] {
      if (row == 0) {
        tile = tiling.tile(i, x.images, w);
        input.emplace(x, w, tile, zeros);
        if (!adder || adder->tile_size() != tile.size) adder.emplace(w, x.channels, tile.size, buffers);
        loaded = 0;
      }
      const Tile slab = tiling.slab(tile, row, w);
      additions.finish();
      additions.clear();
      if (in_place && row == 0) adder->clear_around(*input);
      row += slab.size[w.split];
      // What it reads, or in place what the next one does.
      const Index until =
          std::min(reads(w, w.split, row + (in_place ? slab.size[w.split] : 0)), input->extent[w.split]);
      for (Index n = 0; n < tile.images; ++n) {
        if (!in_place)
          load(n, until);
        else if (is_far)
          fetch(n, until);
        adder->put(n, tile, slab, next_sums, additions, *input);
      }
      loaded = until;
      if (row == tile.size[w.split]) ++i, row = 0;
      return slab;
    };
    Tile slab = prepare();
    for (bool more = true; more;) {
      additions.finish();
      std::swap(sums, next_sums);
      more = i < end;
      const Tile next = more ? prepare() : slab;
      if (mixer) mixer->write(slab, sums, x.channels, products, offsets, additions);
      if (gradient) gradient->add(slab, sums, rows);
      slab = next;
    }
    scratch.shrink();
  });
  if (gradient) gradient->finish(RingWeight<S>(*call.grad, call.groups, call.transposed, w.rings));
  weights_memory.shrink();
}

// y, if given, becomes the product of source's ring sums with weight, plus bias and residual, and what is negative
// then is multiplied by slope. grad, if given, becomes the product of
// their transposes with thin, the gradient of such a weight.
void ring_conv(const Tensor& source, const Tensor& numbers, const Tensor& factors, Index groups, bool transposed,
               const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& y,
               const std::optional<Tensor>& thin, const std::optional<Tensor>& grad,
               const std::optional<Tensor>& residual, std::optional<double> slope) {
  check_source(source, groups);
  const Window w = read_window(source, numbers, factors);
  if (!y && !grad) return;
  const Call call{source, groups, transposed, weight, bias, y, thin, grad, residual, slope};
  check(call, w);
  if (y) want_large_pages(*y);
  auto go = [&](auto s, auto t, auto f) { run<decltype(s), decltype(t), decltype(f)>(call, w); };
  switch (source.scalar_type()) {
    case at::kFloat:
      return go(float(), float(), float());
    case at::kDouble:
      return go(double(), double(), double());
    case at::kHalf:
      return go(at::Half(), float(), float());
    case at::kBFloat16:
#if defined(__AVX512BF16__)
      if (source.size(1) / groups % 2 == 0) return go(at::BFloat16(), float(), BFloat16Pair());
#endif
      return go(at::BFloat16(), float(), float());
    default:
      TORCH_CHECK_TYPE(false, "source must be of a floating type, got ", source.scalar_type());
  }
}

}  // namespace sre_triton

TORCH_LIBRARY(sre_triton_native, m) {
  m.def(
      "ring_conv(Tensor source, Tensor numbers, Tensor factors, int groups, bool transposed, Tensor? weight, "
      "Tensor? bias, Tensor(a!)? y, Tensor? thin, Tensor(b!)? grad, Tensor? residual, float? slope) -> ()");
  m.impl("ring_conv", c10::DispatchKey::CPU, TORCH_FN(sre_triton::ring_conv));
  // Derivatives are the caller's, who asks for them by name. PyTorch's fallback would look through every argument.
  m.impl("ring_conv", c10::DispatchKey::Autograd, torch::CppFunction::makeFallthrough());
  m.def(
      "add_invariants(Tensor z, Tensor project, Tensor weight, int[] kinds, int[] dilations, float eps, "
      "Tensor(a!) y) -> ()");
  m.def(
      "add_invariants_backward(Tensor grad_y, Tensor z, Tensor project, Tensor weight, int[] kinds, int[] dilations, "
      "float eps, Tensor(a!) grad_z, Tensor(b!) grad_project, Tensor(c!) grad_weight) -> ()");
  m.impl("add_invariants", c10::DispatchKey::CPU, TORCH_FN(sre_triton::add_invariants));
  m.impl("add_invariants_backward", c10::DispatchKey::CPU, TORCH_FN(sre_triton::add_invariants_backward));
}
