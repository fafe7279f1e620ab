"""Measured tiles: search on request, results on disk.

A search times every candidate of :func:`sre_triton.triton.tiles.candidates` on the tensors of the call. It runs
inside :func:`searching`, or everywhere if the environment variable ``SRE_TRITON_AUTOTUNE`` is ``1``; never
otherwise, so that no first call takes minutes. Results are kept per GPU in ``SRE_TRITON_CACHE`` (by default
``~/.cache/sre_triton``) and are found again for every shape of the same bucket. Tables that ship with the package
are found in the same way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton

from sre_triton.triton import tiles
from sre_triton.triton.tiles import Problem, Tile

__all__ = ["bucket", "choose", "searching"]

_SHIPPED = Path(__file__).with_name("tuned")
_SOURCES = ("fused.py", "grouped.py", "sums.py", "taps.py")
_is_searching: ContextVar[bool] = ContextVar("is_searching", default=False)


@contextlib.contextmanager
def searching() -> Iterator[None]:
    """Within this block a call whose bucket has no measured tile measures one."""
    token = _is_searching.set(True)
    try:
        yield
    finally:
        _is_searching.reset(token)


def choose(problem: Problem, run: Callable[[Tile], object]) -> Tile:
    """The measured tile of the problem's bucket, else the heuristic's; searches first where that was asked for."""
    table = _table(problem.device.name)
    if not table and not _may_search(problem):
        return tiles.forward_tile(problem)
    key = bucket(problem)
    if key not in table and _may_search(problem):
        table[key] = _fastest(problem, run)
        _write(problem.device.name, table)
    return table.get(key) or tiles.forward_tile(problem)


@lru_cache(maxsize=4096)
def bucket(problem: Problem) -> str:
    """Problems with one key share a measured tile: everything that a kernel depends on, and the number of pixels
    and the width up to a power of two. A new batch size of the same order does not search again."""
    taps = problem.taps
    geometry = (len(taps.planes), len(taps.rows), taps.num_columns, problem.rings, taps.is_hard, taps.row_unit)
    pixels = triton.next_power_of_2(problem.batch * problem.height * problem.width)
    layout = (problem.groups, problem.c_in, problem.c_out, pixels, triton.next_power_of_2(problem.width))
    return f"{_source_hash()} {geometry} {problem.stride} {str(problem.dtype).removeprefix('torch.')} {layout}"


def _may_search(problem: Problem) -> bool:
    asked = _is_searching.get() or os.environ.get("SRE_TRITON_AUTOTUNE") == "1"
    if not asked or not problem.device.name or triton.knobs.runtime.interpret:
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def _fastest(problem: Problem, run: Callable[[Tile], object]) -> Tile:
    best, least = tiles.forward_tile(problem), float("inf")
    for tile in tiles.candidates(problem):
        try:
            time = triton.testing.do_bench(lambda tile=tile: run(tile), warmup=5, rep=25, return_mode="median")
        except (triton.runtime.errors.OutOfResources, triton.compiler.CompilationError):
            continue
        if time < least:
            best, least = tile, time
    return best


@lru_cache(maxsize=16)
def _table(name: str) -> dict[str, Tile]:
    """Measured tiles of a GPU by bucket: those that ship, then those of this machine. No GPU, no table."""
    entries: dict[str, dict[str, Any]] = {}
    for path in (_SHIPPED / _file_name(name), _directory() / _file_name(name)) if name else ():
        with contextlib.suppress(OSError, ValueError):
            entries |= json.loads(path.read_text())
    return {key: Tile(**value) for key, value in entries.items()}


def _write(name: str, table: dict[str, Tile]) -> None:
    """Replace the file in one step: processes that tune at the same time leave one or the other version."""
    with contextlib.suppress(OSError):  # a read-only home directory costs the next process a search
        _directory().mkdir(parents=True, exist_ok=True)
        path = _directory() / _file_name(name)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({key: dataclasses.asdict(tile) for key, tile in table.items()}, indent=1))
        draft.replace(path)


def _directory() -> Path:
    return Path(os.environ.get("SRE_TRITON_CACHE") or Path.home() / ".cache" / "sre_triton")


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name) + ".json"


@lru_cache(maxsize=1)
def _source_hash() -> str:
    """Changes with the kernels: a tile measured on other code is not found."""
    text = "".join(Path(__file__).with_name(name).read_text() for name in _SOURCES)
    return hashlib.sha256(f"{triton.__version__}{text}".encode()).hexdigest()[:12]
