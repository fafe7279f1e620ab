"""Timing of rivals against each other: interleaved, so that a busy machine is unfair to all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Call", "Clock", "Times", "clock_for", "race", "repeats_for", "sample", "synchronised"]

Call = Callable[[], object]
Clock = Callable[[], float]

# A sample shorter than this says more about the clock than about the call.
_SHORTEST_SAMPLE = 2e-3


@dataclass(frozen=True)
class Times:
    """Seconds per call, one per round."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def iqr(self) -> float:
        """Distance between the quartiles."""
        if len(self.seconds) < 2:
            return 0.0
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return upper - lower


def clock_for(device: str, threads: int) -> Clock:
    """Wall time; but time on the processor where one thread does all the work, so that what other programs
    take is not counted."""
    return time.process_time if device == "cpu" and threads == 1 else time.perf_counter


def synchronised(call: Call, device: str) -> Call:
    """``call`` that returns when its work on ``device`` is done."""
    if device == "cpu":
        return call

    def wait() -> None:
        call()
        torch.cuda.synchronize()

    return wait


def repeats_for(call: Call, clock: Clock) -> int:
    """How often to call per sample, found by a call after a first one to warm up."""
    call()
    return max(1, math.ceil(_SHORTEST_SAMPLE / max(sample(call, 1, clock), 1e-6)))


def sample(call: Call, repeats: int, clock: Clock) -> float:
    """Mean seconds of ``repeats`` calls in a row."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def race(calls: Mapping[str, Call], rounds: int, clock: Clock) -> dict[str, Times]:
    """Times of every call, taken in turns."""
    repeats = {name: repeats_for(call, clock) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(sample(call, repeats[name], clock))
    return {name: Times(tuple(seconds)) for name, seconds in samples.items()}
