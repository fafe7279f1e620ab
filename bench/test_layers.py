"""Races on the registry: our layer against nn.Conv, the reference packages and the floor.

Run by ``python -m bench``, which makes a table of it, or by pytest alone. Each test races one case in one
mode. pytest-benchmark times our layer; its rivals run before each of its rounds, so that all are
interleaved, and their times are in ``extra_info``.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import pytest
import torch

from bench import layers, memory
from bench.cases import Case
from bench.timing import Call, Clock, Times, clock_for, repeats_for, sample, synchronised
from bench.truth import worst_error
from sre_triton.layers import RingConvNd
from sre_triton.planning.plan import recording

# Mode: (trains, dtype). The reference packages and the floor run in float32.
MODES = {
    "infer": (False, torch.float32),
    "train": (True, torch.float32),
    "infer-bf16": (False, torch.bfloat16),
    "train-bf16": (True, torch.bfloat16),
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("mode", MODES)
def test_layer(benchmark: Any, case: Case, k: int, mode: str, device: str, quick: bool, threads: int) -> None:
    torch.manual_seed(0)
    train, dtype = MODES[mode]
    rivals = layers.contestants(case, k, references=dtype == torch.float32)
    calls: dict[str, Call] = {}
    for name, (layer, memory_format) in rivals.items():
        shape = layer.shape if isinstance(layer, layers.Floor) else case.input_shape
        layer.to(device, dtype)
        x = torch.randn(shape, device=device, dtype=dtype)
        x = x.contiguous(memory_format=layers.MEMORY_FORMATS[case.ndim][memory_format])
        if isinstance(layer, RingConvNd):
            assert worst_error(layer, case, k, x, train=train) < TOLERANCE[dtype]
        calls[name] = synchronised(layers.task(layer, x, train=train), device)

    with recording() as plans:
        calls[f"{layers.OURS} nhwc"]()
    clock = clock_for(device, threads)
    seconds = interleave(benchmark, calls, f"{layers.OURS} nhwc", 0.05 if quick else 0.1, clock)

    if mode == "train":
        peaks = {
            name: memory.peak_bytes(name, case, k, train=train, device=device, threads=threads)
            for name in (layers.OURS, layers.DENSE)
        }
        benchmark.extra_info["peak_bytes"] = peaks
    best = {
        name: min(times.best for rival, times in seconds.items() if rival.startswith(name))
        for name in {rival.split()[0] for rival in seconds}
    }
    benchmark.extra_info.update(
        case=asdict(case),
        k=k,
        mode=mode,
        device=device,
        in_mean=case.in_mean,
        plan={call.kind: plan.backend for call, plan in plans},
        median={name: times.median for name, times in seconds.items()},
        iqr={name: times.iqr for name, times in seconds.items()},
        ratio={name: t / best[layers.OURS] for name, t in best.items()},
    )


def interleave(benchmark: Any, calls: dict[str, Call], timed: str, budget: float, clock: Clock) -> dict[str, Times]:
    """Times of all calls, of which pytest-benchmark takes those of ``timed``.

    Each takes part in 3 to 15 rounds, as many as fit its ``budget`` in seconds. The first tells how many.
    """
    repeats = {name: repeats_for(call, clock) for name, call in calls.items()}
    samples = {name: [sample(call, repeats[name], clock)] for name, call in calls.items()}
    rounds = {name: min(15, max(3, int(budget / (samples[name][0] * repeats[name])))) for name in calls}

    def race(name: str) -> None:
        if len(samples[name]) < rounds[name]:
            samples[name].append(sample(calls[name], repeats[name], clock))

    def race_rivals() -> None:
        for name in calls:
            if name != timed:
                race(name)

    benchmark.pedantic(partial(race, timed), setup=race_rivals, rounds=max(rounds.values()) - 1, iterations=1)
    return {name: Times(tuple(taken)) for name, taken in samples.items()}
