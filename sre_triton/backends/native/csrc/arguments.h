// What a call may be given: everything that the kernel relies on is checked before memory is touched.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

#include "window.h"

namespace sre_triton {

// Tensors of one call; those that it does not need are undefined.
struct Call {
  const Tensor& source;
  Index groups;
  bool transposed;  // the convolution's outputs are summed over rings, not its inputs
  const std::optional<Tensor>&weight, &bias, &y;
  const std::optional<Tensor>&thin, &grad, &residual;
  std::optional<double> slope;
};

// A list of numbers that is read one after the other, never beyond its end.
class Numbers {
 public:
  explicit Numbers(const Tensor& t) : at_(t.const_data_ptr<Index>()), end_(at_ + t.numel()) {}

  Index next(const char* what, Index least, Index most) {
    TORCH_CHECK_VALUE(at_ < end_, "numbers ends before ", what);
    TORCH_CHECK_VALUE(least <= *at_ && *at_ <= most, "numbers: ", what, " must be between ", least, " and ", most,
                      ", got ", *at_);
    return *at_++;
  }
  // How many entries follow; no more than there are numbers.
  Index count(const char* what, Index least) { return next(what, least, end_ - at_); }
  bool at_end() const { return at_ == end_; }

 private:
  const Index *at_, *end_;
};

inline void check_list(const Tensor& t, const char* name, at::ScalarType type) {
  TORCH_CHECK_TYPE(t.scalar_type() == type, name, " must be of type ", type, ", got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.device().is_cpu() && t.dim() == 1 && t.is_contiguous(), name,
                    " must be a contiguous 1-D tensor on the CPU, got shape ", t.sizes(), " on ", t.device());
}

inline Window read_window(const Tensor& source, const Tensor& numbers, const Tensor& factors) {
  check_list(numbers, "numbers", at::kLong);
  check_list(factors, "factors", at::kDouble);
  constexpr Index kMost = Index(1) << 31, kMostTaps = Index(1) << 20;  // so that no position overflows
  Numbers list(numbers);
  const double *factor = factors.const_data_ptr<double>(), *const last_factor = factor + factors.numel();
  Window w;
  for (Index d = 0; d < 3; ++d) w.in[d] = d < 5 - source.dim() ? 1 : source.size(d - 3 + source.dim());
  for (Index& n : w.out) n = list.next("output size", 0, kMost);
  for (Index& n : w.half) n = list.next("half", 0, kMostTaps);
  for (Index& n : w.origin) n = list.next("origin", -kMost * kMostTaps, kMost * kMostTaps);
  for (Index& n : w.stride) n = list.next("stride", 1, kMost);
  for (Index& n : w.dilation) n = list.next("dilation", 1, kMost);
  for (Index& n : w.upsampling) n = list.next("upsampling", 1, kMost);
  TORCH_CHECK_VALUE(w.stride[2] == 1 || w.upsampling[2] == 1, "numbers: stride and upsampling exclude each other");
  w.split = list.next("split", 0, 1);
  w.rings.resize(list.count("number of rings", 1));
  for (Index& ring : w.rings) ring = list.next("ring", 0, kMost);
  w.levels.resize(list.count("number of buffers", 1));
  const Index buffers = w.levels.size(), rings = w.rings.size();
  for (Index& level : w.levels) level = list.next("level", 0, 3);
  const Index lacking = 5 - source.dim();
  TORCH_CHECK_VALUE(w.levels[0] <= lacking, "numbers: the level of buffer 0, the input, must be at most ", lacking,
                    ", got ", w.levels[0]);
  for (Index d = 0; d < lacking; ++d)
    TORCH_CHECK_VALUE(w.out[d] == 1 && w.half[d] == 0, "numbers: output size and half of dimension ", d,
                      " must be 1 and 0 for a source of shape ", source.sizes(), ", got ", w.out[d], " and ",
                      w.half[d]);
  w.nodes.resize(list.count("number of sums", 0));
  for (Node& node : w.nodes) {
    node.out = list.next("buffer of a sum", 0, kMost);
    node.ring = list.next("ring of a sum", -1, rings - 1);
    // The input is read by every sum, and written by none.
    TORCH_CHECK_VALUE(node.ring >= 0 || (0 < node.out && node.out < buffers), "numbers: a sum must go to buffer 1 to ",
                      buffers - 1, ", got ", node.out);
    const Index level = node.ring >= 0 ? 3 : w.levels[node.out];
    node.terms.resize(list.count("number of terms", 1));
    node.weighed = false;
    for (Term& term : node.terms) {
      term.buffer = list.next("buffer of a term", 0, buffers - 1);
      TORCH_CHECK_VALUE(w.levels[term.buffer] <= level, "numbers: a sum of level ", level,
                        " cannot read a buffer of level ", w.levels[term.buffer]);
      for (Index d = 0; d < 3; ++d) term.tap[d] = list.next("tap", -w.half[d], w.half[d]);
      TORCH_CHECK_VALUE(factor < last_factor, "factors ends before the last term");
      term.factor = *factor++;
      node.weighed |= term.factor != 1.0;
    }
  }
  TORCH_CHECK_VALUE(list.at_end() && factor == last_factor, "numbers or factors go on after the last term");
  return w;
}

inline void check_size(const Tensor& t, const char* name, at::IntArrayRef want) {
  TORCH_CHECK_VALUE(t.sizes() == want, name, " must have shape ", want, ", got ", t.sizes());
}

// An activation of the outputs' size that has a multiple of `groups` channels.
inline void check_activation(const Tensor& t, const char* name, const Call& call, const Window& w) {
  const Index ndim = call.source.dim() - 2;
  TORCH_CHECK_VALUE(t.dim() == ndim + 2, name, " must have as many dimensions as source, ", ndim + 2, ", got shape ",
                    t.sizes());
  TORCH_CHECK_VALUE(t.size(1) % call.groups == 0, name, " must have a multiple of groups=", call.groups,
                    " channels, got shape ", t.sizes());
  at::DimVector want{call.source.size(0), t.size(1)};
  for (Index d = 3 - ndim; d < 3; ++d) want.push_back(w.out[d]);
  check_size(t, name, want);
}

// Ring weights of a convolution between `source` and `other`.
inline void check_weight(const Tensor& t, const char* name, const Call& call, const Tensor& other, const Window& w) {
  const Index outputs = (call.transposed ? call.source : other).size(1);
  const Index inputs = (call.transposed ? other : call.source).size(1) / call.groups;
  TORCH_CHECK_VALUE(t.dim() == 3, name, " must have 3 dimensions, got shape ", t.sizes());
  check_size(t, name, {outputs, inputs, t.size(2)});
  for (Index ring : w.rings)
    TORCH_CHECK_VALUE(ring < t.size(2), name, " must have rings up to number ", ring, ", got shape ", t.sizes());
}

// Raises TypeError or ValueError unless the tensors fit together and the window.
inline void check(const Call& call, const Window& w) {
  struct Named {
    const std::optional<Tensor>& tensor;
    const char* name;
  };
  const Tensor& source = call.source;
  for (const Named& other : {Named{call.weight, "weight"}, Named{call.bias, "bias"}, Named{call.y, "y"},
                             Named{call.thin, "thin"}, Named{call.grad, "grad"}, Named{call.residual, "residual"}}) {
    if (!other.tensor) continue;
    TORCH_CHECK_TYPE(other.tensor->scalar_type() == source.scalar_type(), other.name, " must be of source's type ",
                     source.scalar_type(), ", got ", other.tensor->scalar_type());
    TORCH_CHECK_VALUE(other.tensor->device().is_cpu() && other.tensor->layout() == at::kStrided, other.name,
                      " must be a dense tensor on the CPU, got ", other.tensor->layout(), " on ",
                      other.tensor->device());
  }
  TORCH_CHECK_VALUE(source.size(1) % call.groups == 0, "source must have a multiple of groups=", call.groups,
                    " channels, got shape ", source.sizes());
  TORCH_CHECK_VALUE(call.y.has_value() == call.weight.has_value(), "y and weight go together");
  TORCH_CHECK_VALUE(call.thin.has_value() == call.grad.has_value(), "thin and grad go together");
  TORCH_CHECK_VALUE(call.y || !call.bias, "bias goes with y");
  TORCH_CHECK_VALUE(call.y || !call.residual, "residual goes with y");
  TORCH_CHECK_VALUE(call.y || !call.slope, "slope goes with y");
  if (call.y) {
    check_activation(*call.y, "y", call, w);
    check_weight(*call.weight, "weight", call, *call.y, w);
    if (call.bias) check_size(*call.bias, "bias", {call.y->size(1)});
    TORCH_CHECK_VALUE(!call.bias || call.bias->is_contiguous(), "bias must be contiguous");
  }
  if (call.residual) {
    check_size(*call.residual, "residual", at::DimVector(call.y->sizes()));
    TORCH_CHECK_VALUE(call.residual->strides() == call.y->strides(), "residual must have the strides of y, ",
                      call.y->strides(), ", got ", call.residual->strides());
  }
  if (call.grad) {
    check_activation(*call.thin, "thin", call, w);
    check_weight(*call.grad, "grad", call, *call.thin, w);
    TORCH_CHECK_VALUE(call.grad->is_contiguous(), "grad must be contiguous");
  }
}

inline void check_source(const Tensor& source, Index groups) {
  TORCH_CHECK_VALUE(
      3 <= source.dim() && source.dim() <= 5 && source.layout() == at::kStrided && source.device().is_cpu(),
      "source must be a dense tensor (N, C, *space) on the CPU, got shape ", source.sizes(), " and ", source.layout(),
      " on ", source.device());
  TORCH_CHECK_VALUE(groups >= 1, "groups must be positive, got ", groups);
}

}  // namespace sre_triton
