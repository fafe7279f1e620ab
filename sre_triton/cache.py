"""Where results that outlive a process are kept (measurements of GPUs, the compiled native kernel), and files that are
whole or absent whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

__all__ = ["PARTIAL", "cache_directory", "replacing"]

PARTIAL = ".part"
"""Ending of what is not whole yet."""


def cache_directory() -> Path:
    """``SRE_TRITON_CACHE_DIR``, or ``sre_triton`` in the user's cache folder."""
    return _directory(os.environ.get("SRE_TRITON_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME"))


@lru_cache(maxsize=16)
def _directory(chosen: str | None, cache: str | None) -> Path:
    return Path(chosen) if chosen else Path(cache or Path.home() / ".cache") / "sre_triton"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to; it takes the name of ``path`` once it is complete and on disk.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; names ``path``. Nothing is left behind.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"no space left on the disk of {path.absolute()}: it was not written") from error
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
