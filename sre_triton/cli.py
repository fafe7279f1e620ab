"""The command ``sre-triton``, also ``python -m sre_triton``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import sre_triton
from sre_triton.training.commands import add_commands as add_training_commands
from sre_triton.training.interruption import Interrupted

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0; 2 if something the user gave or lacks stood in the way; 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="sre-triton", description="Ring convolutions for PyTorch.")
    parser.add_argument("--version", action="version", version=sre_triton.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="rings against ordinary convolutions on a turning fundus photograph")
    demo.add_argument("--output", type=Path, default=Path("demo.png"), help="picture to write (default: %(default)s)")
    demo.add_argument("--size", type=int, default=256, help="side of the image in pixels (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the random weights (default: %(default)s)")
    demo.set_defaults(run=_demo)

    models = commands.add_parser("models", help="every network with its parameters, arithmetic and time")
    models.add_argument("--filter", default="*", help="only names that match this pattern, as 'sre_*' (default: all)")
    models.add_argument("--no-time", action="store_true", help="do not run the networks, only count")
    models.add_argument("--json", action="store_true", help="print JSON instead of a table")
    models.set_defaults(run=_models)

    add_training_commands(commands)

    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except ImportError as error:
        extra = arguments.command if arguments.command in ("demo", "models") else "train"
        print(f"sre-triton {arguments.command}: {error}; pip install 'sre-triton[{extra}]'", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"sre-triton {arguments.command}: {stop}", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"sre-triton {arguments.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _demo(arguments: argparse.Namespace) -> None:
    if arguments.size < 64:
        raise ValueError(f"--size must be at least 64, so that the compared disc is not empty, got {arguments.size}")
    if not arguments.output.absolute().parent.is_dir():
        raise ValueError(f"--output {arguments.output}: its folder does not exist")
    from sre_triton.demo import run_demo

    run_demo(arguments.output, arguments.size, arguments.seed)


def _models(arguments: argparse.Namespace) -> None:
    from sre_triton.models.profile import show_profiles

    show_profiles(arguments.filter, timed=not arguments.no_time, as_json=arguments.json)
