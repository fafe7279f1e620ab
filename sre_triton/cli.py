"""The command ``sre-triton``, also ``python -m sre_triton``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import sre_triton
from sre_triton.training.commands import add_commands as add_training_commands
from sre_triton.training.runs.interruption import Interrupted

__all__ = ["main"]

_FAULT = object()  # a command ran to its end, and what it found is wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0; 1 if ``selfcheck`` found a fault; 2 if something the user gave or lacks stood in the way;
        130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="sre-triton", description="Ring convolutions for PyTorch.")
    parser.add_argument("--version", action="version", version=sre_triton.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="every network with its parameters, arithmetic and time")
    models.add_argument("--filter", default="*", help="only names that match this pattern, as 'sre_*' (default: all)")
    models.add_argument("--no-time", action="store_true", help="do not run the networks, only count")
    models.add_argument("--pretrained", action="store_true", help="the trained networks that the package brings along")
    models.add_argument("--json", action="store_true", help="print JSON instead of a table")
    models.set_defaults(run=_models)

    native = commands.add_parser("build-native", help="compile the native CPU kernel for this machine (half a minute)")
    native.add_argument("--verbose", "-v", action="store_true", help="show what the compiler says")
    native.set_defaults(run=_build_native)

    check = commands.add_parser("selfcheck", help="hold every backend of this machine against float64 (under a minute)")
    check.add_argument("--device", help="cpu, cuda or another (default: the CPU, and the GPU if there is one)")
    check.set_defaults(run=_selfcheck)

    add_training_commands(commands)

    arguments = parser.parse_args(argv)
    try:
        status = arguments.run(arguments)
    except ImportError as error:
        extra = {"models": "models", "export": "train,onnx"}.get(arguments.command, "train")
        print(f"sre-triton {arguments.command}: {error}; pip install 'sre-triton[{extra}]'", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"sre-triton {arguments.command}: {stop}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"sre-triton {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"sre-triton {arguments.command}: {error}", file=sys.stderr)
        return 2
    return 1 if status is _FAULT else 0


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
