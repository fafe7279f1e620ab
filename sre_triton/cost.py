"""What a call costs on the dense and on the ring-wise path: a linear model of shapes and dtype.

A path's *work* is a few amounts that its time grows with: operations started, additions, products,
elements moved. The predicted time is their sum, each times its *rate* in nanoseconds. The rates of CPUs
are fitted by ``python -m bench.fit_plan``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from sre_triton.depthwise import ring_masks, suits_depthwise
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
    taps: float  # of elements in ring sums by depthwise convolutions, those of weight 0 between the others too
    sums: float  # elements of such ring sums; twice where the convolution is strided
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


# Elements of scratch memory that a block of ring sums takes, and of one ring sum by a depthwise convolution.
_BLOCK = 3 << 18
_DEPTHWISE_BLOCK = 1 << 18


def ringwise_work(call: Call) -> RingwiseWork:
    """What the ring-wise path does for this call, if its input is channels_last."""
    spec, input_size = call.spec, call.input_size
    if call.kind == "backward" and not spec.is_unit_stride:
        parts = [ringwise_work(call._replace(kind=kind)) for kind in ("transpose", "weight_grad")]
        return RingwiseWork(*map(sum, zip(*parts, strict=True)))
    upsampling = spec.stride if call.kind == "transpose" else (1,) * spec.ndim
    if call.kind in ("forward", "weight_grad"):
        positions, summed, mixed, stride = call.pixels, call.in_channels, call.out_channels, spec.stride
    else:
        positions, summed, mixed = call.batch * math.prod(input_size), call.out_channels, call.in_channels
        stride = (1,) * spec.ndim
    half = tuple(min(k // 2, n - 1) for k, n in zip(spec.geometry.kernel_size, input_size, strict=True))
    rings, schedule = ring_schedule(spec.geometry, half)
    products, elements = 2 if call.kind == "backward" else 1, positions * summed
    shared = RingwiseWork(
        start=1.0,
        calls=0.0,
        additions=0.0,
        strided=0.0,
        copies=0.0,
        taps=0.0,
        sums=0.0,
        products=products * elements * len(rings) * _in_lanes(mixed // spec.groups),
        outputs=products * positions * mixed,
    )
    if call.device.type == "cpu" and suits_depthwise(upsampling, elements, len(rings), call.dtype):
        blocks = max(1.0, elements / _DEPTHWISE_BLOCK)
        return shared._replace(
            calls=blocks * len(rings) * (1 + products * spec.groups),
            taps=positions * _in_lanes(summed) * sum(mask.shares.size for mask in ring_masks(spec.geometry, half)),
            sums=elements * len(rings) * (2 if math.prod(stride) > 1 else 1),
        )
    blocks = max(1.0, elements * (len(schedule.levels) + len(rings)) / _BLOCK)
    # A sum over the first dimensions alone still has every position of the padded input in the others.
    density = [math.prod(stride[level:]) for level in range(spec.ndim + 1)]
    additions = elements * sum(density[schedule.levels[step.out]] for step in schedule.steps)
    return shared._replace(
        calls=blocks * (len(schedule.steps) + len(rings) + 2 * products * spec.groups),
        additions=additions,
        strided=additions if density[0] > 1 else 0.0,
        copies=elements * (density[0] + len(rings)),
    )


def rates(device_type: str, dtype: torch.dtype) -> Rates:
    """Nanoseconds per unit of dense and of ring-wise work."""
    if device_type != "cpu":
        return _OTHER
    return _CPU_HALF if dtype in (torch.bfloat16, torch.float16) else _CPU


# One thread of a server processor with AVX-512. More threads make both paths faster alike.
_CPU = (
    DenseWork(start=7.7e4, products=0.0176, gradient_products=0.0195, kernel=2.6, activations=0.67),
    RingwiseWork(
        start=1.2e5,
        calls=8.1e3,
        additions=0.32,
        strided=0.18,
        copies=0.0,
        taps=0.053,
        sums=0.81,
        products=0.034,
        outputs=1.07,
    ),
)
_CPU_HALF = (
    DenseWork(start=1.1e5, products=0.0091, gradient_products=0.0118, kernel=1.25, activations=0.39),
    RingwiseWork(
        start=1.7e5,
        calls=1.0e4,
        additions=0.38,
        strided=0.043,
        copies=0.077,
        taps=0.055,
        sums=0.44,
        products=0.0143,
        outputs=0.52,
    ),
)
# Not measured: a ratio of arithmetic to memory traffic as GPUs have it, 200 products to a byte, with every
# addition going through memory. It errs to the side of the dense path.
_OTHER = (
    DenseWork(start=1e4, products=1e-5, gradient_products=1e-5, kernel=4e-3, activations=4e-3),
    RingwiseWork(
        start=2e4,
        calls=6e3,
        additions=8e-3,
        strided=0.0,
        copies=8e-3,
        taps=0.0,
        sums=0.0,
        products=1e-5,
        outputs=4e-3,
    ),
)
