"""Public names and signatures are a promise: what changes here is meant to change, and stands in the changelog.

After a change that is meant: ``python -m tests.test_public_names`` writes the list anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, is_typeddict

from torch import nn

import sre_triton

LIST = Path(__file__).with_name("public_names.txt")


def signature(function: Any) -> str:
    """Names, kinds and defaults of the parameters; annotations may grow more exact."""
    found = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def public_names(module: ModuleType = sre_triton) -> Iterator[str]:
    """One line for each public name, class and function of the package and of the modules that it exports."""
    for name in sorted(module.__all__):
        value = getattr(module, name)
        full_name = f"{module.__name__}.{name}"
        if isinstance(value, ModuleType):
            yield full_name
            yield from public_names(value)
        elif is_typeddict(value):
            yield f"{full_name}{{{', '.join(value.__annotations__)}}}"
        elif inspect.isclass(value) or inspect.isfunction(value):
            yield f"{full_name}{signature(value)}"
            if inspect.isclass(value) and issubclass(value, nn.Module):
                yield f"{full_name}.forward{signature(value.forward)}"
        else:  # a type's other name, or a constant
            yield f"{full_name}: {type(value).__name__}"


def test_names_and_signatures_are_those_of_the_list() -> None:
    assert list(public_names()) == LIST.read_text().splitlines()


def test_a_changed_signature_shows() -> None:
    def before(a: int, b: int = 1, *, c: str = "x") -> None: ...
    def renamed(a: int, d: int = 1, *, c: str = "x") -> None: ...
    def other_default(a: int, b: int = 2, *, c: str = "x") -> None: ...
    def positional(a: int, b: int = 1, c: str = "x") -> None: ...
    def annotated(a: float, b: float = 1, *, c: object = "x") -> str: ...

    assert signature(before) == signature(annotated) == "(a, b=1, *, c='x')"
    assert len({signature(f) for f in (before, renamed, other_default, positional)}) == 4


if __name__ == "__main__":
    LIST.write_text("".join(f"{line}\n" for line in public_names()))
