"""``python -m bench.fit_plan``: fits the planner's rates to this machine and says how well they plan.

Random convolutions are timed on every path with one thread. The rates are fitted on one half of them
and judged on the other: how often the faster path is predicted, and the worst loss where it is not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import geometric_mean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import nnls

from bench import timing
from bench.cases import Case, cases
from bench.layers import MEMORY_FORMATS
from sre_triton.backends import dense, native, ringwise
from sre_triton.backends.base import Backend, Call, Kind
from sre_triton.geometry.conv import conv_spec
from sre_triton.geometry.rings import default_num_rings
from sre_triton.planning import cpu_cost as cost
from sre_triton.planning.plan import plan_call

__all__ = ["Sample", "Verdict", "check_registry", "fit", "fit_rates", "main", "make_call", "random_cases", "verdict"]

BACKENDS: dict[str, Backend] = {"dense": dense, "ringwise": ringwise}
if native.missing() is None:
    BACKENDS["native"] = native
WORK: dict[str, Callable[[Call], cost.Work]] = {
    "dense": cost.dense_work,
    "ringwise": cost.ringwise_work,
    "native": cost.native_work,
}
DTYPES = (torch.float32, torch.bfloat16)
KINDS: tuple[Kind, ...] = ("forward", "backward")
CHANNELS = (3, 8, 16, 24, 32, 64, 96, 128, 256)
ROUNDS = 5


@dataclass(frozen=True)
class Sample:
    """A call and the seconds that it took on each path."""

    call: Call
    seconds: dict[str, float]


def random_cases(shapes: int, seed: int) -> Iterator[tuple[Case, int]]:
    """Random convolutions of moderate cost, with their kernel sizes."""
    generator = random.Random(seed)
    while shapes:
        ndim = generator.choice((2, 2, 2, 3))
        case = Case(
            name=f"random{shapes}",
            ndim=ndim,
            batch=generator.choice((1, 2, 4, 8, 16)),
            in_channels=generator.choice(CHANNELS),
            out_channels=generator.choice(CHANNELS),
            size=generator.choice((4, 7, 8, 14, 16, 24, 32, 48, 64) if ndim == 2 else (4, 7, 10, 14, 20)),
            stride=generator.choice((1, 1, 1, 2)),
        )
        common = min(case.in_channels, case.out_channels)
        case = replace(case, groups=generator.choice((1, 1, 1, 1, 2, 4, common)))
        k = generator.choice((3, 5, 7, 9) if ndim == 2 else (3, 5))
        divides = case.in_channels % case.groups == case.out_channels % case.groups == 0
        multiplications = math.prod(case.input_shape) * case.out_channels / case.groups * (k / case.stride) ** ndim
        if divides and 1e6 < multiplications < 1e9:
            shapes -= 1
            yield case, k


def make_call(kind: Kind, case: Case, k: int, dtype: torch.dtype) -> Call:
    """A pass of a case, as the planner is asked for it."""
    every = (1,) * case.ndim
    stride, padding = (case.stride,) * case.ndim, (k // 2,) * case.ndim
    rings = default_num_rings(k, ndim=case.ndim)
    spec = conv_spec(case.ndim, k, rings, True, False, stride, padding, every, case.groups)
    return Call(
        kind, spec, case.batch, case.in_channels, case.out_channels, case.input_shape[2:], dtype, torch.device("cpu")
    )


def measure(call: Call, *, channels_last: bool) -> Sample:
    """Times all backends in turns, on the processor's clock."""
    spec = call.spec
    formats = MEMORY_FORMATS[spec.ndim]
    memory_format = formats["nhwc" if channels_last else "nchw"]
    x = torch.randn(call.batch, call.in_channels, *call.input_size).to(call.dtype, memory_format=memory_format)
    weight = torch.randn(call.out_channels, call.in_channels // spec.groups, spec.geometry.num_rings).to(call.dtype)
    passes: dict[str, timing.Call] = {}
    grad_y = torch.randn_like(dense.forward(x, weight, None, spec))
    for name, backend in BACKENDS.items():
        forward, backward = (
            partial(backend.forward, x, weight, None, spec),
            partial(backend.backward, grad_y, x, weight, spec),
        )
        passes[name] = forward if call.kind == "forward" else backward
    with torch.no_grad():
        times = timing.race(passes, ROUNDS, time.process_time)
    return Sample(call, {name: taken.best for name, taken in times.items()})


def fit(works: Sequence[cost.Work], seconds: Sequence[float]) -> cost.Work:
    """Rates, none of them negative, that predict these times with the least relative error."""
    amounts = np.array(works, dtype=np.float64) * 1e-9 / np.array(seconds)[:, None]
    scale = np.maximum(amounts.max(axis=0), np.finfo(np.float64).tiny)
    found, _ = nnls(amounts / scale, np.ones(len(seconds)))
    return type(works[0])(*(found / scale).tolist())


def fit_rates(samples: Sequence[Sample]) -> dict[str, cost.Work]:
    """The rates of every path that was timed."""
    return {
        path: fit([WORK[path](sample.call) for sample in samples], [sample.seconds[path] for sample in samples])
        for path in samples[0].seconds
    }


@dataclass(frozen=True)
class Verdict:
    """How well rates choose between the dense path and another. A loss is the time of the chosen one over one's."""

    path: str
    samples: int
    hit_rate: float  # the faster path is chosen
    mean_loss: float  # geometric, to the faster path
    worst_loss: float
    worst_loss_to_dense: float


def verdict(samples: Sequence[Sample], rates: Mapping[str, cost.Work], path: str) -> Verdict:
    """Judges the plans that ``rates`` lead to, between dense and ``path``, by the times that were measured."""
    chosen, losses = [], []
    for sample in samples:
        predicted = cost.estimate(sample.call, {name: rates[name] for name in ("dense", path)})
        chosen.append(sample.seconds[cost.choose(sample.call, predicted)])
        losses.append(chosen[-1] / min(sample.seconds["dense"], sample.seconds[path]))
    to_dense = [seconds / sample.seconds["dense"] for sample, seconds in zip(samples, chosen, strict=True)]
    hits = losses.count(1.0) / len(losses)
    return Verdict(path, len(samples), hits, geometric_mean(losses), max(losses), max(to_dense))


def _raced(call: Call, path: str) -> float:
    """Time of a path over that of the dense one."""
    seconds = measure(call, channels_last=True).seconds
    return seconds[path] / seconds["dense"]


def check_registry(name: str = "", tolerance: float = 1.1) -> int:
    """Races the plans of the registry that are not dense against the dense path. Prints them and
    returns 1 if one of them takes more than ``tolerance`` times as long, else 0."""
    torch.set_num_threads(1)
    table = Table(title="The planned path where it is not the dense one: its time over the dense path's")
    for heading in ("case", "k", "dtype", "pass", "planned / dense", "plan"):
        table.add_column(heading)
    ratios = []
    choices = itertools.product(cases(name=name), DTYPES, KINDS)
    for case, dtype, kind in choices:
        for k in case.kernel_sizes:
            call = make_call(kind, case, k, dtype)
            plan = plan_call(call, "auto")
            if plan.backend != "dense":
                ratio = _raced(call, plan.backend)
                if ratio > tolerance:  # a busy moment, or the plan: a second race tells
                    ratio = min(ratio, _raced(call, plan.backend))
                ratios.append(ratio)
                table.add_row(case.name, str(k), str(dtype), kind, f"{ratios[-1]:.2f}", plan.reason)
    Console(width=160).print(table)
    losses = sum(ratio > tolerance for ratio in ratios)
    print(
        f"{losses} of {len(ratios)} plans lose more than {tolerance - 1:.0%} to dense; worst "
        f"{max(ratios, default=0):.2f}"
    )
    return int(losses > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.fit_plan", description=__doc__)
    parser.add_argument("--shapes", type=int, default=60, help="how many convolutions to time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    choices = itertools.product(random_cases(options.shapes, options.seed), DTYPES, KINDS)
    calls = [make_call(kind, *case, dtype) for case, dtype, kind in choices]
    samples = [measure(call, channels_last=True) for call in calls]
    results: dict[str, Any] = {}
    for dtype in DTYPES:
        typed = [sample for sample in samples if sample.call.dtype == dtype]
        specs = list(dict.fromkeys(sample.call.spec for sample in typed))
        learned = set(specs[::2])  # passes of one convolution stay together
        rates = fit_rates([sample for sample in typed if sample.call.spec in learned])
        held_out = [sample for sample in typed if sample.call.spec not in learned]
        results[str(dtype)] = {
            "held_out": [asdict(verdict(held_out, rates, path)) for path in BACKENDS if path != "dense"],
            "held_out_at_present_rates": [
                asdict(verdict(held_out, cost.rates("cpu", dtype), path)) for path in BACKENDS if path != "dense"
            ],
            "rates": {path: rate._asdict() for path, rate in fit_rates(typed).items()},
        }
    print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
