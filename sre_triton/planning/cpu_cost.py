"""What a call costs on each of a CPU's backends: a linear model of shapes and dtype.

A backend's *work* is a few amounts that its time grows with: operations started, additions, products,
elements moved. The predicted time is their sum, each times its *rate* in nanoseconds. The rates of CPUs
are fitted by ``python -m bench.fit_plan``.

There is no backend by FFT. A ring kernel's spectrum is real, so tiles of 32 need 1.9 products per channel
pair and pixel at k = 9 where ring sums need 5. Measured once in float32 on one thread (AVX-512), spectra of
the weights given, maps of 96 to 144 pixels, the native kernel's time over that by FFT, and over that of its
products alone: k = 9 with 128, 256 and 512 channels .44, .33, .59 and 1.5, 1.3, 1.6; k = 11 with 128 and 256
channels .40, .36 and 1.7, 1.3. So only transforms that cost almost nothing would reach the 1.3 for which a
backend pays, at tens of times the weights' memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from sre_triton.backends.base import Call, Kind
from sre_triton.geometry.schedule import ring_schedule

__all__ = [
    "DenseWork",
    "NativeWork",
    "RingSums",
    "RingwiseWork",
    "Work",
    "choose",
    "dense_work",
    "estimate",
    "in_lanes",
    "native_work",
    "rates",
    "ring_sums",
    "ringwise_work",
]


class DenseWork(NamedTuple):
    """Work of the dense backend, or nanoseconds per unit of it."""

    start: float  # once per pass
    products: float  # of one convolution
    gradient_products: float  # of its adjoints, which other kernels compute
    depthwise: float  # products of a depthwise layer's forward pass, which has a kernel of its own
    kernel: float  # elements of the expanded kernel
    activations: float  # elements of input and output


class RingwiseWork(NamedTuple):
    """Work of the ring-wise backend, or nanoseconds per unit of it."""

    start: float  # once per pass
    calls: float  # of PyTorch operations on a block
    additions: float  # of elements in ring sums
    strided: float  # the same where the convolution is strided: operands are read with gaps, from larger blocks
    copies: float  # of elements into a block, and of ring sums
    products: float
    outputs: float  # elements of products, written or added up


class NativeWork(NamedTuple):
    """Work of the native backend, or nanoseconds per unit of it."""

    start: float  # once per pass
    loads: float  # elements copied into a tile
    rows: float  # additions of rows of elements
    additions: float  # of elements in ring sums
    products: float
    gradient_products: float  # of passes that make a weight gradient
    taps: float  # products of depthwise layers, which have no ring sums but for weight gradients
    calls: float  # of the kernels that multiply a few positions by a few channels
    kernel: float  # elements of the ring weight, packed or added up
    outputs: float  # elements of products


Work = DenseWork | RingwiseWork | NativeWork


def estimate(call: Call, rates: Mapping[str, Work]) -> dict[str, float]:
    """Predicted seconds of ``call`` on each backend that ``rates`` names."""
    return {
        name: 1e-9 * sum(amount * price for amount, price in zip(_WORK[name](call), rate, strict=True))
        for name, rate in rates.items()
    }


# By how much predictions may be too low: by a tenth, by more where channels are so few that memory decides, and by some
# of what it costs to start operations.
_MARGIN, _NARROW_MARGIN = 1.1, 1.6
_NARROW = 8
_HEAD_START = {"ringwise": 4e-5, "native": 0.0}


def choose(call: Call, seconds: Mapping[str, float]) -> str:
    """The backend to take, of the dense one and one other. Where the two are close it is the dense one, whose time is
    predicted more safely."""
    (other,) = set(seconds) - {"dense"}
    per_group = min(call.in_channels, call.out_channels) // call.spec.groups
    narrow = call.kind == "forward" and per_group < _NARROW and not _is_depthwise(call)
    expected = (_NARROW_MARGIN if narrow else _MARGIN) * seconds[other] + _HEAD_START[other]
    return other if expected < seconds["dense"] else "dense"


def _is_depthwise(call: Call) -> bool:
    return call.spec.groups == call.in_channels == call.out_channels > 1


def dense_work(call: Call) -> DenseWork:
    """What the dense backend does for this call."""
    spec, input_size = call.spec, call.input_size
    output_size = spec.output_size(input_size)
    taps = 1.0
    for k, n, m, p, s, d in zip(
        spec.geometry.kernel_size, input_size, output_size, spec.padding, spec.stride, spec.dilation, strict=True
    ):
        taps *= _taps_inside(k, n, m, p, s, d) / max(m, 1)
    group_in, group_out = call.in_channels // spec.groups, call.out_channels // spec.groups
    forward = call.kind == "forward"
    lanes = 1 if group_out == group_in == 1 else in_lanes(group_out)
    rows = group_in if forward else in_lanes(group_in, 8)
    products = call.pixels * taps * rows * lanes * spec.groups
    passes = 2 if call.kind == "backward" else 1
    kernel = spec.geometry.num_taps * call.out_channels * group_in
    activations = call.batch * call.in_channels * math.prod(input_size) + call.pixels * call.out_channels
    if forward and _is_depthwise(call):
        weighed, outputs = call.pixels * taps * in_lanes(call.in_channels), call.pixels * call.out_channels
        return DenseWork(1.0, 0.0, 0.0, depthwise=weighed, kernel=kernel, activations=outputs)
    return DenseWork(
        start=passes,
        products=products if forward else 0.0,
        gradient_products=0.0 if forward else passes * products,
        depthwise=0.0,
        kernel=passes * kernel,
        activations=passes * activations,
    )


def in_lanes(channels: int, lanes: int = 16) -> int:
    """Channels that are paid for: they fill vectors."""
    return -(-channels // lanes) * lanes


def _taps_inside(k: int, n: int, m: int, padding: int, stride: int, dilation: int) -> int:
    """Taps of ``m`` outputs that read one of ``n`` inputs rather than padding, along one dimension."""
    total = 0
    for tap in range(k):
        shift = padding - dilation * tap
        total += max(0, min(m - 1, (n - 1 + shift) // stride) - max(0, -(-shift // stride)) + 1)
    return total


# Elements of scratch memory that a block of ring sums takes.
_BLOCK = 3 << 18


class RingSums(NamedTuple):
    """The ring sums that a pass is made of, and what they are multiplied with."""

    positions: int  # that have ring sums
    width: int  # of them in a row
    summed: int  # channels that are summed over rings
    mixed: int  # channels of the products
    products: int  # that the ring sums are a factor of: gradients share theirs
    rings: int
    density: list[int]  # elements of a buffer of each level, per position and channel
    additions: int  # per position and channel
    operations: int  # the same, and multiplications by shares of anti-aliased rings
    steps: int
    buffers: int


def ring_sums(call: Call) -> RingSums:
    """The ring sums of a pass whose gradients, if it has two, share them."""
    spec, input_size = call.spec, call.input_size
    if call.kind in ("forward", "weight_grad"):
        positions, summed, mixed, stride = call.pixels, call.in_channels, call.out_channels, spec.stride
        width = spec.output_size(input_size)[-1]
    else:
        positions, summed, mixed = call.batch * math.prod(input_size), call.out_channels, call.in_channels
        width = input_size[-1]
        stride = (1,) * spec.ndim
    half = tuple(min(k // 2, n - 1) for k, n in zip(spec.geometry.kernel_size, input_size, strict=True))
    rings, schedule = ring_schedule(spec.geometry, half)
    # A sum over the first dimensions alone still has every position of the padded input in the others.
    density = [math.prod(stride[level:]) for level in range(spec.ndim + 1)]
    additions = sum(density[schedule.levels[step.out]] for step in schedule.steps)
    operations = sum(
        density[schedule.levels[step.out]] * ((step.left is not None) + (step.factor != 1)) for step in schedule.steps
    )
    products = 2 if call.kind == "backward" else 1
    return RingSums(
        positions, width, summed, mixed, products, len(rings), density, additions, operations,
        len(schedule.steps), len(schedule.levels),
    )  # fmt: skip


def ringwise_work(call: Call) -> RingwiseWork:
    """What the ring-wise backend does for this call, if its input is channels_last."""
    if call.kind == "backward" and not call.spec.is_unit_stride:
        return RingwiseWork(*_in_two_passes(ringwise_work, call))
    spec, r = call.spec, ring_sums(call)
    elements = r.positions * r.summed
    blocks = max(1.0, elements * (r.buffers + r.rings) / _BLOCK)
    return RingwiseWork(
        start=1.0,
        calls=blocks * (r.steps + r.rings + 2 * r.products * spec.groups),
        additions=elements * r.additions,
        strided=elements * r.additions if r.density[0] > 1 else 0.0,
        copies=elements * (r.density[0] + r.rings),
        products=r.products * elements * r.rings * in_lanes(r.mixed // spec.groups),
        outputs=r.products * r.positions * r.mixed,
    )


# Positions and vectors of channels that one call of the native kernels multiplies.
_NATIVE_ROWS = 14
_NATIVE_COLUMNS = 32


def native_work(call: Call) -> NativeWork:
    """What the native backend does for this call, if its input is channels_last."""
    depthwise = _is_depthwise(call)
    if call.kind == "backward" and not call.spec.is_unit_stride:
        return NativeWork(*_in_two_passes(native_work, call))
    if depthwise and call.kind not in ("weight_grad", "backward"):
        return _tap_by_tap(call)
    groups, r = call.spec.groups, ring_sums(call)
    elements, mixed = r.positions * r.summed, r.mixed // groups
    lanes = 1 if depthwise else in_lanes(mixed)
    products = r.products * elements * r.rings * lanes
    calls = r.products * groups * math.ceil(r.positions / _NATIVE_ROWS) * math.ceil(mixed / _NATIVE_COLUMNS)
    weight_grad = call.kind in ("weight_grad", "backward")
    return NativeWork(
        start=1.0,
        loads=elements * r.density[0],
        rows=r.positions / max(r.width, 1) * r.additions,
        additions=elements * r.additions,
        products=0.0 if weight_grad else products,
        gradient_products=products if weight_grad else 0.0,
        taps=0.0,
        calls=0.0 if depthwise else calls,
        kernel=r.products * r.rings * r.summed * lanes,
        outputs=r.products * r.positions * r.mixed,
    )


def _tap_by_tap(call: Call) -> NativeWork:
    """What the native backend does for a depthwise layer's output, or for the gradient of its input."""
    taps = int((call.spec.geometry.weights != 0).any(axis=0).sum())
    positions = call.pixels if call.kind == "forward" else call.batch * math.prod(call.input_size)
    weighed = call.pixels * taps * in_lanes(call.in_channels)
    nothing = dict.fromkeys(NativeWork._fields, 0.0)
    return NativeWork(
        **nothing
        | {"start": 1.0, "taps": weighed, "kernel": taps * call.in_channels, "outputs": positions * call.in_channels}
    )


_WORK: dict[str, Callable[[Call], Work]] = {"dense": dense_work, "ringwise": ringwise_work, "native": native_work}


def _in_two_passes(work: Callable[[Call], Work], call: Call) -> list[float]:
    """A strided backward pass does its gradients one after the other."""
    kinds: tuple[Kind, ...] = ("transpose", "weight_grad")
    parts = [work(call._replace(kind=kind)) for kind in kinds]
    return [sum(amounts) for amounts in zip(*parts, strict=True)]


def rates(device_type: str, dtype: torch.dtype) -> dict[str, Work]:
    """Nanoseconds per unit of each backend's work."""
    if device_type != "cpu":
        return _OTHER
    return _CPU_HALF if dtype in (torch.bfloat16, torch.float16) else _CPU


# One thread of a server processor with AVX-512. More threads make both backends faster alike.
_CPU: dict[str, Work] = {
    "dense": DenseWork(
        start=7.7e4, products=0.0176, gradient_products=0.0165, depthwise=0.035, kernel=2.6, activations=0.67
    ),
    "ringwise": RingwiseWork(
        start=1.3e5,
        calls=4.2e3,
        additions=0.27,
        strided=0.14,
        copies=0.0,
        products=0.026,
        outputs=0.62,
    ),
    "native": NativeWork(
        start=4e3,
        loads=0.33,
        rows=45.0,
        additions=0.064,
        products=0.0173,
        gradient_products=0.0215,
        taps=0.033,
        calls=50.0,
        kernel=0.46,
        outputs=0.23,
    ),
}
_CPU_HALF: dict[str, Work] = {
    "dense": DenseWork(
        start=1.1e5, products=0.0091, gradient_products=0.0113, depthwise=0.035, kernel=1.25, activations=0.39
    ),
    "ringwise": RingwiseWork(
        start=1.7e5,
        calls=6.1e3,
        additions=0.3,
        strided=0.013,
        copies=0.085,
        products=0.012,
        outputs=0.26,
    ),
    "native": NativeWork(
        start=5e3,
        loads=0.19,
        rows=46.0,
        additions=0.075,
        products=0.0075,
        gradient_products=0.0176,
        taps=0.12,
        calls=66.0,
        kernel=0.51,
        outputs=0.24,
    ),
}
# Not measured: a ratio of arithmetic to memory traffic as GPUs have it, 200 products to a byte, with every
# addition going through memory. It errs to the side of the dense backend.
_OTHER: dict[str, Work] = {
    "dense": DenseWork(start=1e4, products=1e-5, gradient_products=1e-5, depthwise=1e-5, kernel=4e-3, activations=4e-3),
    "ringwise": RingwiseWork(
        start=2e4,
        calls=6e3,
        additions=8e-3,
        strided=0.0,
        copies=8e-3,
        products=1e-5,
        outputs=4e-3,
    ),
}
