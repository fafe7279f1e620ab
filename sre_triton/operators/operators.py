"""The operators: schemas, fakes, batching rules, and the hand-over to a backend.

One operator per direction of the ring convolution, opaque to tracing, so that a compiled or exported
graph holds one node per layer and pass. Which backend runs is decided inside the operator, where shapes
are numbers: a compiled graph with dynamic shapes plans each call anew.

Operators check what the dispatcher hands them, since anybody can call ``torch.ops.sre_triton``. Derivatives are
registered by :mod:`sre_triton.operators.autograd`. Every output is laid out channels_last if the first argument is,
and contiguous otherwise, whatever backend made it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from sre_triton.backends import expansion
from sre_triton.backends.base import fuses_epilogue
from sre_triton.backends.memory_format import laid_out_like, new_activation
from sre_triton.geometry.conv import ConvArgs, output_size, transposed_size
from sre_triton.geometry.rings import ring_geometry
from sre_triton.operators import checks
from sre_triton.operators.checks import remembered
from sre_triton.planning.plan import plan_pass
from sre_triton.planning.request import current_backend
from sre_triton.private_api import (
    any_requires_grad,
    autocast_is_enabled,
    batches_gradients,
    below_autocast,
    below_autograd,
    dispatch_modes,
    has_tangent,
    transforms_are_active,
)

__all__ = [
    "Operator",
    "collapse_kernel",
    "expand_kernel",
    "ring_conv",
    "ring_conv_act",
    "ring_conv_backward",
    "ring_conv_transpose",
    "ring_conv_weight_grad",
]


_CONV_ARGS = (
    "int[] stride, int[] padding, int[] dilation, int groups, "
    "int kernel_size, bool circular, bool antialias, str backend"
)
_library = torch.library.Library("sre_triton", "DEF")
_STRIDED = torch.strided


class Operator:
    """An operator and the function behind it. Called with plain tensors and nothing tracing, it runs the
    function at once, unchecked: going through the dispatcher would cost a small layer more than its arithmetic.

    Args:
        schema: the operator's; a trailing ``...`` stands for the fields of :class:`ConvArgs`, which are one
            argument here and for ``real``.
        real: the implementation.
        fake: shapes and strides of the results, from what ``real`` takes.
        check: raises an error that names the argument unless these arguments, tensors by their signatures, fit.
        batch: makes the batching rule of the overload.
    """

    def __init__(
        self,
        schema: str,
        real: Callable[..., Any],
        fake: Callable[..., Any],
        check: Callable[..., None],
        batch: Callable[[Any], Callable[..., Any]],
    ) -> None:
        self._takes_conv_args, self._takes_lists = "..." in schema, "[]" in schema
        schema = schema.replace("...", _CONV_ARGS)
        self._real, self._fake, self._check = real, fake, remembered(check)
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        name = schema.partition("(")[0]
        self.overload = getattr(torch.ops.sre_triton, name).default
        declared = [argument.split() for argument in schema.partition("(")[2].partition(")")[0].split(", ")]
        self._tensors = tuple(
            (i, name, kind == "Tensor") for i, (kind, name) in enumerate(declared) if kind.startswith("Tensor")
        )
        _library.impl(self.overload, self._from_dispatcher, "CompositeExplicitAutograd")
        torch.library.register_fake(f"sre_triton::{name}", self._from_tracer, lib=_library)
        torch.library.register_vmap(f"sre_triton::{name}", batch(self.overload), lib=_library)
        for device_type in ("CPU", "CUDA", "XPU"):
            _library.impl(self.overload, self._below_autocast(device_type.lower()), f"Autocast{device_type}")

    def __call__(self, *args: Any) -> Any:
        if _is_plain(args):
            return self._real(*args)
        return self.dispatch(*args)

    def dispatch(self, *args: Any) -> Any:
        """The operator by way of the dispatcher."""
        return self.overload(*args[:-1], *args[-1]) if self._takes_conv_args else self.overload(*args)

    def derive(self, function: Callable[..., Any]) -> None:
        """Registers the differentiable form of this operator, which takes what ``real`` takes."""

        def from_dispatcher(*args: Any) -> Any:
            needed = torch.is_grad_enabled() and any_requires_grad(*args)
            if has_tangent(*args) or (needed and transforms_are_active()):
                raise RuntimeError(
                    f"{self.overload} has derivatives in reverse mode and outside of torch.func alone; functions of "
                    "sre_triton.functional and the layers have those of torch.func too, but for forward mode"
                )
            if needed:
                return function(*self._checked(args))
            if _is_plain([args[i] for i, _, _ in self._tensors]):
                # No tensor requires grad, so the implementation may write in place as it is.
                return self._real(*self._checked(args))
            with below_autograd():
                return self.overload(*args)

        _library.impl(self.overload, from_dispatcher, "Autograd")

    def _checked(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The schema's arguments as ``real`` takes them, once they are known to fit."""
        for i, name, is_required in self._tensors:
            tensor = args[i]
            if tensor is None:
                if is_required:  # the dispatcher hands on None as if it were an undefined tensor
                    raise TypeError(f"{name} must be a Tensor, got None")
            elif tensor.layout is not _STRIDED:
                checks.check_strided(name, tensor)  # raises
        args = self._arguments(args)
        self._check(*args)
        return args

    def _arguments(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The schema's arguments as ``real`` takes them: lists as tuples, and the last ones as one."""
        if not self._takes_conv_args:
            return _without_lists(args)
        *rest, stride, padding, dilation, groups, kernel_size, circular, antialias, backend = args
        conv_args = ConvArgs(
            tuple(stride), tuple(padding), tuple(dilation), groups, kernel_size, circular, antialias, backend
        )
        return (*_without_lists(rest), conv_args) if self._takes_lists else (*rest, conv_args)

    def _from_dispatcher(self, *args: Any) -> Any:
        args = self._checked(args)
        with torch.no_grad():  # an exported graph calls operators with parameters, and backends write in place
            return self._real(*args)

    def _from_tracer(self, *args: Any) -> Any:
        checks.refuse_onnx()
        return self._fake(*self._checked(args))

    def _below_autocast(self, device_type: str) -> Callable[..., Any]:
        """Callers cast before they call. Backends choose the precision of their own sums, so autocast must
        not reach the operations inside."""
        context = below_autocast(device_type)

        def call(*args: Any) -> Any:
            with context():
                return self.overload(*args)

        return call


def _without_lists(args: Sequence[Any]) -> tuple[Any, ...]:
    return tuple([tuple(arg) if isinstance(arg, (list, torch.Size)) else arg for arg in args])


def _is_plain(args: Sequence[Any]) -> bool:
    """Whether the dispatcher would do nothing but call the implementation."""
    if (
        torch.compiler.is_compiling()
        or transforms_are_active()
        or dispatch_modes()
        or autocast_is_enabled()
        or batches_gradients()
    ):
        return False
    for arg in args:
        kind = type(arg)
        if kind is Tensor or kind is Parameter:
            if arg.is_meta:
                return False
        elif isinstance(arg, Tensor):
            return False
    return True


# Implementations ------------------------------------------------------------------------------------


def _ring_conv(x: Tensor, weight: Tensor, bias: Tensor | None, args: ConvArgs) -> Tensor:
    out_channels, _, num_rings = weight.shape
    call, backend = plan_pass("forward", x.shape, out_channels, num_rings, args, x.dtype, x.device)
    return backend.forward(x, weight, bias, call.spec)


def _ring_conv_act(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str, slope: float,
    args: ConvArgs,
) -> Tensor:  # fmt: skip
    out_channels, _, num_rings = weight.shape
    call, backend = plan_pass("forward", x.shape, out_channels, num_rings, args, x.dtype, x.device)
    if fuses_epilogue(backend):
        return backend.fused_forward(
            x, weight, bias, call.spec, activation=activation or None, negative_slope=slope, residual=residual
        )
    y = backend.forward(x, weight, bias, call.spec)
    return _activate_(y if residual is None else y.add_(residual), activation, slope)


def _activate_(y: Tensor, activation: str, slope: float) -> Tensor:
    if activation == "relu":
        return y.relu_()
    return F.leaky_relu_(y, slope) if activation == "leaky_relu" else y


def _ring_conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, output_padding: Sequence[int], args: ConvArgs
) -> Tensor:
    shape, rings = x.shape, weight.shape
    size = args.spec(rings[2]).transposed_size(shape[2:], output_padding)  # refuses such a stride first
    like_input = (shape[0], rings[1] * args.groups, *size)
    call, backend = plan_pass("transpose", like_input, shape[1], rings[2], args, x.dtype, x.device)
    return backend.transpose(x, weight, bias, call.spec, output_padding)


def _ring_conv_weight_grad(x: Tensor, grad_y: Tensor, num_rings: int, args: ConvArgs) -> Tensor:
    call, backend = plan_pass("weight_grad", x.shape, grad_y.shape[1], num_rings, args, x.dtype, x.device)
    return backend.weight_grad(x, grad_y, call.spec)


def _ring_conv_backward(x: Tensor, grad_y: Tensor, weight: Tensor, args: ConvArgs) -> tuple[Tensor, Tensor]:
    shape, (out_channels, _, num_rings) = x.shape, weight.shape
    call, backend = plan_pass("backward", shape, out_channels, num_rings, args, x.dtype, x.device)
    if args.backend == "auto" and not call.spec.is_unit_stride and x.device.type == "cpu":
        # Strided adjoints share nothing, so each may go its own way: of three channels to many, the weight's to the
        # native kernel and the input's to PyTorch's.
        _, other = plan_pass("weight_grad", shape, out_channels, num_rings, args, x.dtype, x.device)
        if other is not backend:
            output_padding = call.spec.output_padding(shape[2:], grad_y.shape[2:])
            grad_x = backend.transpose(grad_y, weight, None, call.spec, output_padding)
            return laid_out_like(x, grad_x), other.weight_grad(x, grad_y, call.spec)
    return backend.backward(grad_y, x, weight, call.spec)


def _expand_kernel(
    weight: Tensor, kernel_size: Sequence[int], circular: bool, antialias: bool, dtype: torch.dtype | None = None
) -> Tensor:
    geometry = ring_geometry(tuple(kernel_size), weight.shape[2], circular, antialias)
    return expansion.expand(weight, geometry, dtype, by_kernels=current_backend() == "triton")


def _collapse_kernel(
    kernel: Tensor, num_rings: int, circular: bool, antialias: bool, dtype: torch.dtype | None = None
) -> Tensor:
    geometry = ring_geometry(tuple(kernel.shape[2:]), num_rings, circular, antialias)
    return expansion.collapse(kernel, geometry, dtype, by_kernels=current_backend() == "triton")


# Fakes: shapes and exact strides, no data -----------------------------------------------------------


def _fake_ring_conv(x: Tensor, weight: Tensor, bias: Tensor | None, args: ConvArgs) -> Tensor:
    return new_activation(x, weight.shape[0], output_size(args, x.shape[2:]))


def _fake_ring_conv_act(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str, slope: float,
    args: ConvArgs,
) -> Tensor:  # fmt: skip
    return _fake_ring_conv(x, weight, bias, args)


def _fake_ring_conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, output_padding: Sequence[int], args: ConvArgs
) -> Tensor:
    return new_activation(x, weight.shape[1] * args.groups, transposed_size(args, x.shape[2:], output_padding))


def _fake_ring_conv_weight_grad(x: Tensor, grad_y: Tensor, num_rings: int, args: ConvArgs) -> Tensor:
    return x.new_empty((grad_y.shape[1], x.shape[1] // args.groups, num_rings))


def _fake_ring_conv_backward(x: Tensor, grad_y: Tensor, weight: Tensor, args: ConvArgs) -> tuple[Tensor, Tensor]:
    return new_activation(x, x.shape[1], x.shape[2:]), weight.new_empty(weight.shape)


def _fake_expand_kernel(
    weight: Tensor, kernel_size: Sequence[int], circular: bool, antialias: bool, dtype: torch.dtype | None = None
) -> Tensor:
    return weight.new_empty((*weight.shape[:2], *kernel_size), dtype=dtype)


def _fake_collapse_kernel(
    kernel: Tensor, num_rings: int, circular: bool, antialias: bool, dtype: torch.dtype | None = None
) -> Tensor:
    return kernel.new_empty((*kernel.shape[:2], num_rings), dtype=dtype)


# Batching rules -------------------------------------------------------------------------------------
# A batch of independent convolutions is one convolution with more groups; where only activations are
# batched it is one convolution with a longer batch.


def _fold_activation(x: Tensor, dim: int | None, size: int) -> Tensor:
    """(N, C, ...) with a batch dimension anywhere, or none, to (N, size * C, ...)."""
    x = x.unsqueeze(1).expand(-1, size, *x.shape[1:]) if dim is None else x.movedim(dim, 1)
    return x.flatten(1, 2)


def _fold_leading(w: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """(O, ...) with a batch dimension anywhere, or none, to (size * O, ...)."""
    if w is None:
        return None
    w = w.expand(size, *w.shape) if dim is None else w.movedim(dim, 0)
    return w.flatten(0, 1)


_FOLD = {"activation": _fold_activation, "leading": _fold_leading}
_UNFOLD_DIM = {"activation": 1, "leading": 0}


def _batch_conv(takes: tuple[str, ...], returns: tuple[str, ...], op: Callable[..., Any]) -> Callable[..., Any]:
    """Batching rule of a convolution operator, from the role of each tensor that it takes and returns."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size, (tensors, rest) = info.batch_size, (args[: len(takes)], args[len(takes) :])
        if returns == ("activation",) and in_dims[1] is None and in_dims[2] is None:
            y = op(tensors[0].movedim(in_dims[0], 0).flatten(0, 1), *args[1:])
            return y.unflatten(0, (size, -1)), 0
        folded = [_FOLD[role](t, dim, size) for role, t, dim in zip(takes, tensors, in_dims, strict=False)]
        conv_args = ConvArgs(*rest[-len(ConvArgs._fields) :])
        rest = (*rest[: -len(ConvArgs._fields)], *conv_args._replace(groups=conv_args.groups * size))
        results = op(*folded, *rest)
        dims = tuple(_UNFOLD_DIM[role] for role in returns)
        if len(dims) == 1:
            return results.unflatten(dims[0], (size, -1)), dims[0]
        return tuple(r.unflatten(d, (size, -1)) for r, d in zip(results, dims, strict=True)), dims

    return rule


def _batch_act(op: Callable[..., Any]) -> Callable[..., Any]:
    """The convolution by its own rule, the epilogue on the result."""
    conv = _batch_conv(("activation", "leading", "leading"), ("activation",), ring_conv.overload)

    def rule(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None,
        residual: Tensor | None, activation: str, slope: float, *args: Any,
    ) -> Any:  # fmt: skip
        if in_dims[:3] == (None, None, None):
            y = ring_conv.overload(x, weight, bias, *args).unsqueeze(0)
        else:
            y, dim = conv(info, in_dims[:3], x, weight, bias, *args)
            y = y.movedim(dim, 0)
        if residual is not None:
            y = y + (residual if in_dims[3] is None else residual.movedim(in_dims[3], 0))
        return _activate_(y, activation, slope), 0

    return rule


def _batch_kernel(op: Callable[..., Any]) -> Callable[..., Any]:
    def rule(info: Any, in_dims: tuple[int | None, ...], kernel: Tensor, *args: Any) -> Any:
        return op(_fold_leading(kernel, in_dims[0], info.batch_size), *args).unflatten(0, (info.batch_size, -1)), 0

    return rule


# The operators --------------------------------------------------------------------------------------

ring_conv = Operator(
    "ring_conv(Tensor input, Tensor weight, Tensor? bias, ...) -> Tensor",
    _ring_conv,
    _fake_ring_conv,
    checks.check_conv,
    partial(_batch_conv, ("activation", "leading", "leading"), ("activation",)),
)
ring_conv_act = Operator(
    "ring_conv_act(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, str activation, "
    "float negative_slope, ...) -> Tensor",
    _ring_conv_act,
    _fake_ring_conv_act,
    checks.check_conv_act,
    _batch_act,
)
ring_conv_transpose = Operator(
    "ring_conv_transpose(Tensor input, Tensor weight, Tensor? bias, SymInt[] output_padding, ...) -> Tensor",
    _ring_conv_transpose,
    _fake_ring_conv_transpose,
    checks.check_conv_transpose,
    partial(_batch_conv, ("activation", "leading", "leading"), ("activation",)),
)
ring_conv_weight_grad = Operator(
    "ring_conv_weight_grad(Tensor input, Tensor grad_output, int num_rings, ...) -> Tensor",
    _ring_conv_weight_grad,
    _fake_ring_conv_weight_grad,
    checks.check_weight_grad,
    partial(_batch_conv, ("activation", "activation"), ("leading",)),
)
ring_conv_backward = Operator(
    "ring_conv_backward(Tensor input, Tensor grad_output, Tensor weight, ...) -> (Tensor, Tensor)",
    _ring_conv_backward,
    _fake_ring_conv_backward,
    checks.check_backward,
    partial(_batch_conv, ("activation", "activation", "leading"), ("activation", "leading")),
)
expand_kernel = Operator(
    "expand_kernel(Tensor weight, int[] kernel_size, bool circular, bool antialias, ScalarType? dtype=None) -> Tensor",
    _expand_kernel,
    _fake_expand_kernel,
    checks.check_expand_kernel,
    _batch_kernel,
)
collapse_kernel = Operator(
    "collapse_kernel(Tensor dense, int num_rings, bool circular, bool antialias, ScalarType? dtype=None) -> Tensor",
    _collapse_kernel,
    _fake_collapse_kernel,
    checks.check_collapse_kernel,
    _batch_kernel,
)
