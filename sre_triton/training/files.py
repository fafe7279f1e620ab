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
    "read_json",
    "replacing",
    "require_writable",
    "sweep",
    "write_csv",
    "write_json",
]

FIGURE_FORMATS = ("png", "pdf", "svg")
"""What figures can be written as."""


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
