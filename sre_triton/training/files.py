"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sre_triton.cache import PARTIAL, replacing

__all__ = [
    "FIGURE_FORMATS",
    "PARTIAL",
    "as_shares",
    "in_percent",
    "read_json",
    "replacing",
    "require_file",
    "require_writable",
    "sweep",
    "write_csv",
    "write_json",
]

FIGURE_FORMATS = ("png", "pdf", "svg")
"""What figures can be written as."""


def require_file(path: Path, option: str = "") -> None:
    """Raises an error if there is no file, or a folder in its place.

    Args:
        option: that named it, for the message; empty if none did.

    Raises:
        FileNotFoundError, IsADirectoryError: names the path.
    """
    name = f"{option} {path}".lstrip()
    if path.is_dir():
        raise IsADirectoryError(f"{name} is a folder: expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"{name} is missing")


def sweep(folder: Path) -> None:
    """Removes what a killed process had not finished writing into a folder that it had for itself."""
    for partial in folder.glob(f"*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON; a number that is none becomes null, as JSON knows no NaN."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(_plain(value), indent=2, default=str) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: the file is not JSON; names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


_NO_SCORES = ("epoch", "lr", "grad_norm", "angle", "gmac", "gmac_dense", "gadd", "ms_per_image", "training_mib")


def in_percent(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table as files hold it: scores, in Python shares of one, in percent as in tables and figures.

    A score is a float that is no loss, no count of what is undefined, and none of the other columns of our tables.
    """
    return {name: round(100 * value, 10) if _is_score(name, value) else value for name, value in row.items()}


def as_shares(row: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`in_percent`, of a row that was read; null becomes NaN."""
    known = {name: math.nan if value is None else value for name, value in row.items()}
    return {name: 0.01 * value if _is_score(name, value) else value for name, value in known.items()}


def _is_score(name: str, value: Any) -> bool:
    return isinstance(value, float) and name not in _NO_SCORES and not name.endswith("loss") and "undefined" not in name


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows under the union of their keys, in the order in which these first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def require_writable(folder: Path, option: str) -> None:
    """Makes sure, before hours are spent, that files can be written to a folder; makes nothing.

    Raises:
        OSError: they cannot; names the option and the folder.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(f"{option} {folder}: cannot write there: {error.strerror or error}") from error
