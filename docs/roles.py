"""Griffe extension: what docstrings write in Sphinx's roles, as references of mkdocstrings.

``:func:`~sre_triton.convert``` becomes the name, linked where a page of the API shows it.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`(~?)([\w.]+)`")


def without_roles(text: str) -> str:
    """A docstring's text with plain names in the place of roles."""
    return _ROLE.sub(lambda role: f"`{role[2].rsplit('.', 1)[-1] if role[1] else role[2]}`", text)


class Roles(griffe.Extension):
    """Rewrites the docstrings of every object of the package."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(lambda role: _reference(role, obj), obj.docstring.value)


def _reference(role: re.Match[str], where: griffe.Object) -> str:
    shortened, name = role.groups()
    shown = name.rsplit(".", 1)[-1] if shortened else name
    # A bare name is one of the module's or the class's own.
    try:
        target = name if name.startswith("sre_triton") else where.resolve(name)
    except griffe.NameResolutionError:
        return f"`{shown}`"
    return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'
