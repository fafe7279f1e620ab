"""Every backend of this machine against float64: what to run first on a new machine, and what a bug report quotes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sre_triton.backends.base import Call
from sre_triton.backends.registry import BACKENDS
from sre_triton.diagnosis.machine import describe_machine
from sre_triton.functional import (
    sre_conv2d,
    sre_conv3d,
    sre_conv_transpose2d,
    sre_conv_transpose3d,
)
from sre_triton.geometry.conv import conv_spec
from sre_triton.geometry.rings import RingGeometry, ring_geometry
from sre_triton.planning.request import backend

__all__ = ["Row", "SelfCheck", "selfcheck"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# How much larger than the reference's an error may be, in root mean square and at most: ring sums add in another order,
# and the largest of a few hundred errors scatters.
_RMS_FACTOR, _MAX_FACTOR = 6.0, 9.0

_RING: dict[tuple[int, bool], Any] = {
    (2, False): sre_conv2d, (3, False): sre_conv3d, (2, True): sre_conv_transpose2d, (3, True): sre_conv_transpose3d,
}  # fmt: skip
_DENSE: dict[tuple[int, bool], Any] = {
    (2, False): F.conv2d, (3, False): F.conv3d, (2, True): F.conv_transpose2d, (3, True): F.conv_transpose3d,
}  # fmt: skip


@dataclass(frozen=True)
class _Layer:
    """A small convolution of an awkward shape."""

    kernel_size: int
    size: tuple[int, ...]
    channels: tuple[int, int]
    batch: int = 2
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    antialias: bool = False
    transposed: bool = False

    def __str__(self) -> str:
        fields = self.__dataclass_fields__
        changed = {name: getattr(self, name) for name, f in fields.items() if getattr(self, name) != f.default}
        return ", ".join(f"{name}={value}" for name, value in changed.items())

    @property
    def geometry(self) -> RingGeometry:
        return ring_geometry((self.kernel_size,) * len(self.size), None, True, self.antialias)

    @property
    def arguments(self) -> dict[str, int]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, ring weight, bias and grad_y on the CPU."""
        generator = torch.Generator().manual_seed(1)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        (c_in, c_out), rings = self.channels, self.geometry.num_rings
        first, second = (c_in, c_out) if self.transposed else (c_out, c_in)
        x, weight = draw(self.batch, c_in, *self.size), draw(first, second // self.groups, rings)
        shape = self.dense(x.double(), weight.double(), None).shape
        return x, weight, draw(c_out), draw(*shape)

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None, kernel_dtype: torch.dtype | None = None) -> Tensor:
        """PyTorch's own convolution with the expanded kernel, which is rounded to ``kernel_dtype`` where one is given;
        nothing of any backend is in it."""
        table = torch.from_numpy(self.geometry.weights.copy()).to(x)
        kernel = torch.einsum("oir,rt->oit", weight, table).unflatten(2, self.geometry.kernel_size)
        if kernel_dtype is not None:
            kernel = kernel + (kernel.to(kernel_dtype) - kernel).detach()
        return _DENSE[len(self.size), self.transposed](x, kernel, bias, **self.arguments)

    def rings(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        function = _RING[len(self.size), self.transposed]
        more = {"kernel_size": self.kernel_size, "antialias": self.antialias}
        return function(x, weight, bias, **self.arguments, **more)

    def call(self, dtype: torch.dtype, device: torch.device) -> Call:
        """The call of the forward pass, to ask a backend for a refusal."""
        n, (c_in, c_out) = len(self.size), self.channels
        one_each = [(value,) * n for value in (self.stride, self.padding, self.dilation)]
        spec = conv_spec(n, self.kernel_size, self.geometry.num_rings, True, self.antialias, *one_each, self.groups)
        if self.transposed:
            return Call(
                "transpose", spec, self.batch, c_out, c_in, spec.transposed_size(self.size, (0,) * n), dtype, device
            )
        return Call("forward", spec, self.batch, c_in, c_out, self.size, dtype, device)


_LAYERS = (
    _Layer(3, (7, 11), (5, 7), padding=1),
    _Layer(5, (9, 14), (6, 4), batch=1, stride=2, padding=2, groups=2),
    _Layer(5, (8, 9), (6, 6), padding=4, dilation=2, groups=6),
    _Layer(9, (13, 10), (33, 17), padding=4, antialias=True),
    _Layer(5, (5, 6), (20, 18), stride=2, padding=1, transposed=True),
    _Layer(3, (4, 5, 7), (5, 6), padding=1),
    _Layer(5, (5, 6, 6), (17, 3), stride=2, padding=2),
    _Layer(3, (3, 4, 3), (4, 5), stride=2, transposed=True),
)
RESULTS = ("forward", "grad of input", "grad of weight", "grad of bias")


@dataclass
class Row:
    """One backend with one dtype on one device.

    Args:
        worst: the largest error found, as a share of what is tolerated; 1 or more is a fault.
        not_run: why this backend cannot run here, or None.
        faults: what is wrong, one line each.
    """

    device: str
    backend: str
    dtype: str
    checked: int = 0
    worst: float = 0.0
    seconds: float = 0.0
    not_run: str | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        if self.faults:
            return f"FAULT in {len(self.faults)}"
        return "ok" if self.not_run is None else f"not run: {self.not_run}"


@dataclass(frozen=True)
class SelfCheck:
    """What :func:`selfcheck` found; ``str`` of it is the report.

    Attributes:
        machine: versions, processor and GPU, by name.
        rows: one for each device, backend and dtype.
    """

    machine: dict[str, str]
    rows: list[Row]

    @property
    def is_ok(self) -> bool:
        """Whether no backend that ran is at fault."""
        return not any(row.faults for row in self.rows)

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.machine.items()]
        lines += ["", f"{'device':7} {'backend':9} {'dtype':9} {'results':>7} {'of limit':>8} {'s':>5}  verdict"]
        for row in self.rows:
            figures = f"{row.checked:7} {row.worst:8.2f} {row.seconds:5.1f}" if row.checked else " " * 22
            lines.append(f"{row.device:7} {row.backend:9} {row.dtype:9} {figures}  {row.verdict}")
        lines += [f"FAULT: {row.device} {row.backend} {row.dtype}: {text}" for row in self.rows for text in row.faults]
        checked, faults = sum(row.checked for row in self.rows), sum(len(row.faults) for row in self.rows)
        lines += ["", f"{checked} results checked against float64, {faults} wrong"]
        return "\n".join(lines)


def selfcheck(device: torch.device | str | None = None) -> SelfCheck:
    """Holds every backend against float64: forward and gradients of awkward shapes in 2-D and 3-D, every dtype.

    The truth is PyTorch's own convolution in float64 on the CPU, and so is the measure of what rounding may do: the
    error that the same convolution makes in float32 with kernel and results rounded to the dtype.

    Args:
        device: where the backends run; None: on the CPU and, where there is one, on the current CUDA device.

    Returns:
        The rows, one for each device, backend and dtype, and the machine's versions; printed, a table. ``is_ok``
        tells whether nothing is wrong. A backend that cannot run here (no GPU, not built, or bfloat16 in Triton's
        interpreter, which computes it incorrectly) is no fault, and its row says why.

    Raises:
        RuntimeError: PyTorch has no such device.
    """
    if device is not None:
        devices = [torch.device(device)]
    else:
        devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    for found in devices:  # an impossible one is the caller's mistake, not every backend's fault
        try:
            torch.empty(1, device=found)
        except (AssertionError, RuntimeError) as error:  # the former from a PyTorch that was built without CUDA
            raise RuntimeError(f"device must be one that PyTorch can use here, got {found}: {error}") from error
    rows = [Row(str(where), name, str(dtype)[6:]) for where in devices for name in BACKENDS for dtype in DTYPES]
    with _full_float32():
        for dtype in DTYPES:
            problems = [_Problem(layer, dtype) for layer in _LAYERS]
            for row in rows:
                if row.dtype == str(dtype)[6:]:
                    _fill(row, problems)
    return SelfCheck(describe_machine(), rows)


@dataclass(frozen=True)
class _Problem:
    """A layer with its inputs in one dtype, the true results and the errors that rounding explains."""

    layer: _Layer
    dtype: torch.dtype
    inputs: tuple[Tensor, ...] = field(init=False)
    truths: tuple[Tensor, ...] = field(init=False)
    limits: tuple[tuple[float, float], ...] = field(init=False)

    def __post_init__(self) -> None:
        inputs = self.layer.tensors(self.dtype)
        truths = _results(self.layer.dense, inputs, torch.float64)
        kernel_dtype = torch.float32 if self.dtype == torch.float64 else self.dtype
        single = _results(partial(self.layer.dense, kernel_dtype=kernel_dtype), inputs, torch.float32)
        limits = []
        for truth, result in zip(truths, single, strict=True):
            if self.dtype != torch.float64:
                error = result.to(self.dtype).double() - truth
            else:  # rounding in float64 is the same with 29 more bits
                error = (result.double() - truth) * 2.0**-29
            limits.append((_RMS_FACTOR * _rms(error), _MAX_FACTOR * float(error.abs().max())))
        for name, value in (("inputs", inputs), ("truths", truths), ("limits", tuple(limits))):
            object.__setattr__(self, name, value)


def _fill(row: Row, problems: list[_Problem]) -> None:
    start, device = time.monotonic(), torch.device(row.device)
    refusals = [BACKENDS[row.backend].refusal(p.layer.call(p.dtype, device)) for p in problems]
    row.not_run = next((reason for reason in refusals if reason is not None), None)
    if row.not_run is not None:
        return
    for problem in problems:
        try:
            with backend(row.backend):
                inputs = tuple(t.to(device) for t in problem.inputs)
                results = _results(problem.layer.rings, inputs, problem.dtype)
        except Exception as error:  # a fault is a finding, and the other layers are run all the same
            row.faults.append(f"{problem.layer}: {type(error).__name__}: {error}".splitlines()[0][:300])
            continue
        for name, result, truth, limit in zip(RESULTS, results, problem.truths, problem.limits, strict=True):
            row.checked += 1
            share = _share(result.cpu().double() - truth, limit)
            row.worst = max(row.worst, share)
            if not share < 1:
                row.faults.append(f"{name} of {problem.layer}: {share:.3g} times the error that rounding explains")
    row.seconds = time.monotonic() - start


def _results(function: Any, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Forward, and the gradients of input, weight and bias."""
    *operands, grad_y = (t.detach().to(dtype) for t in inputs)
    leaves = [t.requires_grad_() for t in operands]
    with torch.enable_grad():
        y = function(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, grad_y))


def _share(error: Tensor, limit: tuple[float, float]) -> float:
    """The error by the limits of its root mean square and its largest element; infinite where it is not finite."""
    if not bool(error.isfinite().all()):
        return float("inf")
    rms, largest = limit
    return max(_rms(error) / rms, float(error.abs().max()) / largest)


def _rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """float32 is multiplied as float32, whatever the session has allowed."""
    switches: list[Any] = [torch.backends.cudnn.conv, torch.backends.cuda.matmul, torch.backends.mkldnn.conv]  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
