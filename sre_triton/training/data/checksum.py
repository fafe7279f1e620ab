"""Checksums that tell whether two sets, divided as they are, are the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["checksum_of"]

_WHOLE = 2**20


def checksum_of(parts: Mapping[str, Iterable[Any]]) -> str:
    """SHA-256 of the items of each split, in order.

    Args:
        parts: of each split, what its images are: bytes, text or numbers, or files. A file counts with its name, its
            size and its first and last half mebibyte, as sets can be larger than one likes to read at every start.
    """
    digest = hashlib.sha256()
    for split, items in parts.items():
        digest.update(f"{split}\n".encode())
        for item in items:
            content = (
                _of_file(item) if isinstance(item, Path) else item if isinstance(item, bytes) else f"{item}".encode()
            )
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
    return digest.hexdigest()


def _of_file(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        first = file.read(_WHOLE // 2)
        file.seek(max(len(first), size - _WHOLE // 2))
        return f"{path.name} {size}\n".encode() + first + file.read()
