"""Every public name says what it is, takes, gives and raises, in which shapes and units, and from where it comes.

What griffe, the parser of the documentation's pages, does not find in a docstring is not there.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, is_typeddict

import griffe
import pytest
from torch import Tensor

import sre_triton
from sre_triton.balance import BalancedSteps
from sre_triton.conversion.report import LayerReport, ModelReport, SymmetryReport
from sre_triton.diagnosis.selfcheck import SelfCheck
from sre_triton.docstrings import completed_by
from sre_triton.models.registry import Entry
from tests.test_public_names import LIST

# What public functions return and users go on with. sre_triton.load returns another, which needs the extra train.
RESULTS = (BalancedSteps, Entry, LayerReport, ModelReport, SelfCheck, SymmetryReport)
PIXELS = {"dilation", "dilations", "kernel_size", "output_padding", "padding", "reach", "stride"}
SHAPE = re.compile(r"\((?:[A-Za-z][\w /*']*,|\*)|(?:such as|like|shape of|shape as) ``\w+``")
PUBLISHED = re.compile(r"^Sources?\b.*:", re.MULTILINE)
MEMBERS = (property, functools.cached_property)


def public_objects(module: ModuleType = sre_triton) -> Iterator[tuple[str, Any]]:
    for name in module.__all__:
        value = getattr(module, name)
        yield f"{module.__name__}.{name}", value
        if isinstance(value, ModuleType):
            yield from public_objects(value)


def members(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A name, and of a class its public methods and properties, but those that it has from PyTorch."""
    yield name, value
    if not inspect.isclass(value) or is_typeddict(value):
        return
    for member in dir(value):
        owner = next(cls for cls in value.__mro__ if member in cls.__dict__)
        if not member.startswith("_") and owner.__module__.startswith("sre_triton"):
            found = inspect.getattr_static(value, member)
            if inspect.isfunction(found) or isinstance(found, MEMBERS):
                yield f"{name}.{member}", found


def parsed(value: Any) -> dict[str, Any]:
    sections = griffe.Docstring(inspect.cleandoc(value.__doc__ or "")).parse("google", warnings=False)
    return {section.kind.value: section.value for section in sections}


def described(entries: Iterable[Any]) -> dict[str, str]:
    return {entry.name.lstrip("*"): entry.description for entry in entries}


def lacking(value: Any) -> list[str]:
    """What a docstring does not say."""
    sections = parsed(value)
    lacks = [] if len(str(sections.get("text", "")).split()) > 1 else ["what it is"]
    if is_typeddict(value) or value in RESULTS:  # made by the package, for users to read
        told = described([*sections.get("attributes", ()), *sections.get("parameters", ())])
        return lacks + [f"field {name}" for name in inspect.get_annotations(value) if not told.get(name)]
    if isinstance(value, (ModuleType, *MEMBERS)) or not callable(value):
        return lacks
    signature = inspect.signature(value)
    parameters = {name: p for name, p in signature.parameters.items() if name != "self"}
    told = described(sections.get("parameters", ()))
    lacks += [f"{name}, which is no argument" for name in told if name not in parameters]
    for name, parameter in parameters.items():
        description = told.get(name, "")
        if not description:
            lacks.append(f"argument {name}")
        if parameter.default is None and "None" not in description:
            lacks.append(f"what None means for {name}")
        if name in PIXELS and "pixel" not in description:
            lacks.append(f"that {name} is in pixels")
        if parameter.annotation in ("Tensor", "Tensor | None") and not SHAPE.search(description):
            lacks.append(f"the shape of {name}")
    raised = [entry.description for entry in sections.get("raises", ())]
    if any(p.annotation != "bool" for p in parameters.values()) and not (raised and all(raised)):
        lacks.append("errors")
    returned = signature.return_annotation if inspect.isfunction(value) else None
    if parameters and returned not in (None, "None"):
        gives = " ".join(entry.description for entry in sections.get("returns", ()))
        lacks += [] if gives else ["what it returns"]
        lacks += ["the shape of what it returns"] if returned == "Tensor" and not SHAPE.search(gives) else []
    return lacks + (
        ["its source"] if published(value) and not PUBLISHED.search(inspect.cleandoc(value.__doc__ or "")) else []
    )


def published(value: Any) -> bool:
    """Whether the module of a class or function, or a package above it, names a publication."""
    if not (inspect.isclass(value) or (inspect.isfunction(value) and "." not in value.__qualname__)):
        return False
    parts = value.__module__.split(".")
    modules = (importlib.import_module(".".join(parts[:n])) for n in range(1, len(parts) + 1))
    return any(PUBLISHED.search(module.__doc__ or "") for module in modules)


def faults(named: Iterable[tuple[str, Any]]) -> tuple[int, list[str]]:
    whole = [pair for name, value in named for pair in members(name, value)]
    return len(whole), [f"{name} lacks {lack}" for name, value in whole for lack in lacking(value)]


def test_all_public_names_have_a_full_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    names = dict(public_objects())
    listed = {re.split(r"[({:]", line)[0] for line in LIST.read_text().splitlines()}
    assert set(names) == {name for name in listed if not name.endswith(".forward")}
    results = ((cls.__qualname__, cls) for cls in RESULTS)
    checked, found = faults((*names.items(), *results))
    with capsys.disabled():
        print(f" {len(names)} public names, {checked} docstrings with methods and results ", end="")
    assert found == []


def test_what_load_returns_has_full_docstrings() -> None:
    pytest.importorskip("lightning")
    from sre_triton.training.runs.predictor import Predictor

    methods = [(name, value) for name, value in members("Predictor", Predictor) if name != "Predictor"]
    assert len(methods) >= 5
    assert faults(methods)[1] == []


def test_what_is_left_out_shows() -> None:
    def kernel(x: Tensor, padding: int = 0, bias: Tensor | None = None) -> Tensor:
        """A kernel.

        Args:
            x: a tensor.
            padding: on both sides.
            bias: (out,).
            other: nothing.

        Returns:
            a tensor.
        """
        return x

    assert lacking(kernel) == [
        "other, which is no argument",
        "the shape of x",
        "that padding is in pixels",
        "what None means for bias",
        "errors",
        "the shape of what it returns",
    ]
    kernel.__doc__ = None
    assert lacking(kernel)[:2] == ["what it is", "argument x"]


def test_a_docstring_gets_from_its_kin_what_it_lacks() -> None:
    def whole(a: int, b: int, c: int) -> int:
        """All of it.

        Args:
            a: first,
                on two lines.
            b: second.
            c: third.

        Returns:
            one: a number.

        Raises:
            ValueError: a is wrong.
            TypeError: b is.
        """
        return a

    @completed_by(whole)
    def part(c: int, a: int, d: int = 0) -> int:
        """Part of it.

        Args:
            d: of its own.
            c: its own third.

        Raises:
            ValueError: c is wrong.
        """
        return a

    @completed_by(whole, "Raises")
    class Kin:
        """Its kin."""

    assert inspect.cleandoc(part.__doc__ or "").splitlines() == [
        "Part of it.",
        "",
        "Args:",
        "    c: its own third.",
        "    a: first,",
        "        on two lines.",
        "    d: of its own.",
        "",
        "Returns:",
        "    one: a number.",
        "",
        "Raises:",
        "    ValueError: c is wrong.",
        "    TypeError: b is.",
    ]
    assert (Kin.__doc__ or "").split("\n\n") == [
        "Its kin.",
        "Raises:\n    ValueError: a is wrong.\n    TypeError: b is.\n",
    ]
