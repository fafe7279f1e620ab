"""Dataclasses of options: fields that know their help, the command line made of them, and their form in JSON."""

from __future__ import annotations

import argparse
import dataclasses
import operator
import os
import types
import typing
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sre_triton.training.parser import CommandParser, finite_number, whole_number

__all__ = [
    "GROUPS",
    "add_arguments",
    "changed_options",
    "check_ranges",
    "from_dict",
    "from_namespace",
    "option",
    "result_options",
    "to_dict",
    "without_places",
]

Options = TypeVar("Options")


def option(
    default: Any,
    help: str,
    *,
    group: str,
    flags: Sequence[str] = (),
    choices: Iterable[Any] | None = None,
    metavar: str | None = None,
    nargs: str | None = None,
    const: Any = None,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    result: bool = True,
    common: bool = True,
) -> Any:
    """One option.

    Args:
        flags: further spellings; the field's own name with dashes always comes first.
        least, most, above, below: what numbers it takes, as :func:`check_ranges` holds them against.
        result: whether it can change what is learned, so that a resumed run must have the same.
        common: whether ``--help`` shows it; ``--help-all`` shows all.
    """
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    metadata = {
        "help": help,
        "group": group,
        "flags": tuple(flags),
        "choices": tuple(choices) if choices is not None else None,
        "metavar": metavar,
        "nargs": nargs,
        "const": const,
        "bounds": {words: bound for words, bound in bounds.items() if bound is not None},
        "result": result,
        "common": common,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


GROUPS = {
    "comparison": None,
    "prediction": None,
    "export": None,
    "visualization": None,
    "data": None,
    "network": None,
    "optimiser and schedule": None,
    "augmentation": None,
    "rotation test": None,
    "machine": None,
    "run folder and logs": None,
    "reference": "so that command lines of main.py, the training script of SRE-Conv's authors, run as they are",
}
"""Groups of options in the order in which help shows them, and what it says of them."""

_NUMBERS = {int: whole_number, float: finite_number}


def add_arguments(parser: CommandParser, options: type[Any], *, dest_prefix: str = "") -> None:
    """Adds every field of a dataclass of options to a parser, in groups that ``--help`` shows. What is switched on by
    ``--name`` is switched off by ``--no-name``, where ``--config`` or ``--resume`` have switched it on.

    A class variable ``dropped`` lists flags of the reference script that are answered with the reason why they are
    gone.

    Args:
        dest_prefix: of the namespace's attributes, where two dataclasses share a parser and a field's name.
    """
    hints = typing.get_type_hints(options)
    groups: dict[str, Any] = {}
    order = list(GROUPS)
    entries = sorted(dataclasses.fields(options), key=lambda entry: order.index(entry.metadata["group"]))
    for entry in entries:
        about = entry.metadata
        if about["group"] not in groups:
            groups[about["group"]] = parser.add_argument_group(about["group"], GROUPS[about["group"]])
        group = groups[about["group"]]
        if not about["common"]:
            parser.rare.add(dest_prefix + entry.name)
        make = entry.default_factory
        default = entry.default if make is dataclasses.MISSING else make()
        flags = [*about["flags"], "--" + entry.name.replace("_", "-")]
        settings: dict[str, Any] = {
            "dest": dest_prefix + entry.name,
            "default": default,
            "help": _help(about["help"], default),
        }
        kind, many = _kind(hints[entry.name])
        if kind is bool:
            group.add_argument(*flags, action="store_true", **settings)
            if not entry.name.startswith("no_"):
                settings |= {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
                parser.add_argument(flags[-1].replace("--", "--no-", 1), action="store_false", **settings)
            continue
        settings |= {
            "type": _NUMBERS.get(kind, kind),
            "metavar": about["metavar"],
            "choices": about["choices"],
            "nargs": about["nargs"],
        }
        if many and about["nargs"] is None:
            settings["nargs"] = "+"
        if about["const"] is not None:
            settings["const"] = about["const"]
        group.add_argument(*flags, **settings)
    for flag, reason in getattr(options, "dropped", {}).items():
        parser.add_argument(flag, action=_Dropped, reason=reason)


def _help(text: str, default: Any) -> str:
    if default in (None, False, "", []) or "default" in text:
        return text
    return f"{text} (default: {' '.join(map(str, default)) if isinstance(default, list) else '%(default)s'})"


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there are many."""
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], True
    return hint, False


class _Dropped(argparse.Action):
    """An option of the reference script that this one does not have, and why."""

    is_gone = True

    def __init__(self, option_strings: Sequence[str], dest: str, reason: str) -> None:
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs="*", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        self.reason = reason

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.error(f"{self.option_strings[0]} was dropped: {self.reason}")


def from_namespace(options: type[Options], namespace: argparse.Namespace, *, dest_prefix: str = "") -> Options:
    """Takes the fields of a dataclass of options out of what a parser found.

    Raises:
        ValueError: see :func:`check_ranges`.
    """
    names = [entry.name for entry in dataclasses.fields(options)]  # type: ignore[arg-type]
    found = options(**{name: getattr(namespace, dest_prefix + name) for name in names})
    check_ranges(found)
    return found


def check_ranges(options: Any) -> None:
    """Holds every number among options against what its option takes.

    Raises:
        ValueError: one is outside; names the option, its value and what was expected.
    """
    for entry in dataclasses.fields(options):
        bounds, value = entry.metadata["bounds"], getattr(options, entry.name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not all(_FITS[words](number, bound) for words, bound in bounds.items()):
                wanted = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items())
                raise ValueError(f"{_flag(entry.name)} must be {wanted}, got {number}")


_FITS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


class _Changes(CommandParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}")


def changed_options(options: Options, words: Sequence[str], where: str) -> Options:
    """Options after a command line's words changed some of them.

    Args:
        where: the words stand, for errors.

    Raises:
        ValueError: the words are no options of theirs, or a value is wrong; begins with ``where``.
    """
    parser = _Changes(prog=where)
    add_arguments(parser, type(options))
    parser.set_defaults(**{entry.name: getattr(options, entry.name) for entry in dataclasses.fields(options)})  # type: ignore[arg-type]
    given, unknown = parser.parse_known_args(words)
    if unknown:
        parser.refuse(unknown)
    return from_namespace(type(options), given)


def to_dict(options: Any) -> dict[str, Any]:
    """The options as JSON holds them; paths become text."""
    return {
        name: os.fspath(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(options).items()
    }


def from_dict(options: type[Options], values: dict[str, Any]) -> Options:
    """The inverse of :func:`to_dict`. Options that are new since then take their defaults; those that are gone are
    left out with a warning that names them and their values.

    Raises:
        ValueError: a path is no text; names the option.
    """
    hints = typing.get_type_hints(options)
    known = {entry.name for entry in dataclasses.fields(options)}  # type: ignore[arg-type]
    gone = [f"{_flag(name)} {value}" for name, value in values.items() if name not in known]
    if gone:
        warnings.warn(
            f"written by another version of sre_triton, which had options that are left out here: {', '.join(gone)}",
            stacklevel=2,
        )
    read = {name: value for name, value in values.items() if name in known}
    for name, value in read.items():
        if _kind(hints[name])[0] is Path and value is not None:
            if not isinstance(value, str):
                raise ValueError(f"{_flag(name)} must be a path, got {value!r}")
            read[name] = Path(value)
    return options(**read)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def result_options(options: Any) -> dict[str, Any]:
    """The options that can change what is learned."""
    names = {entry.name for entry in dataclasses.fields(options) if entry.metadata["result"]}
    return {name: value for name, value in to_dict(options).items() if name in names}


def without_places(options: Options, keep: Iterable[str]) -> Options:
    """Options as a checkpoint may bring them: those that say how a network is built and its images prepared, and
    those to ``keep``. Paths, downloads, logs and what concerns a machine are as by default, as others may have written
    them."""
    hints, kept = typing.get_type_hints(type(options)), set(keep)
    changed: dict[str, Any] = {}
    for entry in dataclasses.fields(options):  # type: ignore[arg-type]
        is_path = _kind(hints[entry.name])[0] is Path
        if is_path or not (entry.metadata["result"] or entry.name in kept):
            make = entry.default_factory
            changed[entry.name] = entry.default if make is dataclasses.MISSING else make()
    return dataclasses.replace(options, **changed)  # type: ignore[type-var]
