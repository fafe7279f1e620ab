"""Faults that a launcher of the pretended GPU can have."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["KINDS", "Fault", "check_context", "with_faults"]

KINDS = ("hang", "die", "sticky", "raise", "zeros", "unwritten")
"""Never returns; ends the process; leaves an error that every later call meets; raises once; returns zeros; returns
memory that it did not write."""

_context_is_broken = False


@dataclass(frozen=True)
class Fault:
    """What goes wrong, in which launcher, for which kernel size (None: all), in processes whose name holds this."""

    kind: str
    launcher: str
    kernel_size: int | None = None
    process: str = ""

    @classmethod
    def parse(cls, text: str) -> Fault:
        """``kind@launcher[:kernel size][@process]``, such as ``die@transpose:9@table``.

        Raises:
            ValueError: the text is not of this form.
        """
        kind, _, rest = text.partition("@")
        where, _, process = rest.partition("@")
        launcher, _, size = where.partition(":")
        if kind not in KINDS or not launcher or not (size.isdigit() or not size):
            raise ValueError(f"a fault is kind@launcher[:kernel size][@process], kind in {KINDS}; got {text!r}")
        return cls(kind, launcher, int(size) if size else None, process)

    def strikes(self, kernel_size: int) -> bool:
        size_agrees = self.kernel_size in (None, kernel_size)
        return size_agrees and self.process in multiprocessing.current_process().name


def with_faults(name: str, launcher: Callable[..., Any], faults: list[Fault]) -> Callable[..., Any]:
    """``launcher`` with those of ``faults`` that are meant for it."""
    meant = [fault for fault in faults if fault.launcher == name]

    def call(*args: Any, **options: Any) -> Any:
        check_context()
        specs = [a for a in args if hasattr(a, "geometry")]
        size = specs[0].geometry.kernel_size[0] if specs else 0
        kinds = {fault.kind for fault in meant if fault.strikes(size)}
        _before(kinds)
        return _after(kinds, launcher(*args, **options))

    return call if meant else launcher


def check_context() -> None:
    """Raises as CUDA does once a kernel has faulted."""
    if _context_is_broken:
        raise RuntimeError("CUDA error: an illegal memory access was encountered (pretended)")


def _before(kinds: set[str]) -> None:
    global _context_is_broken
    if "hang" in kinds:
        time.sleep(1e6)
    if "die" in kinds:
        os._exit(11)
    if "raise" in kinds:
        raise RuntimeError("out of resource (pretended)")
    if "sticky" in kinds:
        _context_is_broken = True  # asynchronous, as faults of kernels are: this call itself returns


def _after(kinds: set[str], result: Any) -> Any:
    if not kinds & {"zeros", "unwritten"}:
        return result
    empty = [torch.empty_like(t) for t in (result if isinstance(result, tuple) else (result,))]
    if "zeros" in kinds:
        empty = [tensor.zero_() for tensor in empty]
    return tuple(empty) if isinstance(result, tuple) else empty[0]
