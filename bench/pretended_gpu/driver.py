"""A CUDA driver library that does nothing, and Triton bound to it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

__all__ = ["install"]

_SOURCE = Path(__file__).with_name("libcuda.c")


def install() -> None:
    """Loads the library under the name of the real one, before Triton does.

    Raises:
        RuntimeError: the C compiler is missing or fails.
    """
    folder = _build()
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)  # what Triton links against
    ctypes.CDLL(str(folder / "libcuda.so.1"), ctypes.RTLD_GLOBAL)


def _build() -> Path:
    """The folder that holds the library, compiled once per user and source."""
    import triton

    key = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"pretended-gpu-{os.getuid()}-{key}"
    library = folder / "libcuda.so.1"
    if not library.exists():
        folder.mkdir(exist_ok=True)
        headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
        scratch = folder / f"{os.getpid()}.so"
        command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", f"-I{headers}", "-Wl,-soname,libcuda.so.1"]
        try:
            subprocess.run([*command, "-o", scratch, _SOURCE], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"the pretended driver needs a C compiler: {getattr(error, 'stderr', error)}") from error
        os.replace(scratch, library)
    return folder
