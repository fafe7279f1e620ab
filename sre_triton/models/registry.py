"""Every network by name: what the tests sweep, the table lists and the training command offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

__all__ = ["Entry", "entry", "get_model", "list_models", "register_model"]

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class Entry:
    """A network that can be asked for by name.

    Attributes:
        name: of the function that builds it.
        build: that function.
        input_shape: channels and sizes of an image that the network is meant for.
        published: arguments with which it was published, sizes of convolutions among them.
    """

    name: str
    build: Callable[..., nn.Module]
    input_shape: tuple[int, ...]
    published: dict[str, Any]

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return len(self.input_shape) - 1


_ENTRIES: dict[str, Entry] = {}


def register_model(input_shape: tuple[int, ...], **published: Any) -> Callable[[Builder], Builder]:
    """Decorates a function that builds a network; see :class:`Entry` for the arguments."""

    def register(build: Builder) -> Builder:
        _ENTRIES[build.__name__] = Entry(build.__name__, build, input_shape, published)
        return build

    return register


def list_models(filter: str = "*") -> list[str]:
    """Names of all networks, or of some.

    Args:
        filter: a shell pattern such as ``"sre_*"``; ``"*"`` for all.

    Returns:
        Names in alphabetical order, for :func:`get_model` and :func:`entry`.

    Raises:
        TypeError: ``filter`` is no string.

    Examples:
        >>> sre_triton.models.list_models("sre_r3d*")
        ['sre_r3d_18', 'sre_r3d_34']
    """
    return sorted(name for name in _ENTRIES if fnmatchcase(name, filter))


def entry(name: str) -> Entry:
    """What is known about the network of this name.

    Args:
        name: one of :func:`list_models`.

    Returns:
        Its name, the function that builds it, the size of an image that it is meant for, and the arguments with which
        it was published.

    Raises:
        ValueError: there is none.
    """
    if name not in _ENTRIES:
        raise ValueError(f"there is no network {name!r}; there are {', '.join(list_models())}")
    return _ENTRIES[name]


def get_model(name: str, **options: Any) -> nn.Module:
    """The network of this name, with random parameters.

    Args:
        name: one of :func:`list_models`.
        options: arguments of the function of the same name in :mod:`sre_triton.models`.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: there is no such network, or an argument has a value that it cannot have.
        TypeError: an argument is unknown.

    Examples:
        >>> network = sre_triton.models.get_model("sre_resnet18", num_classes=2, inplanes=8)
        >>> network.num_classes
        2
    """
    return entry(name).build(**options)
