"""The Triton backend's functions: refusals, and the plan of each call, made once per kind of call.

The four functions that every backend offers, :func:`forward`, :func:`transpose`, :func:`weight_grad`
and :func:`backward`, plus :func:`fused_forward` with its epilogue and the expansion pair. They neither
synchronise with the device nor look at data, so they may be captured into CUDA graphs.

The kernels see every tensor as ``[N, D, H, W, C]``, channels innermost. Inputs in another layout are converted
once on entry; outputs are written straight into the layout of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from sre_triton.backends.base import Call
from sre_triton.backends.triton import tiles, tuning
from sre_triton.backends.triton.backward_pass import Apart, Shared, WeightGrad, shares
from sre_triton.backends.triton.convolution import Convolution, Epilogue, TwoKernels
from sre_triton.backends.triton.dense_kernels import ring_collapse_kernel, ring_expand_kernel
from sre_triton.backends.triton.invariants import Invariants, InvariantsBackward, fits
from sre_triton.backends.triton.layout import new_strides
from sre_triton.backends.triton.prepared import DTYPES, Kept, Launch, forward_problem, precision
from sre_triton.backends.triton.tiles import Tile
from sre_triton.geometry.conv import ConvSpec
from sre_triton.geometry.rings import RingGeometry

__all__ = [
    "backward",
    "collapse",
    "device_refusal",
    "expand",
    "forget",
    "forward",
    "fused_forward",
    "invariants_backward",
    "invariants_forward",
    "invariants_refusal",
    "refusal",
    "transpose",
    "two_kernel_forward",
    "weight_grad",
]

ACTIVATIONS = ("relu", "leaky_relu")

_MAX_ROW = 2**31 - 1  # offsets within one row of the image are 32-bit, all others 64-bit


def refusal(call: Call) -> str | None:
    """Why the call cannot run here, in words; None if it can."""
    if reason := device_refusal(call.device.type, call.dtype):
        return reason
    spec, width, channels = call.spec, call.input_size[-1], max(call.in_channels, call.out_channels)
    overhang = 2 * max(spec.reach) + 128 * max(spec.stride)  # of taps and tiles beyond the row
    if (width + overhang) * channels > _MAX_ROW:
        return f"one row of the image holds more than {_MAX_ROW} elements"
    return None


def device_refusal(device_type: str, dtype: torch.dtype) -> str | None:
    """The part of :func:`refusal` that holds for every kernel."""
    if triton.knobs.runtime.interpret:
        if device_type != "cpu":
            return f"TRITON_INTERPRET=1 runs kernels on CPU tensors, got a {device_type} tensor"
        if dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 incorrectly"
    elif device_type not in ("cuda", "xpu"):  # ROCm devices are called cuda
        return f"Triton needs a CUDA, ROCm or XPU device, got a {device_type} tensor"
    if dtype not in DTYPES:
        return f"the kernels take float32, float16 and bfloat16, got {dtype}"
    return None


# Plans of calls, kept -----------------------------------------------------------------------------------

_PLANS = Kept(limit=4096)


def forget() -> None:
    """Drop every plan: what follows works them out anew."""
    _PLANS.clear()


def _planned(tensors: tuple[Any, ...], rest: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """The plan of a call on such tensors with the arguments ``rest``, from the store or from ``make``.

    Holds for tensors of the same shapes, strides, dtypes and devices. The addresses differ; a launch looks at their
    alignment. Nothing is kept while launch options are searched for, nor of calls that are only recorded.
    """
    key: list[Any] = [
        rest, tuning.generation(), torch.are_deterministic_algorithms_enabled(), precision(tensors[0].dtype)
    ]  # fmt: skip
    for tensor in tensors:
        if tensor is not None:
            key += (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        else:
            key.append(None)
    found = tuple(key)
    plan = _PLANS.get(found)
    if plan is None or tuning.is_searching():
        plan = make()
        if tuning.is_settled() and not tensors[0].is_meta:
            _PLANS.keep(found, plan)
    return plan


# The four functions of a backend ------------------------------------------------------------------------


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    """Ring convolution. x ``(N, Ci, *space)``, weight ``(Co, Ci / groups, rings)``, bias ``(Co,)``."""

    def make() -> Any:
        problem = forward_problem(x, weight, spec)
        if tiles.prefers_two_kernels(problem) and not torch.are_deterministic_algorithms_enabled():
            return TwoKernels(x, weight, spec)
        return Convolution(x, weight, bias, spec)

    bias = _dense_bias(bias)
    result: Tensor = _planned((x, weight, bias), ("forward", spec), make)(x, weight, bias)
    return result


def fused_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: ConvSpec,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Ring convolution with the epilogue ``activation(conv(x) + bias + residual)`` in the same kernel.

    Args:
        activation: None, "relu" or "leaky_relu" (with ``negative_slope``).
        residual: added before the activation; the shape of the output.
        tile: launch options; None lets :mod:`sre_triton.backends.triton.tiles` choose.

    Raises:
        ValueError: unknown activation, or a residual that has not the output's shape, dtype and device.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {ACTIVATIONS}, got {activation!r}")
    epilogue = Epilogue(activation or "", negative_slope if activation == "leaky_relu" else 0.0)
    bias = _dense_bias(bias)
    if residual is not None:
        shape = (x.shape[0], weight.shape[0], *spec.output_size(x.shape[2:]))
        if (residual.shape, residual.dtype, residual.device) != (shape, x.dtype, x.device):
            raise ValueError(
                f"residual must be like the output, {shape} {x.dtype} on {x.device}; "
                f"got {tuple(residual.shape)} {residual.dtype} on {residual.device}"
            )
        if residual.stride() != (strides := new_strides(x, shape)):
            residual = torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device).copy_(residual)

    def make() -> Convolution:
        return Convolution(x, weight, bias, spec, epilogue=epilogue, residual=residual, tile=tile)

    plan = _planned((x, weight, bias, residual), ("fused", spec, epilogue, tile), make)
    result: Tensor = plan(x, weight, bias, residual)
    return result


def two_kernel_forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    """Ring sums through memory, then one library product: for many channels and large kernels."""
    bias = _dense_bias(bias)
    plan = _planned((x, weight, bias), ("two kernels", spec), lambda: TwoKernels(x, weight, spec))
    result: Tensor = plan(x, weight, bias)
    return result


def transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: ConvSpec,
    output_padding: Sequence[int],
    *,
    tile: Tile | None = None,
) -> Tensor:
    """Adjoint of :func:`forward` in its input. x ``(N, Co, *space)``, bias ``(Ci,)``.

    Every phase of the output modulo the stride is a stride-1 convolution with its own share of the taps:
    one launch per phase, one altogether at stride 1. No zeros are inserted or multiplied.
    """
    bias, padding = _dense_bias(bias), tuple(output_padding)

    def make() -> Convolution:
        return Convolution(x, weight, bias, spec, output_padding=padding, tile=tile)

    result: Tensor = _planned((x, weight, bias), ("transpose", spec, padding, tile), make)(x, weight, bias)
    return result


def weight_grad(x: Tensor, grad_y: Tensor, spec: ConvSpec) -> Tensor:
    """Adjoint of :func:`forward` in its weight, ``(Co, Ci / groups, rings)`` in the dtype of x.

    Deterministic: partial sums in float32, added in a fixed order.
    """
    plan = _planned((x, grad_y), ("weight_grad", spec), lambda: WeightGrad(x, grad_y, spec))
    result: Tensor = plan(x, grad_y)
    return result


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, Tensor]:
    """Gradients in input and weight.

    At stride 1 both follow from the ring sums of ``grad_y``, formed once, where two products are cheaper than
    a second pass of ring sums.
    """

    def make() -> Any:
        shared = shares(forward_problem(x, weight, spec)) and not torch.are_deterministic_algorithms_enabled()
        return (Shared if shared else Apart)(grad_y, x, weight, spec)

    result: tuple[Tensor, Tensor] = _planned((grad_y, x, weight), ("backward", spec), make)(grad_y, x, weight)
    return result


def _dense_bias(bias: Tensor | None) -> Tensor | None:
    return bias if bias is None or bias.is_contiguous() else bias.contiguous()


# Invariants -----------------------------------------------------------------------------------------------


def invariants_refusal(z: Tensor, kinds: tuple[int, ...], dilations: tuple[int, ...]) -> str | None:
    """Why :func:`invariants_forward` of ``z`` cannot run here, in words; None if it can."""
    if reason := device_refusal(z.device.type, z.dtype):
        return reason
    return None if fits(z.shape, len(kinds), len(dilations)) else "one image holds more than 2^31 elements of maps"


def invariants_forward(z: Tensor, kinds: tuple[int, ...], dilations: tuple[int, ...], eps: float) -> Tensor:
    """Differential invariants of (N, C, *space), not empty, by scale, kind and channel; ``kinds`` by number."""
    arguments = kinds, dilations, eps
    result: Tensor = _planned((z,), ("invariants_forward", *arguments), lambda: Invariants(z, *arguments))(z)
    return result


def invariants_backward(
    grad_y: Tensor, z: Tensor, kinds: tuple[int, ...], dilations: tuple[int, ...], eps: float
) -> Tensor:
    """Gradient of :func:`invariants_forward` in ``z``."""
    arguments = kinds, dilations, eps
    plan = _planned((grad_y, z), ("invariants_backward", *arguments), lambda: InvariantsBackward(z, *arguments))
    result: Tensor = plan(grad_y, z)
    return result


# Expansion ------------------------------------------------------------------------------------------------


def expand(weight: Tensor, geometry: RingGeometry, dtype: torch.dtype | None = None) -> Tensor:
    """Dense kernel ``(o, i, *kernel_size)`` of ring weights ``(o, i, rings)``, in ``dtype`` or theirs."""
    return _Expansion.of(weight, geometry, dtype or weight.dtype, ring_expand_kernel)(weight)


def collapse(dense: Tensor, geometry: RingGeometry, dtype: torch.dtype | None = None) -> Tensor:
    """Adjoint of :func:`expand`: weighted sum of a dense kernel's taps over each ring."""
    return _Expansion.of(dense, geometry, dtype or dense.dtype, ring_collapse_kernel)(dense)


class _Expansion:
    """One direction of the expansion, on tensors like the first ones."""

    def __init__(self, source: Tensor, geometry: RingGeometry, dtype: torch.dtype, kernel: Any) -> None:
        (o, i), rings, taps = source.shape[:2], geometry.num_rings, geometry.num_taps
        expands = kernel is ring_expand_kernel
        self._shape = (o, i, *(geometry.kernel_size if expands else (rings,)))
        self._dtype, self._device = dtype, source.device
        self._launch: Launch | None = None
        if o * i:
            self._table = _table(geometry, source.device)
            bo, bt = tiles.expansion_blocks(taps)
            grid = (triton.cdiv(o * i, bo), triton.cdiv(taps, bt) if expands else rings)
            options = {"NUM_RINGS": rings, "BO": bo, "BT": bt}
            self._launch = Launch(kernel, source.device, grid, (o * i, taps), options)

    @classmethod
    def of(cls, source: Tensor, geometry: RingGeometry, dtype: torch.dtype, kernel: Any) -> _Expansion:
        plan: _Expansion = _planned((source,), (kernel, geometry, dtype), lambda: cls(source, geometry, dtype, kernel))
        return plan

    def __call__(self, source: Tensor) -> Tensor:
        result = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        if self._launch is not None:
            self._launch(source.contiguous(), self._table, result)
        return result


@lru_cache(maxsize=256)
def _table(geometry: RingGeometry, device: torch.device) -> Tensor:
    """``M[ring, tap]``, a constant of the geometry shared by all layers that have it."""
    return torch.from_numpy(geometry.weights.copy()).to(device=device, dtype=torch.float32)
