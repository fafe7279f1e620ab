"""What a call costs on the dense and on the ring-wise path: a linear model of shapes and dtype.

A path's *work* is a few amounts that its time grows with: operations started, additions, products,
elements moved. The predicted time is their sum, each times its *rate* in nanoseconds. The rates of CPUs
are fitted by ``python -m bench.fit_plan``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from sre_triton.schedule import ring_schedule

if TYPE_CHECKING:
    from sre_triton.plan import Call

__all__ = ["DenseWork", "Estimate", "Rates", "RingwiseWork", "dense_work", "estimate", "rates", "ringwise_work"]


class DenseWork(NamedTuple):
    """Work of the dense path, or nanoseconds per unit of it."""

    start: float  # once per pass
    products: float  # of one convolution
    gradient_products: float  # of its adjoints, which other kernels compute
    kernel: float  # elements of the expanded kernel
    activations: float  # elements of input and output


class RingwiseWork(NamedTuple):
    """Work of the ring-wise path, or nanoseconds per unit of it."""

    start: float  # once per pass
    calls: float  # of PyTorch operations on a block
    additions: float  # of elements in ring sums
    strided: float  # the same where the convolution is strided: operands are read with gaps, from larger blocks
    copies: float  # of elements into a block, and of ring sums
    products: float
    outputs: float  # elements of products, written or added up


Rates = tuple[DenseWork, RingwiseWork]


class Estimate(NamedTuple):
    """Predicted seconds of a call on each path."""

    dense: float
    ringwise: float

    @property
    def path(self) -> str:
        """The path to take. Where the two are close, it is the one with the smaller surprises."""
        return "ringwise" if _MARGIN * self.ringwise + _HEAD_START < self.dense else "dense"


# What predictions are off now and then: a tenth, and some of what it costs to start operations.
_MARGIN = 1.1
_HEAD_START = 4e-5


def estimate(call: Call, rates: Rates) -> Estimate:
    """What ``call`` costs at these rates."""

    def seconds(work: DenseWork | RingwiseWork, rate: DenseWork | RingwiseWork) -> float:
        return 1e-9 * sum(amount * price for amount, price in zip(work, rate, strict=True))

    return Estimate(seconds(dense_work(call), rates[0]), seconds(ringwise_work(call), rates[1]))


def dense_work(call: Call) -> DenseWork:
    """What the dense path does for this call."""
    spec, input_size = call.spec, call.input_size
    output_size = spec.output_size(input_size)
    taps = 1.0
    for k, n, m, p, s, d in zip(
        spec.geometry.kernel_size, input_size, output_size, spec.padding, spec.stride, spec.dilation, strict=True
    ):
        taps *= _taps_inside(k, n, m, p, s, d) / max(m, 1)
    group_in, group_out = call.in_channels // spec.groups, call.out_channels // spec.groups
    # A depthwise layer has a kernel of its own.
    lanes = 1 if group_out == group_in == 1 else _in_lanes(group_out)
    products = call.pixels * taps * group_in * lanes * spec.groups
    passes = 2 if call.kind == "backward" else 1
    forward = call.kind == "forward"
    kernel = spec.geometry.num_taps * call.out_channels * group_in
    activations = call.batch * call.in_channels * math.prod(input_size) + call.pixels * call.out_channels
    return DenseWork(
        start=passes,
        products=products if forward else 0.0,
        gradient_products=0.0 if forward else passes * products,
        kernel=passes * kernel,
        activations=passes * activations,
    )


def _in_lanes(channels: int) -> int:
    """Output channels that are paid for: they fill vectors of 16."""
    return -(-channels // 16) * 16


def _taps_inside(k: int, n: int, m: int, padding: int, stride: int, dilation: int) -> int:
    """Taps of ``m`` outputs that read one of ``n`` inputs rather than padding, along one dimension."""
    total = 0
    for tap in range(k):
        shift = padding - dilation * tap
        total += max(0, min(m - 1, (n - 1 + shift) // stride) - max(0, -(-shift // stride)) + 1)
    return total


# Elements of scratch memory that a block of ring sums takes.
_BLOCK = 3 << 18


def ringwise_work(call: Call) -> RingwiseWork:
    """What the ring-wise path does for this call."""
    spec, input_size = call.spec, call.input_size
    if call.kind == "backward" and not spec.is_unit_stride:
        parts = [ringwise_work(call._replace(kind=kind)) for kind in ("transpose", "weight_grad")]
        return RingwiseWork(*map(sum, zip(*parts, strict=True)))
    if call.kind in ("forward", "weight_grad"):
        positions, summed, mixed, stride = call.pixels, call.in_channels, call.out_channels, spec.stride
    else:
        positions, summed, mixed = call.batch * math.prod(input_size), call.out_channels, call.in_channels
        stride = (1,) * spec.ndim
    half = tuple(min(k // 2, n - 1) for k, n in zip(spec.geometry.kernel_size, input_size, strict=True))
    _, schedule = ring_schedule(spec.geometry, half)
    rings, products = schedule.num_rings, 2 if call.kind == "backward" else 1
    blocks = max(1.0, positions * summed * (len(schedule.levels) + rings) / _BLOCK)
    # A sum over the first dimensions alone still has every position of the padded input in the others.
    density = [math.prod(stride[level:]) for level in range(spec.ndim + 1)]
    additions = positions * summed * sum(density[schedule.levels[step.out]] for step in schedule.steps)
    return RingwiseWork(
        start=1.0,
        calls=blocks * (len(schedule.steps) + rings + 2 * products * spec.groups),
        additions=additions,
        strided=additions if density[0] > 1 else 0.0,
        copies=positions * summed * (density[0] + rings),
        products=products * positions * rings * summed * _in_lanes(mixed // spec.groups),
        outputs=products * positions * mixed,
    )


def rates(device_type: str, dtype: torch.dtype) -> Rates:
    """Nanoseconds per unit of dense and of ring-wise work."""
    if device_type != "cpu":
        return _OTHER
    return _CPU_HALF if dtype in (torch.bfloat16, torch.float16) else _CPU


# One thread of a server processor with AVX-512. More threads make both paths faster alike.
_CPU = (
    DenseWork(start=8.4e4, products=0.0173, gradient_products=0.0185, kernel=1.8, activations=0.54),
    RingwiseWork(start=1.6e5, calls=3.1e3, additions=0.32, strided=0.17, copies=0.0, products=0.0247, outputs=0.83),
)
_CPU_HALF = (
    DenseWork(start=1.1e5, products=0.0085, gradient_products=0.0113, kernel=1.0, activations=0.37),
    RingwiseWork(start=1.1e5, calls=9.2e3, additions=0.21, strided=0.085, copies=0.33, products=0.0106, outputs=0.56),
)
# Not measured: a ratio of arithmetic to memory traffic as GPUs have it, 200 products to a byte, with every
# addition going through memory. It errs to the side of the dense path.
_OTHER = (
    DenseWork(start=1e4, products=1e-5, gradient_products=1e-5, kernel=4e-3, activations=4e-3),
    RingwiseWork(start=2e4, calls=6e3, additions=8e-3, strided=0.0, copies=8e-3, products=1e-5, outputs=4e-3),
)
