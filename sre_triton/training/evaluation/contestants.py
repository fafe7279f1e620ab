"""Who is compared: names of networks, and the options that each has for itself."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass

from sre_triton.training.options import SCORE_OPTIONS, CompareOptions, RunOptions
from sre_triton.training.schema import changed_options
from sre_triton.training.tasks.networks import PLAIN_TWINS

__all__ = ["Contestant", "contestants"]

_OF_ALL = ("seed", "test_crop", "expand", "reference_protocol", "world_size", "dry_run")


@dataclass(frozen=True)
class Contestant:
    """A network in a comparison.

    Attributes:
        name: by which tables and folders call it.
        options: of its training.
        own: those of them that are its own, as they were given.
    """

    name: str
    options: RunOptions
    own: str

    @property
    def folder(self) -> str:
        return self.name.replace(":", "-")


def contestants(options: RunOptions, comparison: CompareOptions) -> list[Contestant]:
    """The networks of ``--models`` with the options that ``--model-options`` gives each.

    Raises:
        ValueError: an entry is of no network of the comparison, cannot be read, or changes what is the same for all.
    """
    names = comparison.models or [options.model_type, PLAIN_TWINS.get(options.model_type, options.model_type)]
    names = list(dict.fromkeys(names))
    own: dict[str, list[str]] = {}
    for entry in comparison.model_options:
        name, *words = _split(entry)
        if name not in names:
            raise ValueError(
                f"--model-options {entry!r}: begin it with one of the networks of --models, {', '.join(names)}"
            )
        own.setdefault(name, []).extend(words)
    found = [_contestant(name, options, own.get(name, [])) for name in names]
    folders = [one.folder for one in found]
    if len(set(folders)) < len(folders):
        raise ValueError(f"--models {' '.join(names)}: two of them would share a folder: name them otherwise")
    return found


def _split(entry: str) -> list[str]:
    try:
        words = shlex.split(entry)
    except ValueError as error:
        raise ValueError(f"--model-options {entry!r}: {error}") from error
    if not words:
        raise ValueError("--model-options: an entry is the name of a network and its options, got an empty one")
    return words


def _contestant(name: str, options: RunOptions, words: list[str]) -> Contestant:
    text = shlex.join(words)
    where = f"--model-options '{name} {text}'"
    base = dataclasses.replace(options, model_type=name)
    changed = changed_options(base, words, where)
    for entry in dataclasses.fields(changed):
        counts = entry.metadata["result"] or entry.name in SCORE_OPTIONS or entry.name == "test_batch_size"
        if getattr(changed, entry.name) != getattr(base, entry.name) and (not counts or entry.name in _OF_ALL):
            raise ValueError(f"{where}: --{entry.name.replace('_', '-')} is the same for all networks")
    return Contestant(name, changed, text)
