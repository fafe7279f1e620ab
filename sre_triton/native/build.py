"""Building the native kernel, and finding it again.

The library lies in the cache folder under a name that holds all it depends on: its source, PyTorch, the compiler's
options and the processor's abilities. A library of another machine or version is not found rather than wrong.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

from sre_triton.cache import cache_directory

__all__ = ["build", "missing"]

_SOURCE = Path(__file__).with_name("ring_conv.cpp")
_OPTIONS = ("-O3", "-march=native", "-fopenmp", "-std=c++20")
_SWITCH = "SRE_TRITON_NATIVE"


def build(*, verbose: bool = False) -> Path:
    """Compiles the native kernel for this machine, unless that was done before.

    Takes about half a minute and needs a C++ compiler, ``ninja`` and ``setuptools`` (``pip install
    'sre-triton[native]'`` brings the last two). Processes that start later find it by themselves; this one uses it
    from now on.

    Args:
        verbose: show what the compiler says.

    Returns:
        The library, in ``SRE_TRITON_CACHE_DIR`` (by default ``~/.cache/sre_triton``).

    Raises:
        RuntimeError: it cannot be built; the message holds the reason.
    """
    library = _library()
    if not library.exists():
        try:
            library.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=library.parent) as folder:
                os.replace(_compile(Path(folder), verbose), library)
        except (ImportError, OSError, RuntimeError) as error:
            raise RuntimeError(f"the native kernel cannot be built: {error}") from error
    _load.cache_clear()
    reason = missing()
    if reason is not None:
        raise RuntimeError(f"the native kernel was built but cannot be used: {reason}")
    return library


def missing() -> str | None:
    """Why there is no native kernel in this process, or None if there is."""
    return _load()


@lru_cache(maxsize=1)
def _load() -> str | None:
    if os.environ.get(_SWITCH, "1") == "0":
        return f"the variable {_SWITCH} is 0"
    library = _library()
    if not library.exists():
        return "it is not built; `python -m sre_triton.native` builds it"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{library} cannot be loaded: {error}"
    return None


def _compile(folder: Path, verbose: bool) -> Path:
    if not (compiler := shutil.which(os.environ.get("CXX", "c++"))):
        raise RuntimeError("no C++ compiler: neither `c++` nor what the variable CXX names is on the path")
    os.environ.setdefault("CXX", compiler)
    from torch.utils import cpp_extension  # imports setuptools, so only here

    cpp_extension.load(
        "sre_triton_native",
        [str(_SOURCE)],
        extra_cflags=list(_OPTIONS),
        extra_ldflags=["-fopenmp"],
        build_directory=str(folder),
        is_python_module=False,
        is_standalone=False,
        verbose=verbose,
    )
    return folder / "sre_triton_native.so"


@lru_cache(maxsize=1)
def _name() -> str:
    key = (_SOURCE.read_text(), torch.__version__, torch.compiled_with_cxx11_abi(), _OPTIONS, _processor())
    return f"native-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"


def _library() -> Path:
    return cache_directory() / _name()


def _processor() -> str:
    """What tells this machine's instructions from another's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    return f"{platform.machine()} {features}"
