"""Which backend the user asks for: ``with sre_triton.backend("dense"): ...``."""

from __future__ import annotations

from threading import get_ident
from types import TracebackType

import torch

from sre_triton.backends.registry import BACKENDS

__all__ = ["REQUESTS", "backend", "current_backend"]

REQUESTS = ("auto", *BACKENDS)


class _Request:
    """One entered context. Told from others by identity, so that each context ends its own and no other."""

    def __init__(self, name: str) -> None:
        self.name = name
        # None: entered by compiled code, which does not know threads.
        self.thread = None if torch.compiler.is_compiling() else get_ident()


# All contexts of the process that are entered and not left, oldest first. A plain list, and neither a ContextVar nor
# threading.local: torch.compile traces through it and guards on what it reads, which it does for neither of those.
_entered: list[_Request] = []


class backend:
    """Context manager that forces one backend: ``with sre_triton.backend("dense"): ...``.

    Args:
        name: ``"auto"`` (the planner decides, the default outside of any context), ``"dense"``,
            ``"ringwise"``, ``"native"`` or ``"triton"``.

    A request holds for the calls of the thread that made it, and for those of threads that made none (such as the
    replicas of ``nn.DataParallel``), for which the last request of the process counts. Contexts may end in any order.
    Compiled code does not know threads: it takes the last request of the process, and is compiled again when that
    changes.

    A backward pass takes the backend that was requested when its forward ran. The limit of this is
    ``torch.utils.checkpoint``, which runs the forward anew within the backward pass, and under the request that holds
    there. Give it the request, too: ``checkpoint(f, x, use_reentrant=False, context_fn=lambda: (backend("dense"),
    backend("dense")))``.

    A request that cannot be met raises :class:`RuntimeError` at the call; nothing falls back silently.

    Raises:
        ValueError: ``name`` is none of the five.

    Examples:
        >>> layer, image = sre_triton.SREConv2d(3, 8, 5), torch.randn(1, 3, 9, 9)
        >>> with sre_triton.backend("dense"):
        ...     y = layer(image)
        >>> with sre_triton.backend("cudnn"):
        ...     y = layer(image)
        Traceback (most recent call last):
        ValueError: backend must be one of 'auto', 'dense', 'ringwise', 'native', 'triton', got 'cudnn'
    """

    def __init__(self, name: str) -> None:
        if name not in REQUESTS:
            raise ValueError(f"backend must be one of {', '.join(map(repr, REQUESTS))}, got {name!r}")
        self.name = name
        self._requests: list[_Request] = []

    def __enter__(self) -> None:
        request = _Request(self.name)
        self._requests.append(request)
        _entered.append(request)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        request = _last(self._requests)
        assert request is not None, "left before it was entered"
        self._requests.remove(request)
        _entered.remove(request)


def current_backend() -> str:
    """The backend that calls made now will request."""
    if not _entered:
        return "auto"
    request = _last(_entered)
    return "auto" if request is None else request.name


def _last(requests: list[_Request]) -> _Request | None:
    """The last request of this thread, or of all if it made none. Other threads may change the list meanwhile."""
    if torch.compiler.is_compiling():
        return requests[-1] if requests else None
    thread, last = get_ident(), None
    for request in reversed(requests):
        if request.thread == thread or request.thread is None:
            return request
        last = last or request
    return last
