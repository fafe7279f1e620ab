"""Results of evaluations as files: where they lie, what they are of, and in what unit they are written.

In Python a score is a share of one. Files have percent, as tables and figures do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sre_triton.training.files import as_shares, in_percent, read_json, write_csv, write_json
from sre_triton.training.runs.folder import checkpoint_in, folder_of

__all__ = [
    "TESTS",
    "checksum_of",
    "home_of",
    "kept_results",
    "result_folder",
    "result_rows",
    "results_in",
    "save_results",
    "written",
]

TESTS = ("rotation", "flips")
_FILE = "evaluation.json"
_NOT_OF_IT = (*TESTS, "checkpoint", "main_score", "unit")  # neither tells one evaluation from another

Results = Mapping[str, Mapping[str, Any]]


def home_of(checkpoint: Path) -> tuple[Path, str]:
    """The folder in which a checkpoint's results have a folder, and how the name of that begins."""
    if checkpoint.is_dir() or (folder_of(checkpoint) / "config.json").is_file():
        return folder_of(checkpoint), "evaluation"
    return folder_of(checkpoint), f"{checkpoint.stem}-evaluation"


def result_folder(home: Path, name: str, results: Results, taken: Collection[Path] = ()) -> Path:
    """The folder for results: one that holds results of the same, else a new one that is not ``taken``; a number tells
    it from others."""
    number, folder = 1, home / name
    while folder in taken or (folder.exists() and not _is_same(folder, results)):
        number += 1
        folder = home / f"{name}-{number}"
    return folder


def _is_same(folder: Path, results: Results) -> bool:
    held = kept_results(folder)
    return held is None or {k: _identity(v) for k, v in held.items()} == {k: _identity(v) for k, v in results.items()}


def _identity(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in _NOT_OF_IT}


def kept_results(folder: Path) -> dict[str, dict[str, Any]] | None:
    """What was measured before, scores as shares of one; None where there is nothing, {} where it is damaged."""
    path = folder / _FILE
    if not path.is_file():
        return None
    try:
        return {name: _mapped(result, as_shares) for name, result in read_json(path).items()}
    except (ValueError, TypeError, AttributeError, KeyError):
        return {}


def results_in(home: Path, name: str, results: Results) -> dict[str, dict[str, Any]] | None:
    """Results of the same that were measured before in full, or None."""
    held = kept_results(result_folder(home, name, results))
    return held if held and all(test in result for result in held.values() for test in TESTS) else None


def save_results(folder: Path, results: Results) -> None:
    """Writes what was measured as JSON and CSV, in percent; a test that was measured before and now was not is kept."""
    before = kept_results(folder) or {}
    merged = {name: {**before.get(name, {}), **result} for name, result in results.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _FILE, {name: written(result) for name, result in merged.items()})
    write_csv(folder / "rotation.csv", result_rows(merged))


def written(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as files hold it."""
    return {**_mapped(result, in_percent), "unit": "percent"}


def result_rows(results: Results) -> list[dict[str, Any]]:
    """A row for each turn, in percent, which says of which network, checkpoint and images it is."""
    about = ("data", "split", "n", "seed", "checkpoint")
    return [
        {"name": name, **{key: result[key] for key in about}, "test": test, **in_percent(row)}
        for name, result in results.items()
        for test in TESTS
        if test in result
        for row in result[test]["rows"]
    ]


def _mapped(result: Mapping[str, Any], change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A result with its rows and summaries changed."""
    mapped = dict(result)
    for test in TESTS:
        if test in result:
            summary = {score: change(values) for score, values in result[test]["summary"].items()}
            mapped[test] = {"rows": [change(row) for row in result[test]["rows"]], "summary": summary}
            if "images" in result[test]:
                mapped[test]["images"] = {
                    figure: [change({"score": value})["score"] for value in values]
                    for figure, values in result[test]["images"].items()
                }
    return mapped


def checksum_of(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's file."""
    path = checkpoint_in(checkpoint)
    about = path.stat()
    return _checksum(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=64)
def _checksum(path: Path, modified: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
