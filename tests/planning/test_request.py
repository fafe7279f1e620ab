"""Requests of threads that overlap, of compiled code and of checkpointed blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import sre_triton
from sre_triton.planning import request
from sre_triton.planning.plan import recording
from sre_triton.planning.request import backend, current_backend


@pytest.fixture(autouse=True)
def _nothing_stays() -> Any:
    yield
    assert not request._entered
    assert current_backend() == "auto"


def in_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(timeout=30)


def planned(call: Callable[[], object]) -> list[str]:
    """The backends that a call takes, in order."""
    with recording() as records:
        call()
    return [plan.backend for _, plan in records]


@pytest.mark.parametrize("shared", [False, True], ids=["two contexts", "one context"])
@pytest.mark.parametrize("leaves_first", [0, 1])
def test_threads_that_overlap_each_have_their_own_request(leaves_first: int, shared: bool) -> None:
    contexts = (backend("dense"), backend("ringwise"))
    if shared:
        contexts = (contexts[0], contexts[0])
    entered, left = threading.Barrier(2, timeout=30), threading.Event()
    seen: dict[int, list[str]] = {0: [], 1: []}

    def work(number: int) -> None:
        with contexts[number]:
            entered.wait()
            seen[number].append(current_backend())
            if number != leaves_first:
                assert left.wait(30)
                seen[number].append(current_backend())
        left.set()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, number) for number in range(2)]:
            done.result(timeout=60)
    for number, names in seen.items():
        assert set(names) == {contexts[number].name}


def test_contexts_of_one_thread_may_end_in_any_order() -> None:
    first, second = backend("dense"), backend("ringwise")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert current_backend() == "ringwise"
    second.__exit__(None, None, None)
    assert current_backend() == "auto"


def test_a_thread_without_a_request_takes_the_last_of_the_process() -> None:
    assert in_thread(current_backend) == "auto"
    with backend("dense"):
        assert in_thread(current_backend) == "dense"
        with backend("auto"):
            assert in_thread(current_backend) == "auto"


def test_many_threads_at_once_leave_nothing_behind() -> None:
    def work(number: int) -> set[bool]:
        name = ("dense", "ringwise", "auto")[number % 3]
        seen = set()
        for _ in range(300):
            with backend(name):
                seen.add(current_backend() == name)
        return seen

    with ThreadPoolExecutor(6) as pool:
        assert set().union(*pool.map(work, range(6))) == {True}


# Compiled code ----------------------------------------------------------------------------------------


@pytest.fixture
def compiled() -> tuple[Callable[[], list[str]], list[Any]]:
    """A compiled layer as a function that returns what it planned, and the graphs compiled so far."""
    torch._dynamo.reset()
    graphs: list[Any] = []

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    function = torch.compile(sre_triton.SREConv2d(2, 3, 3), fullgraph=True, backend=compiler)
    x = torch.randn(1, 2, 6, 6)

    def call() -> list[str]:
        with torch.no_grad():
            return planned(lambda: function(x))

    return call, graphs


def test_compiled_code_follows_the_request(compiled: tuple[Callable[[], list[str]], list[Any]]) -> None:
    call, graphs = compiled
    automatic = call()
    for name in ("dense", "ringwise", "dense"):
        with backend(name):
            assert call() == [name]
        assert call() == automatic
    assert len(graphs) == 3, "one per request, none for a request that was met before"


def test_compiled_code_takes_the_last_request_of_the_process(
    compiled: tuple[Callable[[], list[str]], list[Any]],
) -> None:
    call, _ = compiled
    with backend("dense"):
        assert call() == ["dense"]
        assert in_thread(call) == ["dense"]
        assert in_thread(lambda: _under("ringwise", call)) == ["ringwise"]
        assert call() == ["dense"]


def _under(name: str, call: Callable[[], Any]) -> Any:
    with backend(name):
        return call()


def test_contexts_within_compiled_code() -> None:
    torch._dynamo.reset()
    layer, x = sre_triton.SREConv2d(2, 3, 3), torch.randn(1, 2, 6, 6)

    def network(x: torch.Tensor) -> torch.Tensor:
        with backend("dense"):
            y = layer(x)
            with backend("ringwise"):
                y = y + layer(x)
            return y + layer(x)

    function = torch.compile(network, fullgraph=True, backend="eager")
    with torch.no_grad():
        for _ in range(2):
            assert planned(lambda: function(x)) == ["dense", "ringwise", "dense"]


# Recomputation ----------------------------------------------------------------------------------------


def dense_anew() -> tuple[backend, backend]:
    return backend("dense"), backend("dense")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # The limit that the documentation states: the block once more, then its gradients.
        ({"use_reentrant": False}, ["ringwise", "dense"]),
        ({"use_reentrant": True}, ["ringwise", "ringwise"]),
        # The way round it that the documentation names.
        ({"use_reentrant": False, "context_fn": dense_anew}, ["dense", "dense"]),
    ],
    ids=["not reentrant", "reentrant", "context_fn"],
)
def test_a_checkpointed_block_recomputes_under_the_request_of_its_backward(
    options: dict[str, Any], expected: list[str]
) -> None:
    layer, x = sre_triton.SREConv2d(2, 3, 3), torch.randn(1, 2, 6, 6, requires_grad=True)
    with backend("dense"):
        y = checkpoint(layer, x, **options)
    with backend("ringwise"):
        assert planned(y.sum().backward) == expected
