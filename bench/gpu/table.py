"""One pass of one case: checked at its full batch, then raced against the dense convolution."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu.cases import Case
from bench.gpu.timing import Pace, race
from bench.gpu.truth import difference, full_float32, poisoned_memory, rounding, without_search
from sre_triton.backends import dense
from sre_triton.geometry.conv import ConvSpec

__all__ = ["Measured", "ceilings", "gmr_forward", "heading", "measure", "row"]

_FEW = 4  # channels at either end that the float32 truth of a weight gradient covers
_MOST_INPUTS = 16
_SEARCHED = 8  # algorithms that cuDNN tries
_RIVAL_TFLOPS = 300  # of a dense convolution, below which a ratio says nothing
_SOUND_3D_CUDNN = 91500  # older ones have faults in 3-D bfloat16


class Measured(NamedTuple):
    """Seconds per call by rival, and what is wrong with our results, in words."""

    seconds: dict[str, float]
    problems: list[str]


class _Operands(NamedTuple):
    pairs: list[tuple[Tensor, Tensor]]  # x and grad_y
    weight: Tensor
    kernel: Tensor  # expanded once


@lru_cache(maxsize=1)
def _operands(case: Case) -> _Operands:
    """Inputs that together are twice as large as the L2 cache, so that none is found there again."""
    torch.manual_seed(0)
    x, weight, grad_y = case.layer.tensors()
    l2 = torch.cuda.get_device_properties(0).L2_cache_size or 2**25
    count = min(_MOST_INPUTS, 2 + math.ceil(2 * l2 / x.nbytes))
    weight = weight / case.channels
    layout = torch.channels_last if case.ndim == 2 else torch.channels_last_3d
    kernel = dense.expand(weight, case.layer.spec.geometry).contiguous(memory_format=layout)
    return _Operands([(x, grad_y), *(case.layer.tensors()[::2] for _ in range(count - 1))], weight, kernel)


def measure(case: Case, which: str, with_gmr: bool, pace: Pace) -> Measured:
    """Job of the table's process."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = _SEARCHED
    from sre_triton.backends import triton

    operands, spec = _operands(case), case.layer.spec
    rivals: dict[str, list[Callable[[], tuple[Tensor, ...]]]] = {
        "ours": [partial(_run, triton, which, *pair, operands.weight, spec) for pair in operands.pairs],
        "dense": [partial(_run, dense, which, *pair, operands.weight, spec) for pair in operands.pairs],
        "cached": [partial(_run_cached, which, *pair, operands.kernel, spec) for pair in operands.pairs],
    }
    problems = _problems(case, which, rivals["ours"][0], rivals["dense"][0], operands)
    seconds = race(rivals, pace)
    if with_gmr and which == "forward":
        composed = [partial(gmr_forward, x, operands.weight, spec) for x, _ in operands.pairs]
        with without_search():
            try:
                seconds |= race({"gmr": composed}, pace)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()  # large kernels need more memory than there is
    return Measured(seconds, problems)


def _run(backend: Any, which: str, x: Tensor, grad_y: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, ...]:
    """One pass by a backend: the dense one expands the ring weights every time."""
    if which == "forward":
        return (backend.forward(x, weight, None, spec),)
    if which == "grad_x":
        return (backend.transpose(grad_y, weight, None, spec, (0,) * spec.ndim),)
    if which == "grad_w":
        return (backend.weight_grad(x, grad_y, spec),)
    return (backend.forward(x, weight, None, spec), *backend.backward(grad_y, x, weight, spec))


def _run_cached(which: str, x: Tensor, grad_y: Tensor, kernel: Tensor, spec: ConvSpec) -> tuple[Tensor, ...]:
    """One pass of the dense convolution with a kernel that is there already."""
    shape = (spec.stride, spec.padding, spec.dilation, False, (0,) * spec.ndim, spec.groups)
    results: tuple[Tensor, ...] = ()
    if which in ("forward", "step"):
        results = (torch.ops.aten.convolution(x, kernel, None, *shape),)
    if which != "forward":
        gradients = (which in ("grad_x", "step"), which in ("grad_w", "step"), False)
        results += torch.ops.aten.convolution_backward(grad_y, x, kernel, None, *shape, gradients)
    return results


def gmr_forward(x: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
    """The composition that GMR_Conv uses: every ring's mask over single channels, then a 1x1 convolution."""
    n, c, h, w = x.shape
    masks = torch.as_tensor(spec.geometry.weights.copy(), device=x.device, dtype=x.dtype)
    masks = masks.view(-1, 1, *spec.geometry.kernel_size)
    responses = F.conv2d(x.reshape(n * c, 1, h, w), masks, None, 1, spec.padding)
    return F.conv2d(responses.view(n, -1, h, w), weight.reshape(len(weight), -1, 1, 1))


def _problems(
    case: Case,
    which: str,
    ours: Callable[[], tuple[Tensor, ...]],
    theirs: Callable[[], tuple[Tensor, ...]],
    operands: _Operands,
) -> list[str]:
    """What is wrong with the very call that is timed: in full against the dense convolution in bfloat16, each with
    an error of its own, and in part against float32."""
    with poisoned_memory():
        results = ours()
    with without_search():
        expected: tuple[Tensor | None, ...] = theirs() if _trusts_dense(case.ndim) else (None,) * len(results)
        parts = _parts(case, *operands.pairs[0], operands.weight)
    names = ("forward", "grad_x", "grad_w") if which == "step" else (which,)
    problems = []
    for name, result, rival in zip(names, results, expected, strict=True):
        select, truth = parts[name]
        problem = difference(select(result), truth)
        if problem is None and rival is not None:
            problem = difference(result, rival, unit=rounding(truth, result.dtype), roundings=4)
        problems += [f"{name}: {problem}"] if problem else []
    return problems


def _parts(
    case: Case, x: Tensor, grad_y: Tensor, weight: Tensor
) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """By result: what of it is compared and the float32 truth: the first and the last image, or a few channels at
    either end of a weight gradient."""
    spec = case.layer.spec
    images = sorted({0, len(x) - 1})
    few = sorted({*range(_FEW), *range(case.channels - _FEW, case.channels)})
    with full_float32():
        wide, wide_grad, wide_weight = x[images].float(), grad_y[images].float(), weight.float()
        return {
            "forward": (lambda y: y[images], dense.forward(wide, wide_weight, None, spec)),
            "grad_x": (lambda g: g[images], dense.backward(wide_grad, wide, wide_weight, spec)[0]),
            "grad_w": (
                lambda g: g[few][:, few],
                dense.weight_grad(x[:, few].float(), grad_y[:, few].float(), spec),
            ),
        }


def _trusts_dense(ndim: int) -> bool:
    return ndim < 3 or (torch.backends.cudnn.version() or _SOUND_3D_CUDNN) >= _SOUND_3D_CUDNN


def ceilings(size: int, pace: Pace) -> tuple[float, float]:
    """Bytes per second of a copy of ``4 size^2`` bytes, and flop per second of a bfloat16 product of squares of
    ``size``. Job of the table's process."""
    source = torch.empty(4 * size**2, dtype=torch.uint8, device="cuda")
    target, a = torch.empty_like(source), torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    product = torch.empty_like(a)
    calls = {
        "copy": [lambda: target.copy_(source)] * 4,
        "product": [lambda: torch.mm(a, a, out=product)] * 4,
    }
    seconds = race(calls, pace)
    return 2 * source.numel() / seconds["copy"], 2 * size**3 / seconds["product"]


def row(
    case: Case, which: str, measured: Measured, top: tuple[float, float] | None, cudnn: int | None
) -> dict[str, Any]:
    """A row of the table as the planner reads it.

    Args:
        top: bytes and flop per second that this GPU can do, if that is known.
        cudnn: its version, such as 91500.
    """
    seconds, is_right = measured.seconds, not measured.problems
    tflops = case.dense_flop(which) / seconds["dense"] / 1e12
    wanted = min(_RIVAL_TFLOPS, top[1] / 2e12) if top else _RIVAL_TFLOPS  # 300 may be out of reach
    notes = []
    if tflops < wanted:
        notes.append(f"dense at {tflops:.0f} TFLOP/s, below {wanted:.0f}: the ratio says nothing")
    if case.ndim == 3 and (cudnn or _SOUND_3D_CUDNN) < _SOUND_3D_CUDNN:
        notes.append(f"cuDNN {cudnn} has faults in 3-D bfloat16: the ratio says nothing")
    gmr = seconds.get("gmr")
    return heading(case, which) | {
        "ms": seconds["ours"] * 1e3,
        "dense_ms": seconds["dense"] * 1e3,
        "dense_cached_ms": seconds["cached"] * 1e3,
        "gmr_ms": None if gmr is None else gmr * 1e3,
        "dense_tflops": tflops,
        "speedup_vs_dense": seconds["dense"] / seconds["ours"] if is_right else None,
        "speedup_vs_cached": seconds["cached"] / seconds["ours"] if is_right else None,
        "fraction_of_floor": case.floor(which, *top) / seconds["ours"] if top else None,
        "correct": is_right,
        "is_telling": not notes,
        "note": "; ".join(notes),
    }


def heading(case: Case, which: str) -> dict[str, Any]:
    """What a row is about."""
    return {
        "kernel_size": case.kernel_size,
        "channels": case.channels,
        "size": case.size,
        "batch": case.batch,
        "dtype": str(case.layer.dtype).removeprefix("torch."),
        "pass": which,
    }
