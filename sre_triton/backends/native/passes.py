"""The passes of the native backend: a convolution's window and additions as the numbers that the kernel reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sre_triton.backends.base import Call
from sre_triton.backends.memory_format import laid_out_like, new_activation
from sre_triton.backends.native.library import missing
from sre_triton.geometry.conv import ConvSpec
from sre_triton.geometry.schedule import Schedule, Step
from sre_triton.geometry.windows import Window, adjoint_window, forward_window

__all__ = ["backward", "forward", "fused_forward", "refusal", "transpose", "weight_grad"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def refusal(call: Call) -> str | None:
    if call.device.type != "cpu":
        return f"it runs on CPUs, the tensors are on {call.device.type!r}"
    if call.dtype not in _DTYPES:
        return f"it takes floating types, got {call.dtype}"
    reason = missing()
    return None if reason is None else f"there is no native kernel ({reason})"


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    window, size, strides = _forward_form(spec, x.shape, x.stride(), weight.shape[0])
    y = x.new_empty_strided(size, strides)
    _run(x, window, spec, False, weight, bias if bias is None else bias.contiguous(), y, None, None)
    return y


def fused_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: ConvSpec,
    *,
    activation: str | None,
    negative_slope: float,
    residual: Tensor | None,
) -> Tensor:
    window, size, strides = _forward_form(spec, x.shape, x.stride(), weight.shape[0])
    y = x.new_empty_strided(size, strides)
    if residual is not None and residual.stride() != strides:
        residual = torch.empty_like(y).copy_(residual)
    slope = {None: None, "relu": 0.0, "leaky_relu": negative_slope}[activation]
    bias = bias if bias is None else bias.contiguous()
    _run(x, window, spec, False, weight, bias, y, None, None, residual, slope)
    return y


@lru_cache(maxsize=8192)
def _forward_form(
    spec: ConvSpec, size: tuple[int, ...], strides: tuple[int, ...], channels: int
) -> tuple[Window, tuple[int, ...], tuple[int, ...]]:
    """Where the convolution of such an input reads it, and shape and strides of the output, found by one look-up."""
    window = forward_window(spec, tuple(size[2:]))
    y = new_activation(torch.empty_strided(size, strides, device="meta"), channels, window.output_size)
    return window, tuple(y.shape), y.stride()


def transpose(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, output_padding: Sequence[int]) -> Tensor:
    window = adjoint_window(spec, tuple(x.shape[2:]), spec.transposed_size(x.shape[2:], output_padding))
    y = new_activation(x, weight.shape[1] * spec.groups, window.output_size)
    _run(x, window, spec, True, weight, bias if bias is None else bias.contiguous(), y, None, None)
    return y


def weight_grad(x: Tensor, grad_y: Tensor, spec: ConvSpec) -> Tensor:
    window = forward_window(spec, tuple(x.shape[2:]))
    grad = x.new_empty((grad_y.shape[1], x.shape[1] // spec.groups, spec.geometry.num_rings))
    _run(x, window, spec, False, None, None, None, grad_y, grad)
    return grad


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, Tensor]:
    input_size = tuple(x.shape[2:])
    if not spec.is_unit_stride:
        output_padding = spec.output_padding(input_size, grad_y.shape[2:])
        grad_x = laid_out_like(x, transpose(grad_y, weight, None, spec, output_padding))
        return grad_x, weight_grad(x, grad_y, spec)
    window = adjoint_window(spec, tuple(grad_y.shape[2:]), input_size)
    grad_x = new_activation(x, x.shape[1], input_size)
    grad = torch.empty_like(weight, memory_format=torch.contiguous_format)
    _run(grad_y, window, spec, True, weight, None, grad_x, x, grad)
    return grad_x, grad


def _run(
    source: Tensor,
    window: Window,
    spec: ConvSpec,
    transposed: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    y: Tensor | None,
    thin: Tensor | None,
    grad: Tensor | None,
    residual: Tensor | None = None,
    slope: float | None = None,
) -> None:
    """``y = bias + (ring sums of source) weight``, and ``grad = (ring sums of source)^T thin``, where asked for.

    Args:
        source: what is summed over rings: the convolution's input, or with ``transposed`` a gradient of its output.
        thin: the activation of the other side, which is not summed and so stays ``rings`` times thinner than the ring
            sums that it is multiplied with.
        weight, grad: of the convolution's own shape, whichever side is summed.
        residual: added to y; has its strides.
        slope: what is negative in y then is multiplied by it; None leaves it.
    """
    _operator()(source, *_as_numbers(window), spec.groups, transposed, weight, bias, y, thin, grad, residual, slope)


@lru_cache(maxsize=1)
def _operator() -> Callable[..., None]:
    reason = missing()
    if reason is not None:
        raise RuntimeError(f"there is no native kernel: {reason}")
    return torch.ops.sre_triton_native.ring_conv.default


@lru_cache(maxsize=1024)
def _as_numbers(window: Window) -> tuple[Tensor, Tensor]:
    """What the kernel's ``read_window`` reads."""
    lacking = 3 - len(window.half)
    numbers: list[int] = []
    for values, default in (
        (window.output_size, 1), (window.half, 0), (window.origin, 0), (window.stride, 1), (window.dilation, 1),
        (window.upsampling, 1),
    ):  # fmt: skip
        numbers += [default] * lacking + list(values)
    schedule = window.schedule
    numbers += [1 if lacking else 0, len(window.rings), *window.rings]
    numbers += [len(schedule.levels), *(level + lacking for level in schedule.levels)]
    nodes = list(_nodes(schedule))
    numbers.append(len(nodes))
    factors = []
    for steps in nodes:
        terms = [(step.left, 1.0) for step in steps[:1] if step.left] + [(step.right, step.factor) for step in steps]
        ring = steps[-1].completes
        numbers += [steps[0].out, -1 if ring is None else ring, len(terms)]
        for operand, factor in terms:
            numbers += [operand.buffer, *[0] * lacking, *operand.offset]
            factors.append(factor)
    return torch.tensor(numbers, dtype=torch.int64, device="cpu"), torch.tensor(
        factors, dtype=torch.float64, device="cpu"
    )


def _nodes(schedule: Schedule) -> Iterator[list[Step]]:
    """Runs of steps that bring one sum into its buffer, one term after the other."""
    run: list[Step] = []
    for step in schedule.steps:
        if run and not (step.out == run[-1].out and step.left is not None and step.left.buffer == step.out):
            yield run
            run = []
        run.append(step)
    if run:
        yield run
