"""What was measured on a GPU: launch options and speeds, which count before any rule or model.

A GPU has one file, ``gpu-<name>.json``, with

- ``format``: 1.
- ``rows``: layers that ``python -m bench.gpu`` raced against the dense backend, for the planner. Its report is such a
  file; :mod:`sre_triton.planning.gpu_tables` says what a row holds.
- ``launch_options``: what :func:`sre_triton.tune` found fastest, by kernel and problem, for the Triton backend.

Either may be missing, and what else stands there is kept. Read are the file in the folder ``measured`` beside this
module, which ships with the package, and the one of this machine in ``SRE_TRITON_CACHE_DIR`` (by default
``~/.cache/sre_triton``), which overrules it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sre_triton.cache import cache_directory, replacing

__all__ = ["load", "path_in", "read", "write"]

_FORMAT = 1
_SHIPPED = Path(__file__).with_name("measured")

K = TypeVar("K")
V = TypeVar("V")


def path_in(folder: Path, gpu: str) -> Path:
    """The file of a GPU of this name."""
    return folder / f"gpu-{''.join(c if c.isalnum() else '-' for c in gpu)}.json"


def load(gpu: str, parse: Callable[[dict[str, Any]], dict[K, V]]) -> dict[K, V]:
    """What ``parse`` finds in the files of a GPU."""
    return read(path_in(_SHIPPED, gpu), parse) | read(path_in(cache_directory(), gpu), parse)


def read(path: Path, parse: Callable[[dict[str, Any]], dict[K, V]]) -> dict[K, V]:
    """What ``parse`` finds in a file; nothing if there is none, or, with a warning, if it cannot be read."""
    try:
        content = json.loads(path.read_text())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, not {_FORMAT}")
        return parse(content)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} is no file of measurements and is ignored: {error!r}", RuntimeWarning, stacklevel=2)
        return {}


def write(path: Path, **sections: Any) -> None:
    """Replace these sections of a file and keep its others. At no moment is there half a file.

    Raises:
        OSError: the file cannot be written; what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = read(path, dict) | {"format": _FORMAT} | sections
    with replacing(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n")
