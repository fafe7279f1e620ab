// Operators that are compiled on their own, beside the ring convolution.

#pragma once

#include <ATen/core/Tensor.h>

namespace sre_triton {

void add_invariants(const at::Tensor& z, const at::Tensor& project, const at::Tensor& weight, at::IntArrayRef kinds,
                    at::IntArrayRef dilations, double eps, const at::Tensor& y);
void add_invariants_backward(const at::Tensor& grad_y, const at::Tensor& z, const at::Tensor& project,
                             const at::Tensor& weight, at::IntArrayRef kinds, at::IntArrayRef dilations, double eps,
                             const at::Tensor& grad_z, const at::Tensor& grad_project, const at::Tensor& grad_weight);

}  // namespace sre_triton
