"""Calls of the native kernel: a convolution's window and additions as numbers, its weights as the kernel reads them.

The four functions are those of :mod:`sre_triton.dense`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sre_triton.additions import sum_dtype
from sre_triton.layout import new_activation
from sre_triton.native.library import missing
from sre_triton.schedule import Schedule, Step
from sre_triton.spec import ConvSpec
from sre_triton.windows import Window, adjoint_window, forward_window

__all__ = ["backward", "forward", "refusal", "transpose", "weight_grad"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def refusal(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the native kernel cannot run on such tensors, or None."""
    if device_type != "cpu":
        return f"it runs on CPUs, the tensors are on {device_type!r}"
    if dtype not in _DTYPES:
        return f"it takes floating types, got {dtype}"
    reason = missing()
    return None if reason is None else f"there is no native kernel ({reason})"


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    window = forward_window(spec, tuple(x.shape[2:]))
    y = new_activation(x, weight.shape[0], window.output_size)
    _run(x, window, spec.groups, y=y, weight=_grouped(weight, spec.groups).permute(0, 3, 2, 1), bias=bias)
    return y


def transpose(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, output_padding: Sequence[int]) -> Tensor:
    window = adjoint_window(spec, tuple(x.shape[2:]), spec.transposed_size(x.shape[2:], output_padding))
    y = new_activation(x, weight.shape[1] * spec.groups, window.output_size)
    _run(x, window, spec.groups, y=y, weight=_grouped(weight, spec.groups).permute(0, 3, 1, 2), bias=bias)
    return y


def weight_grad(x: Tensor, grad_y: Tensor, spec: ConvSpec) -> Tensor:
    window = forward_window(spec, tuple(x.shape[2:]))
    total = _new_total(x, grad_y, window, spec.groups)
    _run(x, window, spec.groups, thin=grad_y, total=total)
    return _ring_weight(total, x, grad_y, window, spec).permute(1, 3, 2, 0).flatten(0, 1).contiguous()


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, Tensor]:
    input_size = tuple(x.shape[2:])
    if not spec.is_unit_stride:
        output_padding = spec.output_padding(input_size, grad_y.shape[2:])
        return transpose(grad_y, weight, None, spec, output_padding), weight_grad(x, grad_y, spec)
    window = adjoint_window(spec, tuple(grad_y.shape[2:]), input_size)
    grad_x = new_activation(x, x.shape[1], input_size)
    total = _new_total(grad_y, x, window, spec.groups)
    kernels = _grouped(weight, spec.groups).permute(0, 3, 1, 2)
    _run(grad_y, window, spec.groups, y=grad_x, weight=kernels, thin=x, total=total)
    return grad_x, _ring_weight(total, grad_y, x, window, spec).permute(1, 2, 3, 0).flatten(0, 1).contiguous()


def _run(
    source: Tensor,
    window: Window,
    groups: int,
    *,
    y: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    thin: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    """``y = bias + (ring sums of source) weight`` and ``total += (ring sums of source)^T thin``, where asked for.

    ``weight`` is ``(groups, rings, in, out)``, of all rings.
    """
    numbers, factors = _as_numbers(window)
    if weight is not None and len(window.rings) < weight.shape[1]:
        weight = weight[:, window.rings]
    if bias is not None:
        bias = bias.contiguous()
    _operator()(source, numbers, factors, groups, weight, bias, y, thin, total)


@lru_cache(maxsize=1)
def _operator() -> Callable[..., None]:
    reason = missing()
    if reason is not None:
        raise RuntimeError(f"there is no native kernel: {reason}")
    return torch.ops.sre_triton_native.ring_conv.default


def _grouped(weight: Tensor, groups: int) -> Tensor:
    """Ring weights ``(out, in / groups, rings)`` as ``(groups, out / groups, in / groups, rings)``."""
    out, *others = weight.shape
    return weight.reshape(groups, out // groups, *others)


# The kernel works on whole vectors of this many bytes at most.
_VECTOR_BYTES = 64


def _new_total(summed: Tensor, thin: Tensor, window: Window, groups: int) -> Tensor:
    """Zeros ``(threads, rings, summed channels, thin channels / groups)``, the last padded to whole vectors."""
    dtype = sum_dtype(summed.dtype)
    lanes = _VECTOR_BYTES // dtype.itemsize
    columns = -(-thin.shape[1] // groups // lanes) * lanes
    return summed.new_zeros((torch.get_num_threads(), len(window.rings), summed.shape[1], columns), dtype=dtype)


def _ring_weight(total: Tensor, summed: Tensor, thin: Tensor, window: Window, spec: ConvSpec) -> Tensor:
    """The total as ``(all rings, groups, summed channels / groups, thin channels / groups)``."""
    grad = total.sum(0)[..., : thin.shape[1] // spec.groups].to(summed.dtype)
    if len(window.rings) < spec.geometry.num_rings:
        every = grad.new_zeros((spec.geometry.num_rings, *grad.shape[1:]))
        every[list(window.rings)] = grad
        grad = every
    return grad.unflatten(1, (spec.groups, -1))


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
    numbers += [1 if lacking else 0, len(window.rings)]
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
    return torch.tensor(numbers, dtype=torch.int64), torch.tensor(factors, dtype=torch.float64)


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
