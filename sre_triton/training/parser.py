"""The parser of a command: short help and full help, examples, and mistakes told in one line."""

from __future__ import annotations

import argparse
import difflib
import math
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

__all__ = ["CommandParser", "finite_number", "parse", "whole_number"]

_WIDEST = 110  # columns


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        width = min(_WIDEST, shutil.get_terminal_size().columns) - 2
        super().__init__(prog, max_help_position=30, width=width)


class _Help(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        assert isinstance(parser, CommandParser)
        print(parser.format_help(everything=self.option_strings == ["--help-all"]), end="")
        parser.exit()


class CommandParser(argparse.ArgumentParser):
    """A parser whose ``--help`` leaves out what is rarely wanted; ``--help-all`` shows it.

    Args:
        operands: what stands after the command's name, for the usage line.
        examples: whole command lines that the help shows first.
        settings: of :class:`argparse.ArgumentParser`.

    Attributes:
        rare: destinations of the options that only ``--help-all`` shows.
        shown: groups of another parser's options that the help shows, though this parser does not take them.
        defaults_from: further defaults, found in what was given; the command line is read again with them.
    """

    def __init__(self, *, operands: str = "[OPTION ...]", examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(
            add_help=False, allow_abbrev=False, formatter_class=_Formatter, usage=f"%(prog)s {operands}", **settings
        )
        self.examples = tuple(examples)
        self.rare: set[str] = set()
        self.shown: list[Any] = []
        self.defaults_from: Callable[[argparse.Namespace], dict[str, Any]] = lambda given: {}
        self.add_argument("-h", "--help", action=_Help, help=argparse.SUPPRESS)
        self.add_argument("--help-all", action=_Help, help=argparse.SUPPRESS)
        self.set_defaults(parser=self)

    def format_help(self, everything: bool = False) -> str:
        """The help as text.

        Args:
            everything: show the rarely wanted options, too.
        """
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        if self.examples:
            formatter.add_text("\n".join(["examples:", *(f"  {line}" for line in self.examples)]))
        hidden = 0
        for group in [*self._action_groups, *self.shown]:
            told = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
            shown = [action for action in told if everything or action.dest not in self.rare]
            hidden += len(told) - len(shown)
            formatter.start_section(group.title)
            if shown:
                formatter.add_text(group.description)
            formatter.add_arguments(shown)
            formatter.end_section()
        formatter.add_text(self.epilog)
        if hidden:
            formatter.add_text(f"{hidden} more options: {self.prog} --help-all")
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        """Ends the command with a line that says what is wrong."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Ends the command because of words that it cannot read."""
        option = next((word for word in words if word.startswith("-")), None)
        if option is None:
            self.error(f"unexpected argument {words[0]!r}")
        name = option.partition("=")[0]
        there = [flag for flag, action in self._option_string_actions.items() if not hasattr(action, "is_gone")]
        alike = difflib.get_close_matches(name, there, n=1, cutoff=0.7)
        self.error(f"unknown option {name}" + (f", did you mean {alike[0]}?" if alike else ""))


def parse(parser: CommandParser, words: Sequence[str]) -> argparse.Namespace:
    """Reads a command line.

    Raises:
        ValueError, OSError: where the command looks for further defaults, something is wrong or missing.
    """
    given, unknown = parser.parse_known_args(words)
    chosen: CommandParser = given.parser
    if unknown:
        chosen.refuse(unknown)
    defaults = chosen.defaults_from(given)
    if defaults:
        chosen.set_defaults(**defaults)
        given = parser.parse_args(words)
    return given


def whole_number(text: str) -> int:
    """An integer, for ``type=`` of an option."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def finite_number(text: str) -> float:
    """A float that is neither infinite nor NaN, for ``type=`` of an option."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value
