"""Peak memory of a layer's call, each measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from bench import layers
from bench.cases import Case

__all__ = ["apart", "peak", "peak_bytes"]


def peak_bytes(name: str, case: Case, k: int, *, train: bool, device: str, threads: int) -> int:
    """Most bytes held at once by our layer or by nn.Conv with its input, while it infers or trains.

    ``name`` is one of ``layers.OURS`` and ``layers.DENSE``. What the libraries occupy is not counted.
    """
    return apart(_measure, name, case, k, train, device, threads)


def apart(measure: Callable[..., int], *arguments: Any) -> int:
    """``measure(*arguments)`` in a process that has used no memory yet. Both must pickle."""
    with _server().Pool(1) as pool:
        return pool.apply(measure, arguments)


@lru_cache
def _server() -> multiprocessing.context.ForkServerContext:
    """Forks processes that have PyTorch loaded and have used no memory yet: the record of a process's
    peak cannot be taken back."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.memory"])
    return context


def _measure(name: str, case: Case, k: int, train: bool, device: str, threads: int) -> int:
    torch.set_num_threads(threads)
    build = {layers.OURS: layers.ring_layer, layers.DENSE: layers.dense_layer}[name]
    memory_format = layers.MEMORY_FORMATS[case.ndim]["nhwc"]
    small = Case("warm", case.ndim, 1, 16, 16, 16)
    for warm in (True, False):  # the first call loads code, which stays
        shape = small.input_shape if warm else case.input_shape
        baseline = peak(device)
        layer = build(small if warm else case, k).to(device)
        x = torch.ones(shape, device=device).contiguous(memory_format=memory_format)
        layers.task(layer, x, train=train)()
    return peak(device) - baseline


def peak(device: str) -> int:
    """The most bytes that this process has held at once."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
