"""Docstrings of a family: what one member says of an argument is not written again for its kin, and yet each is whole.

In the source a member of a family says what sets it apart, and ``help()`` shows all of it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["completed_by"]

Documented = TypeVar("Documented", bound=Callable[..., Any])

_SHARED = ("Args", "Attributes", "Returns", "Raises", "Source")
_SECTIONS = (*_SHARED, "Examples")  # in the order in which they stand
_BY_NAME = ("Args", "Attributes", "Raises")  # made of entries "name: text"
_TITLE = re.compile(rf"^({'|'.join(_SECTIONS)}):\n", re.MULTILINE)
_ENTRY = re.compile(r"^(?=    \S)", re.MULTILINE)


def completed_by(source: Callable[..., Any], *titles: str) -> Callable[[Documented], Documented]:
    """Decorates a class or function: its docstring gets what it lacks from that of ``source``.

    That is whole sections (those of ``titles``; by default all but Examples) and, in those
    that it has, single entries. Of arguments it gets those of its own signature, in that order; a class gets
    nothing about what a function returns. What it says itself stands.
    """

    def complete(target: Documented) -> Documented:
        if target.__doc__ and source.__doc__:  # python -OO has neither
            wanted = [title for title in titles or _SHARED if title != "Returns" or not inspect.isclass(target)]
            target.__doc__ = _merged(target.__doc__, source.__doc__, wanted, list(inspect.signature(target).parameters))
        return target

    return complete


def _merged(own: str, other: str, wanted: list[str], parameters: list[str]) -> str:
    head, sections = _parse(own)
    others = {title: entries if title in wanted else {} for title, entries in _parse(other)[1].items()}
    merged = {**others, **sections, **{title: {**others[title], **sections[title]} for title in _BY_NAME}}
    merged["Args"] = {name: merged["Args"][name] for name in parameters if name in merged["Args"]}
    bodies = ("\n".join((f"{title}:", *merged[title].values())) for title in _SECTIONS if merged.get(title))
    return "\n\n".join((head, *bodies)) + "\n"


def _parse(docstring: str) -> tuple[str, dict[str, dict[str, str]]]:
    """What stands before the sections, and of each section its entries by name."""
    head, *rest = _TITLE.split(inspect.cleandoc(docstring) + "\n")
    sections: dict[str, dict[str, str]] = {title: {} for title in _BY_NAME}
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        for entry in _ENTRY.split(body)[1:]:
            name = entry.partition(":")[0].strip() if title in _BY_NAME else entry
            sections.setdefault(title, {})[name] = entry.rstrip()
    return head.rstrip(), sections
