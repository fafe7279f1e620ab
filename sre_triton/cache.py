"""Where results that outlive a process are kept: measurements of GPUs, the compiled native kernel."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

__all__ = ["cache_directory"]


def cache_directory() -> Path:
    """``SRE_TRITON_CACHE_DIR``, or ``sre_triton`` in the user's cache folder."""
    return _directory(os.environ.get("SRE_TRITON_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME"))


@lru_cache(maxsize=16)
def _directory(chosen: str | None, cache: str | None) -> Path:
    return Path(chosen) if chosen else Path(cache or Path.home() / ".cache") / "sre_triton"
