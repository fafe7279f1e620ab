"""``python -m bench.pretended_gpu MODE [--fault FAULT ...] COMMAND ...``: run a command with the pretended GPU."""

from __future__ import annotations

import argparse
import os
import sys

from bench.pretended_gpu import MODES, environment


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.pretended_gpu", description=__doc__)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--fault", action="append", default=[], help="kind@launcher[:kernel size][@process]")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="of Python: -m bench.gpu ...")
    options = parser.parse_args()
    os.environ.update(environment(options.mode, options.fault))
    os.execv(sys.executable, [sys.executable, *options.command])


if __name__ == "__main__":
    main()
