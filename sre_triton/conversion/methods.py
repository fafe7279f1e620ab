"""What the methods of a network's modules speak of, read from their code without running it."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import sys
import textwrap
import types
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

__all__ = [
    "all_names",
    "code_names",
    "global_names",
    "is_library",
    "methods",
    "reader_of_weight",
    "reads",
    "takes_input",
]

_LIBRARIES = frozenset({"torch", "numpy", __name__.partition(".")[0], *sys.stdlib_module_names} - {"__main__"})


def is_library(module: str) -> bool:
    """Whether a module by this name belongs to PyTorch, NumPy, Python or this package: known, and taken on trust."""
    return module.partition(".")[0] in _LIBRARIES


def code_names(code: types.CodeType) -> set[str]:
    """The global names and attributes that a function's code speaks of, with those of functions within it."""
    return set().union(*(one.co_names for one in _codes(code)))


@functools.lru_cache(maxsize=1024)
def global_names(code: types.CodeType) -> frozenset[str]:
    """The global names alone: ``self.net`` speaks of no global variable ``net``."""
    steps = (step for one in _codes(code) for step in dis.get_instructions(one))
    return frozenset(step.argval for step in steps if step.opname in _OF_GLOBALS)


_OF_GLOBALS = {name for name in dis.opmap if name == "LOAD_NAME" or (name.startswith("LOAD_") and "GLOBAL" in name)}


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def methods(module: nn.Module) -> dict[str, types.FunctionType]:
    """Functions of a module's class and of the module itself that are no library's, but for its constructor."""
    found: dict[str, types.FunctionType] = {}
    for cls in reversed(type(module).__mro__):
        if not is_library(cls.__module__):
            for name, value in vars(cls).items():
                if (function := _function(value)) is not None:
                    # One that overrides another may call it.
                    found[f"{cls.__name__}.{name}" if name in found else name] = function
    for name, value in vars(module).items():
        if (function := _function(value)) is not None and not is_library(function.__module__ or ""):
            found[name] = function
    return {name: function for name, function in found.items() if function.__name__ != "__init__"}


def _function(value: Any) -> types.FunctionType | None:
    for attribute in ("fget", "func", "__func__"):  # of properties, cached ones, bound and class methods
        if not isinstance(value, types.FunctionType):
            value = getattr(value, attribute, value) if not isinstance(value, type) else None
    return value if isinstance(value, types.FunctionType) else None


def takes_input(function: types.FunctionType) -> bool:
    """Whether it has to be given something beside the module, as what computes is."""
    code = function.__code__
    required = code.co_argcount - len(function.__defaults__ or ())
    return required > 1 or bool(code.co_flags & inspect.CO_VARARGS)


# Ways to a module's children, and to everything within it, that name none of them.
_TO_CHILDREN = {"getattr", "children", "named_children", "_modules", "__dict__", "vars", "__getitem__"}
_TO_ANYTHING = {"modules", "named_modules", "get_submodule"}


def reads(module: nn.Module, way: Sequence[str], trusted: set[types.CodeType]) -> bool:
    """Whether a method of ``module`` may get hold of a module within it, other than by calling what holds that.

    Args:
        way: names of children, from one of ``module`` to the module in question.
        trusted: code that is known to do no harm.
    """
    table = methods(module)
    for function in table.values():
        if takes_input(function) and function.__code__ not in trusted:
            speaking = _speaking(function, table)
            names = set().union(*(code_names(f.__code__) for f in speaking))
            if names & _TO_ANYTHING:
                return True
            direct = way[0].isdigit() or bool(names & _TO_CHILDREN)
            if not direct and way[0] in names:
                direct = len(way) == 1 or not all(_only_calls(f, way[0]) for f in speaking)
            if direct and all(name in names for name in way[1:] if not name.isdigit()):
                return True
    return False


# What may be asked of a weight whatever its shape.
_OF_ANY_TENSOR = {"dtype", "device", "requires_grad", "is_cuda", "is_meta", "grad"}


def all_names(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every name by which each module is registered."""
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    return names


def reader_of_weight(model: nn.Module, names: Iterable[str]) -> str | None:
    """A method that computes with the weight of the module by one of these ``names``, None if none is seen to.

    Expressions like ``self.conv.weight`` or ``self.layers[0].weight`` are seen; asking for a dtype or device is not
    computing.
    """
    for way in (name.split(".") for name in names if name):
        for i in range(len(way)):
            for function in methods(model.get_submodule(".".join(way[:i]))).values():
                if takes_input(function) and any(_leads(node, way[i:]) for node in _weights_read(function.__code__)):
                    return function.__qualname__
    return None


@functools.lru_cache(maxsize=1024)
def _weights_read(code: types.CodeType) -> list[ast.AST]:
    """The expressions whose ``weight`` a function computes with."""
    tree = _tree(code) if "weight" in code_names(code) else None
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)] if tree else []
    harmless = {id(node.value) for node in nodes if node.attr in _OF_ANY_TENSOR}
    return [node.value for node in nodes if node.attr == "weight" and id(node) not in harmless]


def _leads(node: ast.AST, way: Sequence[str]) -> bool:
    """Whether an expression may be the module at the end of the way: it ends with the same names."""
    for name in reversed(way):
        if isinstance(node, ast.Subscript) and name.isdigit():
            index = node.slice
            if isinstance(index, ast.Constant) and isinstance(index.value, int) and str(index.value) != name:
                return False
            node = node.value
        elif isinstance(node, ast.Attribute) and node.attr == name:
            node = node.value
        else:
            return False
    return isinstance(node, ast.Name)


def _speaking(function: types.FunctionType, table: dict[str, types.FunctionType]) -> list[types.FunctionType]:
    """A function, and the methods and functions of its module that it may call."""
    found, pending = {id(function): function}, [function]
    while pending:
        f = pending.pop()
        spoken = [table.get(name) for name in code_names(f.__code__)]
        for other in (*spoken, *(f.__globals__.get(name) for name in global_names(f.__code__))):
            if (
                isinstance(other, types.FunctionType)
                and id(other) not in found
                and not is_library(other.__module__ or "")
            ):
                found[id(other)] = other
                pending.append(other)
    return list(found.values())


def _only_calls(function: types.FunctionType, name: str) -> bool:
    """Whether a function does nothing with an attribute of this name but calling it."""
    if name not in code_names(function.__code__):
        return True
    tree = _tree(function.__code__)
    if tree is None:
        return False
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    spoken = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == name]
    return bool(spoken) and all(id(node) in called for node in spoken)


@functools.lru_cache(maxsize=1024)
def _tree(code: types.CodeType) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):  # typed in, or a lambda in the middle of something
        return None
