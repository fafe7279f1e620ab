"""Checks that the tensors and arguments of a call fit together, for the functions, the operators and their fakes.

A check sees a tensor's signature, never its data, and is not made again for signatures that have passed it. Errors name
the argument, as PyTorch's convolutions do; for anything that is no ring kernel they are those of
:func:`sre_triton.geometry.rings.ring_geometry`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sre_triton.geometry.conv import ConvArgs, check_numbers, output_size, transposed_size
from sre_triton.geometry.rings import ring_geometry
from sre_triton.planning.request import REQUESTS
from sre_triton.private_api import dispatch_modes, is_expanded_weight

__all__ = [
    "ACTIVATIONS",
    "check_backward",
    "check_collapse_kernel",
    "check_conv",
    "check_conv_act",
    "check_conv_transpose",
    "check_expand_kernel",
    "check_function",
    "check_residual",
    "check_strided",
    "check_sum",
    "check_weight_grad",
    "is_parameter",
    "remembered",
]

Signature = tuple[torch.Size, torch.dtype, torch.device]

ACTIVATIONS = ("", "relu", "leaky_relu")

_STRIDED = torch.strided


def remembered(check: Callable[..., None]) -> Callable[..., None]:
    """A check of tensors, made of a check of their signatures. Signatures that pass are remembered, but for those of
    tracers, whose sizes are symbols."""
    known = lru_cache(maxsize=4096)(check)

    def call(*args: Any) -> None:
        signatures = [(a.shape, a.dtype, a.device) if isinstance(a, Tensor) else a for a in args]
        (check if torch.compiler.is_compiling() or dispatch_modes() else known)(*signatures)

    return call


def check_function(
    x: Tensor, weight: Tensor, bias: Tensor | None, args: ConvArgs, output_padding: tuple[int, ...] | None = None
) -> None:
    """Raises what ``F.convNd`` raises if these tensors, batched or not, are not a convolution's; with an
    ``output_padding``, what ``F.conv_transposeNd`` raises."""
    # In place, as a function of its own would cost every call of a layer.
    if (
        not isinstance(x, Tensor)
        or x.layout is not _STRIDED
        or (type(weight) is not Parameter and type(weight) is not Tensor and not is_parameter(weight))
        or weight.layout is not _STRIDED
        or (
            bias is not None
            and ((type(bias) is not Parameter and not is_parameter(bias)) or bias.layout is not _STRIDED)
        )
    ):
        raise _unfit(x, weight, bias)
    is_remembered = not (torch.compiler.is_compiling() or dispatch_modes())
    like = (x.shape, x.dtype, x.device)
    rings = (weight.shape, weight.dtype, weight.device)
    shift = None if bias is None else (bias.shape, bias.dtype, bias.device)
    if output_padding is None:
        (_known_conv if is_remembered else _check_conv)(like, rings, shift, args)
    else:
        check = _known_conv_transpose if is_remembered else _check_conv_transpose
        check(like, rings, shift, output_padding, args)


def check_residual(residual: Tensor, x: Tensor, weight: Tensor, args: ConvArgs) -> None:
    """Raises RuntimeError unless ``residual`` is like the output."""
    check_strided("residual", residual)
    _check_residual(_signature(residual), _signature(x), _signature(weight), args)


def check_sum(residual: Tensor, y: Tensor) -> None:
    """Raises RuntimeError unless ``residual`` is like the output ``y``."""
    check_strided("residual", residual)
    _check_like(_signature(residual), _signature(y))


def _signature(x: Tensor) -> Signature:
    return x.shape, x.dtype, x.device


def is_parameter(value: Any) -> bool:
    """Whether a weight or bias is a tensor.

    Raises:
        RuntimeError: it is of ``call_for_per_sample_grads``, which knows PyTorch's own functions alone.
    """
    if not torch.compiler.is_compiling() and is_expanded_weight(value):
        raise RuntimeError(
            "torch.nn.utils._per_sample_grad.call_for_per_sample_grads takes no ring convolutions: use "
            "torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0)) with torch.func.functional_call for gradients "
            "per sample"
        )
    return isinstance(value, Tensor)


def _unfit(x: Any, weight: Any, bias: Any) -> Exception:
    """The error for the first of these that is no strided tensor."""
    if not isinstance(x, Tensor):
        return TypeError(f"input must be a Tensor, got {type(x).__name__}")
    if not isinstance(weight, Tensor):
        return TypeError(f"weight must be a Tensor, got {type(weight).__name__}")
    if bias is not None and not isinstance(bias, Tensor):
        return TypeError(f"bias must be a Tensor or None, got {type(bias).__name__}")
    tensors: dict[str, Any] = {"input": x, "weight": weight, "bias": bias}
    name = next(name for name, tensor in tensors.items() if tensor.layout is not _STRIDED)
    return _not_strided(name, tensors[name])


def check_strided(name: str, tensor: Tensor) -> None:
    """Raises RuntimeError if a tensor is sparse or opaque."""
    if tensor.layout is not _STRIDED:
        raise _not_strided(name, tensor)


def _not_strided(name: str, tensor: Tensor) -> RuntimeError:
    return RuntimeError(f"{name} must be strided, got a tensor of layout {tensor.layout}")


def check_conv(x: Signature, weight: Signature, bias: Signature | None, args: ConvArgs) -> None:
    ndim = len(args.stride)
    _check_described(weight, args)
    _check_batched(f"sre_conv{ndim}d", "input", x, ndim)
    _check_conv(x, weight, bias, args)
    output_size(args, x[0][2:])


def _check_conv(x: Signature, weight: Signature, bias: Signature | None, args: ConvArgs) -> None:
    ndim, groups = len(args.stride), args.groups
    _check_tensors(f"sre_conv{ndim}d", ndim, x, weight, bias)
    _check_groups(weight, groups)
    size, rings = x[0], weight[0]
    if size[-ndim - 1] != rings[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(rings)}, expected input{list(size)} to have "
            f"{rings[1] * groups} channels, but got {size[-ndim - 1]} channels instead"
        )
    _check_bias(bias, rings[0])


def check_conv_act(
    x: Signature,
    weight: Signature,
    bias: Signature | None,
    residual: Signature | None,
    activation: str,
    slope: float,
    args: ConvArgs,
) -> None:
    check_conv(x, weight, bias, args)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    if residual is not None:
        _check_residual(residual, x, weight, args)


def _check_residual(residual: Signature, x: Signature, weight: Signature, args: ConvArgs) -> None:
    _check_like(residual, (torch.Size((x[0][0], weight[0][0], *output_size(args, x[0][2:]))), *x[1:]))


def _check_like(residual: Signature, y: Signature) -> None:
    if residual != y:
        raise RuntimeError(
            f"residual must be like the output, {tuple(y[0])} {y[1]} on {y[2]}; got {tuple(residual[0])} {residual[1]} "
            f"on {residual[2]}"
        )


def check_conv_transpose(
    x: Signature, weight: Signature, bias: Signature | None, output_padding: tuple[int, ...], args: ConvArgs
) -> None:
    ndim = len(args.stride)
    _check_described(weight, args)
    _check_batched(f"sre_conv_transpose{ndim}d", "input", x, ndim)
    if len(output_padding) != ndim:
        raise RuntimeError(f"output_padding must have {ndim} entries, one per spatial dimension, got {output_padding}")
    _check_conv_transpose(x, weight, bias, output_padding, args)
    transposed_size(args, x[0][2:], output_padding)


def _check_conv_transpose(
    x: Signature, weight: Signature, bias: Signature | None, output_padding: tuple[int, ...], args: ConvArgs
) -> None:
    ndim, groups = len(args.stride), args.groups
    _check_tensors(f"sre_conv_transpose{ndim}d", ndim, x, weight, bias)
    check_numbers(ndim, args.stride, args.padding, args.dilation, groups)  # before sizes are worked out
    size, rings = x[0], weight[0]
    channels = size[-ndim - 1]
    if channels != rings[0]:
        raise RuntimeError(
            f"Given transposed=1, weight of size {list(rings)}, expected input{list(size)} to have "
            f"{rings[0]} channels, but got {channels} channels instead"
        )
    if channels % groups:
        raise RuntimeError(f"Given groups={groups}, expected input channels to be divisible by it, but got {channels}")
    for extra, stride, dilation in zip(output_padding, args.stride, args.dilation, strict=True):
        if extra < 0:
            raise RuntimeError(f"negative output_padding is not supported, got output_padding={output_padding}")
        if extra >= max(stride, dilation):
            raise RuntimeError(
                f"output padding must be smaller than either stride or dilation, but got output_padding="
                f"{output_padding}, stride={args.stride}, dilation={args.dilation}"
            )
    _check_bias(bias, rings[1] * groups)


def check_weight_grad(x: Signature, grad_y: Signature, num_rings: int, args: ConvArgs) -> None:
    _check_args(args, num_rings)
    _check_pair(x, grad_y, args)


def check_backward(x: Signature, grad_y: Signature, weight: Signature, args: ConvArgs) -> None:
    _check_described(weight, args)
    _check_pair(x, grad_y, args)
    _check_alike("ring_conv_backward", x, weight=weight)
    want = (grad_y[0][1], x[0][1] // args.groups)
    if tuple(weight[0][:2]) != want:
        raise RuntimeError(
            f"expected weight of size {[*want, weight[0][2]]} for input{list(x[0])}, grad_output{list(grad_y[0])} and "
            f"groups={args.groups}, but got {list(weight[0])}"
        )


def check_expand_kernel(
    weight: Signature, kernel_size: tuple[int, ...], circular: bool, antialias: bool, dtype: torch.dtype | None = None
) -> None:
    if len(weight[0]) != 3:
        raise ValueError(f"weight must be (out, in / groups, rings), got shape {tuple(weight[0])}")
    _check_floating("weight", weight[1])
    _check_floating("dtype", dtype)
    ring_geometry(kernel_size, int(weight[0][2]), circular, antialias)


def check_collapse_kernel(
    dense: Signature, num_rings: int, circular: bool, antialias: bool, dtype: torch.dtype | None = None
) -> None:
    if not 3 <= len(dense[0]) <= 5:
        raise ValueError(f"dense must be (out, in / groups, *kernel_size) in 1 to 3 dimensions, got {tuple(dense[0])}")
    _check_floating("dense", dense[1])
    _check_floating("dtype", dtype)
    ring_geometry(tuple(int(k) for k in dense[0][2:]), num_rings, circular, antialias)


def _check_floating(name: str, dtype: torch.dtype | None) -> None:
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"{name} must be of a floating dtype, got {dtype}")


def _check_args(args: ConvArgs, num_rings: int) -> None:
    if not 1 <= len(args.stride) <= 3:
        raise RuntimeError(f"stride must have 1 to 3 entries, one per spatial dimension, got {args.stride}")
    if args.backend not in REQUESTS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, REQUESTS))}, got {args.backend!r}")
    args.spec(int(num_rings))


def _check_described(weight: Signature, args: ConvArgs) -> None:
    """The rings of a weight, and whether there is such a convolution."""
    if len(weight[0]) != 3:
        raise RuntimeError(f"Expected 3D ring weights (channels, channels / groups, rings), got {list(weight[0])}")
    _check_args(args, weight[0][2])
    _check_groups(weight, args.groups)


def _check_groups(weight: Signature, groups: int) -> None:
    if weight[0][0] % groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, but got weight of "
            f"size {list(weight[0])}"
        )


def _check_batched(name: str, what: str, x: Signature, ndim: int) -> None:
    if len(x[0]) != ndim + 2:
        raise RuntimeError(f"Expected {ndim + 2}D (batched) {what} to {name}, but got {what} of size: {list(x[0])}")


def _check_tensors(name: str, ndim: int, x: Signature, weight: Signature, bias: Signature | None) -> None:
    if len(weight[0]) != 3:
        raise RuntimeError(
            f"Expected 3D ring weights (channels, channels / groups, rings) for {name}, but got weight of size: "
            f"{list(weight[0])}"
        )
    if len(x[0]) != ndim + 2 and len(x[0]) != ndim + 1:
        raise RuntimeError(
            f"Expected {ndim + 1}D (unbatched) or {ndim + 2}D (batched) input to {name}, but got input of size: "
            f"{list(x[0])}"
        )
    _check_alike(name, x, weight=weight, bias=bias)


def _check_alike(name: str, x: Signature, **others: Signature | None) -> None:
    for what, other in others.items():
        if other is not None and x[1] != other[1]:
            raise RuntimeError(f"Input type ({x[1]}) and {what} type ({other[1]}) should be the same")
    if not x[1].is_floating_point:
        raise RuntimeError(f"{name} needs a floating-point input, got input of type {x[1]}")
    if any(other is not None and x[2] != other[2] for other in others.values()):
        places = ", ".join(f"{what} on {other[2]}" for what, other in others.items() if other is not None)
        raise RuntimeError(f"Expected all tensors to be on the same device, but got input on {x[2]}, {places}")


def _check_pair(x: Signature, grad_y: Signature, args: ConvArgs) -> None:
    """The input of a convolution, and a gradient in its output."""
    ndim, groups = len(args.stride), args.groups
    _check_batched("a gradient", "input", x, ndim)
    _check_batched("a gradient", "grad_output", grad_y, ndim)
    _check_alike("a gradient", x, grad_output=grad_y)
    for what, channels in (("input", x[0][1]), ("grad_output", grad_y[0][1])):
        if channels % groups:
            raise RuntimeError(f"Given groups={groups}, expected {what} channels to be divisible by it, got {channels}")
    want = (x[0][0], *output_size(args, x[0][2:]))
    if (grad_y[0][0], *grad_y[0][2:]) != want:
        raise RuntimeError(
            f"expected grad_output of batch and spatial size {list(want)} for input{list(x[0])}, but got grad_output "
            f"of size {list(grad_y[0])}"
        )


def _check_bias(bias: Signature | None, channels: int) -> None:
    if bias is not None and (len(bias[0]) != 1 or bias[0][0] != channels):
        raise RuntimeError(
            f"expected bias to be 1-dimensional with {channels} elements, but got bias of size {list(bias[0])}"
        )


def refuse_onnx() -> None:
    """ONNX has no ring convolution; to be called where an exporter may be at work."""
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            "ONNX has no ring convolution: export what sre_triton.fold(network.eval(), fuse_batchnorm=True, "
            "any_size=True) makes of the network, or a trained run by `sre-triton export RUN --format onnx`"
        )


# Checked forms of call are remembered. A tracer goes to the checks themselves, with its symbolic sizes.


def _refuse_jit(name: str) -> None:
    """To ``torch.jit.trace`` sizes are tensors: nothing remembered is like them."""
    if torch.jit.is_tracing():
        raise RuntimeError(
            f"torch.jit.trace records the layers of sre_triton, but no call of {name} from elsewhere: use a layer, "
            "torch.export.export, or sre_triton.fold for a network of plain convolutions"
        )


@lru_cache(maxsize=4096)
def _known_conv(x: Signature, weight: Signature, bias: Signature | None, args: ConvArgs) -> None:
    _refuse_jit(f"sre_conv{len(args.stride)}d")
    _check_conv(x, weight, bias, args)


@lru_cache(maxsize=4096)
def _known_conv_transpose(
    x: Signature, weight: Signature, bias: Signature | None, output_padding: tuple[int, ...], args: ConvArgs
) -> None:
    _refuse_jit(f"sre_conv_transpose{len(args.stride)}d")
    _check_conv_transpose(x, weight, bias, output_padding, args)
