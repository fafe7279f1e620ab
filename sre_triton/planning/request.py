"""Which backend the user asks for: ``with sre_triton.backend("dense"): ...``."""

from __future__ import annotations

from types import TracebackType

from sre_triton.backends.registry import BACKENDS

__all__ = ["REQUESTS", "backend", "current_backend"]

REQUESTS = ("auto", *BACKENDS)

# A one-element list and not a ContextVar: torch.compile traces through it and guards on its content.
_requested: list[str] = ["auto"]


class backend:
    """Context manager that forces one backend: ``with sre_triton.backend("dense"): ...``.

    Args:
        name: ``"auto"`` (the planner decides, the default outside of any context), ``"dense"``,
            ``"ringwise"``, ``"native"`` or ``"triton"``.

    The request holds for the whole process, as ``torch.backends`` flags do, and a backward pass takes
    the backend that was requested when its forward ran. A request that cannot be met raises
    :class:`RuntimeError` at the call; nothing falls back silently.

    Raises:
        ValueError: ``name`` is none of the five.
    """

    def __init__(self, name: str) -> None:
        if name not in REQUESTS:
            raise ValueError(f"backend must be one of {', '.join(map(repr, REQUESTS))}, got {name!r}")
        self.name = name
        self._outer: list[str] = []

    def __enter__(self) -> None:
        self._outer.append(_requested[0])
        _requested[0] = self.name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _requested[0] = self._outer.pop()


def current_backend() -> str:
    """The backend that calls made now will request."""
    return _requested[0]
