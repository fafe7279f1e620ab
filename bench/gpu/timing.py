"""Seconds per call on the GPU's own clock, of rivals that take turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

__all__ = ["FULL", "Calls", "Pace", "capture", "race", "step_seconds", "stopwatch"]

Calls = Sequence[Callable[[], object]]

_SAMPLE_SECONDS = 0.002
_MOST_SECONDS = 8.0  # of a race, unless its two least rounds take longer: some rivals are 60 times too slow


class Pace(NamedTuple):
    """How often rivals take turns, and the seconds of replays before each sample: clocks and caches are then what
    they are under load."""

    rounds: int
    warm: float


FULL = Pace(rounds=5, warm=0.03)


def capture(calls: Calls) -> torch.cuda.CUDAGraph:
    """A CUDA graph that holds each call once, after two of them have run to warm up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def race(rivals: Mapping[str, Calls], pace: Pace) -> dict[str, float]:
    """Median seconds per call of each rival over rounds in which they take turns."""
    graphs = {name: capture(calls) for name, calls in rivals.items()}
    once = {name: stopwatch(graph.replay) for name, graph in graphs.items()}
    samples: dict[str, list[float]] = {name: [] for name in rivals}
    rounds = max(2, min(pace.rounds, int(_MOST_SECONDS / (2 * sum(once.values())))))
    for _ in range(rounds):
        for name, graph in graphs.items():
            for _ in range(math.ceil(pace.warm / once[name])):
                graph.replay()
            repeats = math.ceil(_SAMPLE_SECONDS / once[name])
            samples[name].append(stopwatch(graph.replay, repeats) / len(rivals[name]))
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


def stopwatch(call: Callable[[], object], repeats: int = 1) -> float:
    """Seconds per call on the device, at least a microsecond."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    stop.synchronize()
    return max(1e-6, float(start.elapsed_time(stop)) / 1e3 / repeats)


def step_seconds(step: Callable[[], object], count: int = 5) -> float:
    """Median wall time of a call, host and device."""
    times = []
    for _ in range(count):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
