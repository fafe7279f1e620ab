"""Griffe extension: docstrings as ``help()`` shows them, with references in the place of Sphinx's roles.

``:func:`~sre_triton.convert``` becomes the name, linked where a page of the API shows it. What members of a family
take over from each other (:mod:`sre_triton.docstrings`) is put in by running their code.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from operator import attrgetter
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
            if any("completed_by" in str(decorator.value) for decorator in getattr(obj, "decorators", ())):
                module = obj.module.path
                found = attrgetter(obj.path.removeprefix(f"{module}."))(import_module(module))
                obj.docstring.value = inspect.cleandoc(found.__doc__)
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
