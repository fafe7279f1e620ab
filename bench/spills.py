"""Find the tiles that spill registers although the heuristic's estimate lets them pass.

    python -m bench.spills [--arch sm_90 ...]

Compiles what the heuristic picks for the cases of :mod:`bench.compile_report`, strikes the tiles that spill
or overflow, and begins again with what it picks instead, until nothing spills. Adds to ``spills.json`` as it goes, so
that architectures can be searched side by side; run it when the kernels, the estimate or the compilers change. To start
afresh, empty the list in the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

from bench import aot, compile_report
from sre_triton.backends.triton import routes, tiles
from sre_triton.backends.triton.tiles import Problem, Tile
from sre_triton.cache import replacing

# The module and function of a choice, and what the tile's signature says of its kernel.
_CHOICES = (
    (tiles, "forward_tile", ""),
    (tiles, "narrow_grad_tile", "grad"),
    (tiles, "writer_tile", ""),
    (routes, "fused_grad_tile", "fused_grad"),
)

_KINDS = {"ring_conv_grouped_bwd_kernel_w": "grad", "ring_conv_fused_bwd_kernel_w": "fused_grad"}


@contextlib.contextmanager
def _watched(picked: list[tuple[Problem, Tile, str]]) -> Iterator[None]:
    """Note what the heuristic picks, and for what."""

    def watch(module: ModuleType, name: str, kind: str) -> Callable[[Problem], Tile | None]:
        choose = getattr(module, name)

        def noting(problem: Problem) -> Tile | None:
            tile: Tile | None = choose(problem)
            if tile is not None:
                picked.append((problem, tile, kind))
            return tile

        return noting

    for module, name, _ in _CHOICES:
        getattr(module, name).cache_clear()
    with contextlib.ExitStack() as stack:
        for module, name, kind in _CHOICES:
            stack.enter_context(mock.patch.object(module, name, watch(module, name, kind)))
        yield


def strike(arch: str, known: set[str], verdicts: dict[str, bool]) -> int:
    """Add to ``known`` what spills on ``arch``; returns how many tiles are new. ``verdicts`` remembers kernels."""
    before = len(known)
    for case in (*compile_report.cases(), *compile_report.gpu_cases()):
        picked: list[tuple[Problem, Tile, str]] = []
        with _watched(picked):
            launches = [call for call in case.launches(arch) if "TAPS" in call.arguments]
        for call in launches:
            if _spills(case, call, arch, verdicts):
                known.update(signatures(picked, call))
                _keep(known)
    return len(known) - before


def signatures(picked: list[tuple[Problem, Tile, str]], call: aot.Launch) -> set[str]:
    """What the choices that led to a launch are struck out as."""
    arguments = call.arguments
    blocks = (
        arguments["R"], arguments["BM"], arguments.get("BN", arguments.get("BC", 0)), arguments.get("BK", 0),
        call.options["num_warps"],
    )  # fmt: skip
    own = _KINDS.get(call.kernel.__name__, "")
    return {
        tiles._signature(problem, tile, kind)
        for problem, tile, kind in picked
        if problem.taps is arguments["TAPS"]
        and kind == own
        and (tile.rows, tile.columns, tile.c_out, tile.c_in, tile.warps) == blocks
    }


def _keep(known: set[str]) -> None:
    """Adds to the file in one step."""
    together = known | set(json.loads(tiles._SPILLS.read_text()))
    with replacing(tiles._SPILLS) as draft:
        draft.write_text(json.dumps(sorted(together), indent=1) + "\n")


def _spills(case: compile_report.Case, call: aot.Launch, arch: str, verdicts: dict[str, bool]) -> bool:
    row: dict[str, Any] = compile_report.describe(case, call, arch)
    key = json.dumps(row)
    if key not in verdicts:
        row |= compile_report.compiled(case, call, arch)
        verdicts[key] = bool(row["error"] or row["spill_bytes"])
        if verdicts[key]:
            print(compile_report.line(row), flush=True)
    return verdicts[key]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.spills", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=sorted(aot.TARGETS), default=list(aot.TARGETS))
    options = parser.parse_args(argv)
    known = set(tiles._known_spills())
    with mock.patch.object(tiles, "_known_spills", return_value=known):
        for arch in options.arch:
            verdicts: dict[str, bool] = {}
            while found := strike(arch, known, verdicts):
                print(f"{arch}: {found} tiles struck")
    return 0


if __name__ == "__main__":
    sys.exit(main())
