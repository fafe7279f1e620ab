"""Building the native kernel, and finding it again.

The library lies in the cache folder under a name that holds all it depends on: its source, PyTorch, the compiler and
its options, and the processor's abilities. A library of another machine or version is not found rather than wrong. The
variable SRE_TRITON_NATIVE_OPTIONS adds options for the compiler, as for a sanitizer or another processor; it has to be
the same where the library is built and where it is used.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

from sre_triton.cache import cache_directory

__all__ = ["advice", "build", "missing"]

_SOURCES = Path(__file__).with_name("csrc")
# The first release of GCC that has __builtin_shufflevector, and that of Clang that the kernel is tested with.
_LEAST_GCC, _LEAST_CLANG = 12, 14
# Without errno the compiler makes vector loops of square roots.
_OPTIONS = ("-O3", "-march=native", "-fopenmp", "-std=c++20", "-fno-math-errno")
_SWITCHED_OFF = "the variable SRE_TRITON_NATIVE is 0"


def build(*, verbose: bool = False) -> Path:
    """Compiles the native kernel for this machine, unless that was done before and still works.

    Takes about a minute and needs a C++20 compiler with OpenMP (GCC 12 or newer, or Clang 14 or newer), ``ninja``
    and ``setuptools`` (``pip install 'sre-triton[native]'`` brings the last two). Processes that start later find it by
    themselves; this one uses it from now on.

    Args:
        verbose: show what the compiler says.

    Returns:
        The library, in ``SRE_TRITON_CACHE_DIR`` (by default ``~/.cache/sre_triton``).

    Raises:
        RuntimeError: it cannot be built; the message holds the reason.
    """
    if _is_switched_off():
        raise RuntimeError(f"the native kernel is not wanted: {_SWITCHED_OFF}")
    library = _library()
    missing.cache_clear()
    if missing() is not None:
        scratch = _scratch(library.parent)
        try:
            with scratch as folder:
                os.replace(_compile(Path(folder), verbose), library)
        except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise RuntimeError(f"the native kernel cannot be built: {error}") from error
        missing.cache_clear()
        reason = missing()
        if reason is not None:
            raise RuntimeError(f"the native kernel was built but cannot be used: {reason}")
    return library


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Why there is no native kernel in this process, or None if there is."""
    if _is_switched_off():
        return _SWITCHED_OFF
    try:
        library = _library()
        if not library.exists():
            return "it is not built; `sre-triton build-native` builds it"
    except (OSError, RuntimeError) as error:  # no home folder, say
        return f"it cannot be looked for: {error}"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{library} cannot be loaded: {error}"
    return None


def advice() -> str | None:
    """What to tell a user who has no native kernel and may not know of it; None if there is one or it is not wanted."""
    if missing() is None or _is_switched_off():
        return None
    return (
        f"The native CPU kernel is not there ({missing()}). Ring convolutions on this CPU run at 0.5 to 0.7 of the "
        "speed that they have with it: sre_triton.build_native(), or `sre-triton build-native`, builds it once in a "
        "minute."
    )


def _is_switched_off() -> bool:
    return os.environ.get("SRE_TRITON_NATIVE") == "0"


def _scratch(cache: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder to compile in, on the disk of the cache."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=cache)
    except OSError as error:
        raise RuntimeError(
            f"the native kernel cannot be built: cannot write to {cache}: {error.strerror or error}; "
            "the variable SRE_TRITON_CACHE_DIR names another folder"
        ) from error


def _compile(folder: Path, verbose: bool) -> Path:
    compiler = os.environ.get("CXX", "c++")
    if not shutil.which(compiler):
        raise RuntimeError(f"there is no C++ compiler {compiler!r} on the path; the variable CXX names another")
    _check_version(compiler)
    from torch.utils import cpp_extension  # imports setuptools, so only here

    path = os.environ.get("PATH", "")
    # Ninja's package puts it next to the interpreter, which is on the path of an activated environment alone.
    os.environ["PATH"] = os.pathsep.join([path, sysconfig.get_path("scripts")])
    try:
        cpp_extension.load(
            "sre_triton_native",
            [str(path) for path in sorted(_SOURCES.glob("*.cpp"))],
            extra_cflags=list(_options()),
            extra_ldflags=list(_options()),
            build_directory=str(folder),
            is_python_module=False,
            verbose=verbose,
        )
    finally:
        os.environ["PATH"] = path
    return folder / "sre_triton_native.so"


def _options() -> tuple[str, ...]:
    return (*_OPTIONS, *shlex.split(os.environ.get("SRE_TRITON_NATIVE_OPTIONS", "")))


def _check_version(compiler: str) -> None:
    """Raises RuntimeError for a compiler that is too old; its own complaint would be about a name in our source."""
    command = [compiler, "-x", "c++", "-dM", "-E", os.devnull]
    # What this question does not suit (another vendor's compiler) is left to the compilation.
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    macros = dict(re.findall(r"^#define (\w+) (\S+)$", printed, re.MULTILINE))
    if "__clang__" in macros:
        names, kind, least = ("__clang_major__", "__clang_minor__", "__clang_patchlevel__"), "Clang", _LEAST_CLANG
        known = "__apple_build_version__" not in macros  # Apple counts on its own
    else:
        names, kind, least = ("__GNUC__", "__GNUC_MINOR__", "__GNUC_PATCHLEVEL__"), "GCC", _LEAST_GCC
        known = True
    if known and names[0] in macros and int(macros[names[0]]) < least:
        version = ".".join(macros[name] for name in names if name in macros)
        raise RuntimeError(
            f"the C++ compiler {compiler!r} is {kind} {version}; expected GCC {_LEAST_GCC} or newer, or Clang "
            f"{_LEAST_CLANG} or newer: the variable CXX names another"
        )


@lru_cache(maxsize=1)
def _name() -> str:
    sources = [path.read_text() for path in sorted(_SOURCES.iterdir())]
    key = (sources, torch.__version__, torch.compiled_with_cxx11_abi(), _options(), _processor())
    return f"native-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"


def _library() -> Path:
    """Where the library of this compiler lies. A process that finds no compiler takes the last that another built."""
    folder, name = cache_directory(), _name()
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        built = sorted(folder.glob(f"{name}-*.so"), key=lambda path: path.stat().st_mtime)
        return built[-1] if built else folder / f"{name}.so"
    # Its own path, not that of a link: it names the version where several are installed.
    digest = hashlib.sha256(os.path.realpath(compiler).encode()).hexdigest()
    return folder / f"{name}-{digest[:8]}.so"


def _processor() -> str:
    """What tells this machine's instructions from another's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    return f"{platform.machine()} {features}"
