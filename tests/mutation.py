"""Mutation testing of a random sample with cosmic-ray: are the tests of an area of the package there to notice a fault?

``make mutation`` runs this on a copy of the tree, with the interpreter of an environment that has cosmic-ray::

    python tests/mutation.py TREE PYTHON AREA [--sample 60] [--seed 1]

A mutant is killed if one of the area's tests fails. Left out are mutants that cannot change a result: of annotations,
which are never evaluated, of the sizes of caches, caches taken away, and zips that are no longer strict. Survivors are
shown, to be read: each is a missing test, or code that nothing needs, or an equal way to write the same.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkResult

# The modules of each area and the tests that are meant to notice a fault there.
AREAS = {
    "geometry": (
        "sre_triton/geometry",
        "tests/geometry tests/backends/test_ringwise.py -k 'geometry or schedule or additions'",
    ),
    "ringwise": ("sre_triton/backends/ringwise", "tests/backends/test_ringwise.py -k 'not native'"),
    "native": (
        "sre_triton/backends/native/passes.py",
        "tests/backends/test_ringwise.py tests/backends/test_native.py -k 'native and not built_once'",
    ),
    "planning": ("sre_triton/planning", "tests/planning tests/test_bench.py -k 'not quick and not scaling'"),
    "functional": (
        "sre_triton/functional",
        "tests/test_public_names.py tests/test_functional.py tests/test_kernels.py tests/test_conv_act.py",
    ),
    "pooling": ("sre_triton/pooling.py", "tests/test_pooling.py"),
    "conversion": ("sre_triton/conversion", "tests/conversion"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, help="copy of the repository whose files are mutated")
    parser.add_argument("python", help="interpreter that runs the tests")
    parser.add_argument("area", choices=AREAS)
    parser.add_argument("--sample", type=int, default=60, help="number of mutants")
    parser.add_argument("--seed", type=int, default=1, help="another seed, another sample")
    parser.add_argument("--timeout", type=float, default=240, help="seconds after which a mutant counts as killed")
    options = parser.parse_args()
    os.chdir(options.tree)
    os.environ["PYTHONPATH"] = str(Path.cwd())  # not an installed package, and not the tree that was copied
    session = Path(f"{options.area}-{options.seed}.sqlite").absolute()
    config = session.with_suffix(".toml")
    modules, tests = AREAS[options.area]
    command = f"{options.python} -m pytest -x -q -p no:cacheprovider {tests}"
    settings = {"module-path": modules, "timeout": options.timeout, "excluded-modules": [], "test-command": command}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    config.write_text("\n".join(["[cosmic-ray]", *lines, "[cosmic-ray.distributor]", 'name = "local"', ""]))
    cosmic_ray = [sys.executable, "-m", "cosmic_ray.cli"]
    if not session.exists():  # one that was interrupted goes on
        subprocess.run([*cosmic_ray, "baseline", str(config)], check=True)
        subprocess.run([*cosmic_ray, "init", str(config), str(session)], check=True)
        with use_db(str(session), WorkDB.Mode.open) as db:
            keep_sample(db, options.sample, options.seed)
    subprocess.run([*cosmic_ray, "exec", str(config), str(session)], check=True)
    with use_db(str(session), WorkDB.Mode.open) as db:
        report(options.area, db)


def keep_sample(db: WorkDB, size: int, seed: int) -> None:
    """Marks all but a random sample as skipped."""
    items = sorted(db.work_items, key=lambda item: (str(item.mutations[0].module_path), repr(item.mutations[0])))
    silent = {path: set(silent_spans(path)) for path in {item.mutations[0].module_path for item in items}}
    able = [item for item in items if not is_silent(item.mutations[0], silent[item.mutations[0].module_path])]
    chosen = {item.job_id for item in random.Random(seed).sample(able, min(size, len(able)))}
    print(f"{len(items)} mutants, {len(able)} that could change a result, {len(chosen)} in the sample", flush=True)
    skipped = WorkResult(worker_outcome=WorkerOutcome.SKIPPED)
    db.set_multiple_results([item.job_id for item in items if item.job_id not in chosen], skipped)


Span = tuple[tuple[int, int], tuple[int, int]]


def silent_spans(path: Path) -> Iterator[Span]:
    """Where a module's annotations, its decorators for caches and its checks of zips stand."""
    for node in ast.walk(ast.parse(path.read_text())):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.FunctionDef):
            found += [node.returns, *(d for d in node.decorator_list if "cache" in ast.unparse(d))]
        elif isinstance(node, (ast.arg, ast.AnnAssign)):
            found.append(node.annotation)
        elif isinstance(node, ast.keyword) and node.arg == "strict":
            found.append(node.value)
        for part in found:
            if part is not None:
                assert part.end_lineno is not None
                assert part.end_col_offset is not None
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def is_silent(mutation: MutationSpec, spans: set[Span]) -> bool:
    line, column = mutation.start_pos
    start = line, column + ("RemoveDecorator" in mutation.operator_name)  # which begins at the "@"
    return any(first <= start < last for first, last in spans)


def report(area: str, db: WorkDB) -> None:
    results = [(job, result) for job, result in db.results if result.worker_outcome == WorkerOutcome.NORMAL]
    survivors = [result for _, result in results if result.test_outcome == TestOutcome.SURVIVED]
    for result in survivors:
        print(result.diff, end="\n\n")
    low, high = wilson(len(results) - len(survivors), len(results))
    share = 1 - len(survivors) / max(1, len(results))
    print(
        f"{area}: {len(results) - len(survivors)} of {len(results)} killed, {share:.0%} (95%: {low:.0%} to {high:.0%})"
    )


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Score interval of a share, 95%."""
    if count == 0:
        return 0.0, 1.0
    z, share = 1.96, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return middle - half, middle + half


if __name__ == "__main__":
    main()
