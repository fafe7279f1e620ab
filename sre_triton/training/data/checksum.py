"""Checksums that tell whether two sets, or a split of two sets, are the same images and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["checksums"]

_WHOLE = 2**20


def checksums(splits: Mapping[str, Iterable[tuple[Any, ...]]]) -> dict[str, str]:
    """SHA-256 of each split and, as "all", of all their images together; the order of images makes no difference.

    Args:
        splits: of each split, what its images are: bytes, text, numbers and files, a tuple for each. A file counts
            with its name, its size and its first and last half mebibyte, as sets can be larger than one likes to read
            at every start.
    """
    items = {split: [_digest(map(_content, item)) for item in some] for split, some in splits.items()}
    items["all"] = [item for some in items.values() for item in some]
    return {split: _digest(sorted(some)).hex() for split, some in items.items()}


def _digest(parts: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _content(part: Any) -> bytes:
    if isinstance(part, bytes):
        return part
    if not isinstance(part, Path):
        return str(part).encode()
    with part.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        first = file.read(_WHOLE // 2)
        file.seek(max(len(first), size - _WHOLE // 2))
        return f"{part.name} {size}\n".encode() + first + file.read()
