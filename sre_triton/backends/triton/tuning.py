"""Measured launch options: search on request, results on disk.

A search compiles every candidate, leaves out what spills registers or overflows a memory, and times the rest on the
tensors of the call. It happens inside :func:`searching` (which :func:`sre_triton.tune` enters), or for every bucket
without a result if the environment variable ``SRE_TRITON_AUTOTUNE`` is ``1``; never otherwise, so that no first
call takes minutes.

Results are kept in the GPU's file of :mod:`sre_triton.backends.measurements`. A result is found again for every
problem of the same *bucket*, whatever the batch size, until the kernels or Triton change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton

from sre_triton.backends import measurements
from sre_triton.backends.triton import routes, tiles
from sre_triton.backends.triton.tiles import Blocks, Problem, Tile
from sre_triton.cache import cache_directory

__all__ = [
    "Search",
    "Timer",
    "Tuned",
    "bucket",
    "choose",
    "generation",
    "is_searching",
    "is_settled",
    "searching",
]

Options = Any  # Tile or Blocks, as the kind of kernel demands
Run = Callable[[Any, bool], Any]  # launches with these options, or only compiles; returns what was compiled
Timer = Callable[[Callable[[], object]], float]

_SOURCES = ("fused.py", "grouped.py", "gradient.py", "sums.py", "taps.py")


class _Space(NamedTuple):
    """Options of one kind of kernel, with the functions of a module that choose and list them, by name."""

    options: type
    rule: str
    candidates: str
    module: ModuleType = tiles


_SPACES = {
    "forward": _Space(Tile, "forward_tile", "candidates"),
    "writer": _Space(Tile, "writer_tile", "writer_candidates"),
    "narrow_grad": _Space(Tile, "narrow_grad_tile", "narrow_grad_candidates"),
    "fused_grad": _Space(Tile, "fused_grad_tile", "fused_grad_candidates", routes),
    "product": _Space(Blocks, "product_blocks", "product_candidates"),
}


class Tuned(NamedTuple):
    """One result of a search.

    Args:
        kernel: "forward" (also gradients in the input), or of weight gradients "writer", "product", "fused_grad" or
            "narrow_grad".
        bucket: the problems that it holds for.
        options: the fastest launch options.
        milliseconds: the time of a launch with them.
        rule_milliseconds: the time with the options that would have been taken without the search.
        tried, pruned: candidates that were timed, and that were left out once compiled.
    """

    kernel: str
    bucket: str
    options: Options
    milliseconds: float
    rule_milliseconds: float
    tried: int
    pruned: int


@dataclass
class Search:
    """A search that is going on: how it times, whether it measures again, and what it found."""

    timer: Timer | None = None
    force: bool = False
    found: list[Tuned] = dataclasses.field(default_factory=list)


# A one-element list and not a ContextVar: backward passes run on threads of their own.
_active: list[Search | None] = [None]

_generation = [0]  # results that searches of this process have found


@contextlib.contextmanager
def searching(timer: Timer | None = None, force: bool = False) -> Iterator[Search]:
    """Within this block a call whose bucket has no result measures one.

    Args:
        timer: milliseconds of a call; None for Triton's own on the GPU. The interpreter searches with a timer only.
        force: measure again what has a result from before this block.
    """
    outer = _active[0]
    _active[0] = search = Search(timer, force)
    try:
        yield search
    finally:
        _active[0] = outer


def choose(kind: str, problem: Problem, run: Run) -> Options:
    """The measured options of the problem's bucket, else the rule's; searches first where that was asked for."""
    search = _requested(problem)
    gpu = problem.device.name or problem.device.arch
    table = _table(gpu, cache_directory())
    if not table and search is None:
        return _rule(kind, problem)
    key = bucket(kind, problem)
    if search is not None and (key not in table or (search.force and key not in {t.bucket for t in search.found})):
        result = _fastest(kind, problem, run, search.timer or _time_on_gpu)
        if result is None:  # nothing ran: nothing to remember
            return _rule(kind, problem)
        search.found.append(result)
        table[key] = result.options
        _generation[0] += 1
        _keep(gpu, {key: result.options})
    return table.get(key) or _rule(kind, problem)


def is_searching() -> bool:
    """Whether a search is going on."""
    return _active[0] is not None


def is_settled() -> bool:
    """Whether the options that :func:`choose` gives now are those that it will give later."""
    return _active[0] is None and not (os.environ.get("SRE_TRITON_AUTOTUNE") == "1" and _is_capturing())


def generation() -> tuple[int, str | None]:
    """Changes when the chosen options may have: what was worked out from them before is not used again."""
    return _generation[0], os.environ.get("SRE_TRITON_AUTOTUNE")


@lru_cache(maxsize=4096)
def bucket(kind: str, problem: Problem) -> str:
    """Problems with one key share a result: everything that a kernel depends on, and the image's size up to a power
    of two. The batch size is no part of it: what suits a chip that is full suits any larger batch."""
    taps = problem.taps
    geometry = (len(taps.planes), len(taps.rows), taps.num_columns, problem.rings, taps.is_hard, taps.row_unit)
    size = (triton.next_power_of_2(problem.height), triton.next_power_of_2(problem.width))
    layout = (problem.groups, problem.c_in, problem.c_out, *size)
    dtype = str(problem.dtype).removeprefix("torch.")
    return f"{kind} {_source_hash()} {geometry} {problem.stride} {dtype} {layout}"


def _rule(kind: str, problem: Problem) -> Options:
    space = _SPACES[kind]
    return getattr(space.module, space.rule)(problem)


# Searching --------------------------------------------------------------------------------------------


def _requested(problem: Problem) -> Search | None:
    """The search that this call should take part in."""
    search = _active[0]
    if search is None:
        if os.environ.get("SRE_TRITON_AUTOTUNE") != "1":
            return None
        search = Search()
    is_interpreted = triton.knobs.runtime.interpret or not problem.device.name
    if is_interpreted and search.timer is None:
        return None
    return None if _is_capturing() else search


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _candidates(kind: str, problem: Problem) -> list[Options]:
    """The rule's choice first, then the others, and pipelined variants where there is a loop to pipeline."""
    space = _SPACES[kind]
    found = [_rule(kind, problem), *getattr(space.module, space.candidates)(problem)]
    if kind == "forward":
        loops = [tile for tile in found if tile.c_in and tiles.loops(problem, tile)]
        found += [dataclasses.replace(tile, stages=2) for tile in loops]
    return list(dict.fromkeys(found))


def _fastest(kind: str, problem: Problem, run: Run, timer: Timer) -> Tuned | None:
    times: dict[Options, float] = {}
    pruned = 0
    candidates = _candidates(kind, problem)
    for options in candidates:
        try:
            if _overflows(run(options, True), problem):
                pruned += 1
                continue
            times[options] = timer(partial(run, options, False))
        except (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError, triton.CompilationError):
            pruned += 1
    if not times:
        return None
    best = min(times, key=lambda options: times[options])
    rule = times.get(candidates[0], float("nan"))
    return Tuned(kind, bucket(kind, problem), best, times[best], rule, len(times), pruned)


def _overflows(compiled: Any, problem: Problem) -> bool:
    """Whether a compiled kernel spills registers or overflows a memory. The interpreter compiles none."""
    if compiled is None:
        return False
    if compiled.metadata.shared > problem.device.shared_bytes:
        return True
    # Triton would emit a kernel that traps, without an error.
    if (getattr(compiled.metadata, "tmem_size", 0) or 0) > tiles.TENSOR_MEMORY_COLUMNS:
        return True
    compiled._init_handles()  # loads the machine code; the driver then tells of spills
    return bool(compiled.n_spills)


def _time_on_gpu(call: Callable[[], object]) -> float:
    return triton.testing.do_bench(call, warmup=5, rep=25, return_mode="median")


# Results on disk --------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _table(gpu: str, directory: Path) -> dict[str, Options]:
    """Measured options of a GPU by bucket. ``directory`` is where those of this machine are."""
    return measurements.load(gpu, _options)


def _options(content: dict[str, Any]) -> dict[str, Options]:
    entries = content.get("launch_options", {}).items()
    return {key: _SPACES[key.partition(" ")[0]].options(**options) for key, options in entries}


def _keep(gpu: str, new: dict[str, Options]) -> None:
    """Add to the file of this machine."""
    path = measurements.path_in(cache_directory(), gpu)
    try:
        entries = sorted((measurements.read(path, _options) | new).items())
        options = {key: dataclasses.asdict(chosen) for key, chosen in entries}
        measurements.write(path, gpu=gpu, launch_options=options)
    except OSError as error:
        warnings.warn(f"tuned launch options are not kept: {path}: {error}", RuntimeWarning, stacklevel=4)


@lru_cache(maxsize=1)
def _source_hash() -> str:
    """Changes with the kernels: what was measured on other code is not found."""
    text = "".join(Path(__file__).with_name(name).read_text() for name in _SOURCES)
    return hashlib.sha256(f"{triton.__version__}{text}".encode()).hexdigest()[:12]
