// What invariants/passes.py asks for, in every type. Matrices are contiguous.

#include "invariants.h"

#include "arguments.h"
#include "operators.h"

namespace sre_triton {

namespace {

template <class Function>
void with_types(const Tensor& z, Function function) {
  auto go = [&](auto s, auto t) {
    z.dim() == 4 ? function(std::integral_constant<int, 2>(), s, t) : function(std::integral_constant<int, 3>(), s, t);
  };
  switch (z.scalar_type()) {
    case at::kFloat:
      return go(float(), float());
    case at::kDouble:
      return go(double(), double());
    case at::kHalf:
      return go(at::Half(), float());
    case at::kBFloat16:
      return go(at::BFloat16(), float());
    default:
      TORCH_CHECK_TYPE(false, "z must be of a floating type, got ", z.scalar_type());
  }
}

Form read_form(const Tensor& z, at::IntArrayRef kinds, at::IntArrayRef dilations, double eps) {
  for (Index kind : kinds)
    TORCH_CHECK_VALUE(0 <= kind && kind < kKinds, "kinds must be below ", +kKinds, ", got ", kinds);
  for (Index d : dilations) TORCH_CHECK_VALUE(d >= 1, "dilations must be positive, got ", dilations);
  TORCH_CHECK_VALUE(!kinds.empty() && !dilations.empty(), "kinds and dilations must not be empty");
  return {z.dim() - 2, kinds.vec(), dilations.vec(), eps};
}

void check_addition(const Tensor& z, const Tensor& project, const Tensor& weight, const Form& form) {
  TORCH_CHECK_VALUE((z.dim() == 4 || z.dim() == 5) && z.numel() > 0, "z must be (N, C, *space), got ", z.sizes());
  TORCH_CHECK_VALUE(project.dim() == 2 && project.size(0) > 0 && project.size(1) == z.size(1),
                    "project must be (features, C), got ", project.sizes());
  check_size(weight, "weight", {z.size(1), form.count() * project.size(0)});
  for (const Tensor& matrix : {project, weight})
    TORCH_CHECK_VALUE(matrix.is_contiguous() && matrix.scalar_type() == z.scalar_type(),
                      "project and weight must be contiguous and of the type of z");
}

void check_like(const Tensor& t, const char* name, const Tensor& z) {
  check_size(t, name, at::DimVector(z.sizes()));
  TORCH_CHECK_TYPE(t.scalar_type() == z.scalar_type(), name, " must be of the type of z");
}

}  // namespace

void add_invariants(const Tensor& z, const Tensor& project, const Tensor& weight, at::IntArrayRef kinds,
                    at::IntArrayRef dilations, double eps, const Tensor& y) {
  const Form form = read_form(z, kinds, dilations, eps);
  check_addition(z, project, weight, form);
  check_like(y, "y", z);
  want_large_pages(y);
  with_types(z, [&](auto ndim, auto s, auto t) {
    add_invariants_of<ndim(), decltype(s)>(z, Addition<decltype(t)>::of(form, project, weight, s), y);
  });
}

void add_invariants_backward(const Tensor& grad_y, const Tensor& z, const Tensor& project, const Tensor& weight,
                             at::IntArrayRef kinds, at::IntArrayRef dilations, double eps, const Tensor& grad_z,
                             const Tensor& grad_project, const Tensor& grad_weight) {
  const Form form = read_form(z, kinds, dilations, eps);
  check_addition(z, project, weight, form);
  check_addition(z, grad_project, grad_weight, form);
  check_like(grad_y, "grad_y", z);
  check_like(grad_z, "grad_z", z);
  want_large_pages(grad_z);
  with_types(z, [&](auto ndim, auto s, auto t) {
    add_invariants_backward_of<ndim(), decltype(s)>(grad_y, z, Addition<decltype(t)>::of(form, project, weight, s),
                                                    grad_z, grad_project, grad_weight);
  });
}

}  // namespace sre_triton
