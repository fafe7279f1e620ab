"""The command ``sre-triton``, also ``python -m sre_triton``."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence

import torch

import sre_triton
from sre_triton.backends import native
from sre_triton.training.commands import add_commands as add_training_commands
from sre_triton.training.parser import CommandParser, parse
from sre_triton.training.runs.interruption import Interrupted

__all__ = ["main"]

_FAULT = object()  # a command ran to its end, and what it found is wrong

_EXAMPLES = (
    "sre-triton train --data photos --epochs 50 --cos   # a folder of images per class",
    "sre-triton evaluate logs/task/RUN                  # its scores on turned images",
    "sre-triton predict logs/task/RUN new               # its answers on a folder of images",
)


# Commands that compute for so long that the native kernel is worth a word.
_LONG = ("train", "segment", "evaluate", "compare", "predict", "visualize", "demo", "models")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0; 1 if ``selfcheck`` found a fault; 2 if something the user gave or lacks stood in the way;
        130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser, names = _parser()
    if not words:
        print(parser.format_help(), end="")
        return 0
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in names:
        alike = difflib.get_close_matches(command, names, n=1)
        parser.error(f"there is no command {command!r}" + (f", did you mean {alike[0]}?" if alike else ""))
    try:
        arguments = parse(parser, words)
        advice = native.advice() if command in _LONG and not torch.cuda.is_available() else None
        if advice and not getattr(arguments, "quiet", False):
            print(advice, file=sys.stderr)
        status = arguments.run(arguments)
    except ImportError as error:
        extra = {"models": "models", "export": "train,onnx"}.get(str(command), "train")
        print(f"sre-triton {command}: {error}; pip install 'sre-triton[{extra}]'", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"sre-triton {command}: {stop}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"sre-triton {command}: interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"sre-triton {command}: {error}", file=sys.stderr)
        return 2
    return 1 if status is _FAULT else 0


def _parser() -> tuple[CommandParser, list[str]]:
    """The whole command line, and the names of its commands."""
    parser = CommandParser(
        prog="sre-triton",
        description="Ring convolutions for PyTorch: networks that find the same however an image is turned.",
        operands="COMMAND [OPTION ...]",
        examples=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=sre_triton.__version__, help="show the version")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands", prog=parser.prog
    )
    add_training_commands(commands)

    models = commands.add_parser(
        "models",
        help="list networks: parameters, arithmetic, time",
        description="List every network with its parameters, arithmetic and time.",
        examples=(
            "sre-triton models --filter 'sre_*'",
            "sre-triton models --no-time --json",
            "sre-triton models --pretrained",
        ),
    )
    models.add_argument("--filter", default="*", help="only names that match this pattern, as 'sre_*' (default: all)")
    models.add_argument("--no-time", action="store_true", help="do not run the networks, only count")
    models.add_argument("--pretrained", action="store_true", help="the trained networks that the package brings along")
    models.add_argument("--json", action="store_true", help="print JSON instead of a table")
    models.set_defaults(run=_models)

    native = commands.add_parser(
        "build-native",
        help="compile the CPU kernel for this machine (a minute)",
        description="Compile the native CPU kernel for this machine (a minute; needs a C++ compiler).",
        examples=("sre-triton build-native", "sre-triton build-native --verbose", "sre-triton selfcheck"),
    )
    native.add_argument("--verbose", "-v", action="store_true", help="show what the compiler says")
    native.set_defaults(run=_build_native)

    check = commands.add_parser(
        "selfcheck",
        help="compare every backend here with float64 (a minute)",
        description="Compare every backend of this machine with float64 (under a minute).",
        examples=("sre-triton selfcheck", "sre-triton selfcheck --device cpu", "sre-triton selfcheck --device cuda:1"),
    )
    check.add_argument("--device", help="cpu, cuda or another (default: the CPU, and the GPU if there is one)")
    check.set_defaults(run=_selfcheck)
    return parser, list(commands.choices)


def _build_native(arguments: argparse.Namespace) -> None:
    from sre_triton.backends.native import build

    try:
        print(build(verbose=arguments.verbose))
    except RuntimeError as error:
        raise OSError(str(error)) from error  # what the machine lacks, as `main` reports it


def _selfcheck(arguments: argparse.Namespace) -> object:
    try:
        found = sre_triton.selfcheck(arguments.device)
    except RuntimeError as error:
        raise ValueError(f"--device {arguments.device}: {str(error).splitlines()[0]}") from error
    print(found)
    return None if found.is_ok else _FAULT


def _models(arguments: argparse.Namespace) -> None:
    if arguments.pretrained:
        from sre_triton.training.runs.pretrained import show_pretrained

        show_pretrained(as_json=arguments.json)
        return
    from sre_triton.models.profile import show_profiles

    show_profiles(arguments.filter, timed=not arguments.no_time, as_json=arguments.json)
