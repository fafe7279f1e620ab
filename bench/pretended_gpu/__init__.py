"""A GPU that is not there: what `bench.gpu` and `bench.host_time` do on a machine without one.

Tensors stay in main memory and say "cuda". Two pretences:

``dense``   the launchers of the Triton backend are replaced by the dense backend: right results
``noop``    the real launchers: Triton compiles for sm_90, binds and launches into a driver that does nothing. Results
            are whatever the memory held; the time that the *host* spends is that of a real launch.

In one process: ``pretended_gpu.activate("noop")`` before anything launches. For a command and every process that it
starts: ``python -m bench.pretended_gpu MODE COMMAND ...``, or :func:`environment`. Faults can be injected into the
launchers; see :mod:`bench.pretended_gpu.faults`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["MODES", "activate", "activate_from_environment", "environment"]

MODES = ("dense", "noop")

_MODE, _FAULTS = "PRETENDED_GPU", "PRETENDED_GPU_FAULTS"
_HERE = Path(__file__).parent


def environment(mode: str, faults: Sequence[str] = ()) -> dict[str, str]:
    """Variables under which every Python process has this GPU, spawned ones too.

    Args:
        mode: one of :data:`MODES`.
        faults: as :meth:`bench.pretended_gpu.faults.Fault.parse` reads them.

    Raises:
        ValueError: a mode or fault that is not known.
    """
    from bench.pretended_gpu.faults import Fault

    _check(mode)
    for fault in faults:
        Fault.parse(fault)
    paths = [str(_HERE / "site"), str(_HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    return {
        _MODE: mode,
        _FAULTS: " ".join(faults),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "TRITON_INTERPRET": "0",
    }


def activate_from_environment() -> None:
    """What :func:`environment` asks for, in this process."""
    if mode := os.environ.get(_MODE):
        activate(mode, os.environ.get(_FAULTS, "").split())


def activate(mode: str, faults: Sequence[str] = ()) -> None:
    """Pretend from now on, for the rest of this process.

    Raises:
        ValueError: a mode or fault that is not known.
        RuntimeError: ``noop`` and no C compiler, or one that fails.
    """
    from bench.pretended_gpu import device, driver, launchers, tensors
    from bench.pretended_gpu.faults import Fault

    _check(mode)
    injected = [Fault.parse(fault) for fault in faults]
    if mode == "noop":
        driver.install()
    device.install()
    tensors.install()
    launchers.install(mode == "dense", injected)


def _check(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
