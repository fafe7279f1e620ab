"""What a call costs beyond ``nn.Conv2d`` where there is next to nothing to compute.

Time is that of the processor, so that other work on the machine counts little. Layers take turns in short
rounds, and the median over rounds of the difference within a round is judged, so that slow spells fall on
both alike.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import sre_triton

pytestmark = pytest.mark.slow

ROUNDS, CALLS = 400, 20


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # other tests poison memory, which takes time
    gc.disable()
    yield
    gc.enable()
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.set_num_threads(threads)


def seconds_per_call(call: Callable[[], object]) -> float:
    start = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - start) / CALLS


def extra_microseconds(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    for call in (ours, theirs):
        seconds_per_call(call)
    differences = []
    for i in range(ROUNDS):
        # Whoever goes second has the warmer cache.
        if i % 2:
            ours_first = seconds_per_call(ours)
            differences.append(ours_first - seconds_per_call(theirs))
        else:
            theirs_first = seconds_per_call(theirs)
            differences.append(seconds_per_call(ours) - theirs_first)
    return statistics.median(differences) * 1e6


def layers() -> tuple[nn.Module, nn.Module]:
    return sre_triton.SREConv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)


def test_a_call_without_gradients_costs_at_most_15_microseconds_more() -> None:
    x = torch.randn(1, 8, 8, 8)
    ours, theirs = layers()
    with torch.no_grad():
        extra = extra_microseconds(lambda: ours(x), lambda: theirs(x))
    print(f"{extra:.1f} us above nn.Conv2d without gradients")
    assert extra <= 15


def test_a_training_step_costs_at_most_40_microseconds_more() -> None:
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    cotangent = torch.ones(1, 8, 8, 8)
    ours, theirs = layers()
    extra = extra_microseconds(lambda: ours(x).backward(cotangent), lambda: theirs(x).backward(cotangent))
    print(f"{extra:.1f} us above nn.Conv2d per training step")
    assert extra <= 40


@pytest.mark.parametrize(("train", "most"), [(False, 5), (True, 25)])
def test_a_layer_of_one_tap_costs_hardly_more(train: bool, most: int) -> None:
    """The weight takes the shape of a kernel, which is a node more for the gradients."""
    x = torch.randn(1, 8, 8, 8, requires_grad=train)
    cotangent = torch.ones(1, 8, 8, 8)
    ours, theirs = sre_triton.SREConv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
    with torch.set_grad_enabled(train):
        extra = extra_microseconds(
            *(lambda m=m: m(x).backward(cotangent) if train else m(x) for m in (ours, theirs))  # type: ignore[misc]
        )
    print(f"{extra:.1f} us above nn.Conv2d of one tap")
    assert extra <= most
