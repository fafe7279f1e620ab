"""Contestants of a race in processes of their own, whose allocators keep the memory that they once had.

Otherwise it would be luck who finds memory still mapped and who pays a page fault for every 4 kB of an output, and that
is worth up to twice the time.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar
from unittest import mock

import torch

from bench import timing

__all__ = ["Prepare", "contestants", "race"]

Name = TypeVar("Name")
Prepare = Callable[..., tuple[timing.Call, object]]
"""Makes the call that is raced, and something to say about it."""

# Read by the allocator of the C library: it neither gives memory back nor asks the system anew for large tensors.
_KEEPS_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}


def _contestant(orders: Connection, prepare: Prepare, threads: int) -> None:
    """The process of a contestant. It is sent the arguments of what to prepare, answered with what there is to say
    about it, and in between None, answered with the seconds of a call; the end of the connection ends it."""
    torch.set_num_threads(threads)
    clock = timing.clock_for("cpu", threads)
    while True:
        try:
            order = orders.recv()
        except EOFError:
            return
        if order is not None:
            torch.manual_seed(0)
            call, answer = prepare(*order)
            repeats = timing.repeats_for(call, clock)
            orders.send(answer)
        else:
            call()  # the other contestants had the cache meanwhile
            orders.send(timing.sample(call, repeats, clock))


@contextmanager
def contestants(prepare: Mapping[Name, Prepare], threads: int) -> Iterator[dict[Name, Connection]]:
    """All of them, ready to race. What they prepare with must pickle."""
    context = multiprocessing.get_context("spawn")
    connections, processes = {}, []
    for name, of_one in prepare.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=_contestant, args=(theirs, of_one, threads), daemon=True)
        with mock.patch.dict(os.environ, _KEEPS_MEMORY):
            process.start()
        theirs.close()
        processes.append(process)
        connections[name] = ours
    try:
        yield connections
    finally:
        for connection in connections.values():
            connection.close()
        for process in processes:
            process.join()


def race(
    ready: Mapping[Name, Connection], order: tuple[Any, ...], rounds: int
) -> tuple[dict[Name, object], dict[Name, list[float]]]:
    """Prepares all with the same arguments and races them in turns: what each says, and its seconds by round."""
    answers = {}
    for name, connection in ready.items():
        connection.send(order)
        answers[name] = connection.recv()
    seconds: dict[Name, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, connection in ready.items():
            connection.send(None)
            seconds[name].append(connection.recv())
    return answers, seconds
